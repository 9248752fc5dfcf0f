"""A mistake in params.yaml or an argument is answered before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from project import PROJECT

MISTAKES = {
    "train --method aim --set train.epoch=3": "train.epoch: unknown key; nearest is epochs",
    "train --method aim --set train.epochs": "expected key=value",
    "train --method aimm": "nearest is aim",
    "train --method aim --recipe weizman": "nearest is weizmann",
    "train --method aim --params nowhere.yaml": "no such file",
    "train": "--method is missing",
    "extract --set extract.gop=0": "extract.gop",
    "synth --set synth.fps=1": "synth.fps",
    "evaluate --method aim --set evaluate.spatial_crops=2": "evaluate.spatial_crops",
    "export --method aim --set methods.aim.bottleneck=1": "nearest is bottleneck_ratio",
    "run --methods aim,aimm": "nearest is aim",
    "explain --method aimm": "nearest is aim",
    "profile --method aimm": "nearest is aim",
    "tune --method aim --set train.seed=one": "train.seed",
    "tune --method aim --space methods.aim.lrr=uniform(0,1)": "nearest is lr",
    "tune --method aim --space methods.aim.lr=uniforn(0,1)": "nearest is uniform",
    "tune --method aim --search optunna": "--search optunna",
    "report": "nothing evaluated yet",
    "params --set train.epoch=3": "nearest is epochs",
    "data show --set train.epoch=3": "nearest is epochs",
    "data show --split test": "expected train or val",
}
RUN = f"""
import contextlib, io, shlex, sys
from pipeline.cli.app import main

for words, message in {MISTAKES!r}.items():
    err = io.StringIO()
    sys.argv = ["vidpipe", *shlex.split(words)]
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            assert end.code == 1, (words, end.code, err.getvalue())
    assert message in err.getvalue(), (words, err.getvalue())
    heavy = {{"torch", "timm", "numpy", "pandas", "ray", "mlflow", "av"}} & set(sys.modules)
    assert not heavy, (words, heavy)
sys.argv = ["vidpipe", "params"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
assert "torch" not in sys.modules
"""


def test_every_mistake_is_answered_without_torch(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
