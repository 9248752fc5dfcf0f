"""Every mistake on the command line is one line and an exit code, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from project import PROJECT

from pipeline.cli.app import main
from pipeline.cli.options import Configuration

MISTAKES = [
    (["train", "--nope"], 2, "vidpipe train: No such option: --nope; see `vidpipe train --help`"),
    (["nope"], 2, "vidpipe: No such command 'nope'; see `vidpipe --help`"),
    (["data", "nope"], 2, "vidpipe data: No such command 'nope'; see `vidpipe data --help`"),
    (["predict"], 2, "vidpipe predict: Missing option '--model'"),
    (["predict", "--model", "."], 1, "vidpipe: predict: expected inputs or --live SOURCE"),
    (["predict", "a.mp4", "--live", "-", "--model", "."], 1, "predict: expected inputs or --live"),
    (["predict", "--live", "-", "--out", "a", "--model", "."], 1, "vidpipe: --live: writes JSON"),
    (["predict", "a.mp4", "--model", "nope"], 2, "vidpipe predict: Invalid value for '--model': "),
    (["compare", "a"], 2, "vidpipe compare: Missing argument"),
    (["tune", "--trials", "many"], 2, "vidpipe tune: Invalid value for '--trials': "),
    (["data", "show", "--clips", "0"], 2, "vidpipe data show: Invalid value for '--clips': "),
    (["train", "--set"], 2, "Option '--set' requires an argument"),
    (["train"], 1, "vidpipe: --method is missing: no --recipe"),
    (["train", "--method", "aimm"], 1, "vidpipe: --method aimm: no such method; nearest is aim"),
    (["evaluate", "--method", "aimm"], 1, "vidpipe: --method aimm: no such method"),
    (["run", "--methods", "aim,nope"], 1, "vidpipe: --methods nope: no such method"),
    (
        ["train", "--recipe", "nope"],
        1,
        "--recipe nope: no such recipe; `vidpipe recipes` lists them",
    ),
    (["train", "--recipe", "weizman"], 1, "--recipe weizman: no such recipe; nearest is weizmann"),
    (["train", "--set", "x"], 1, "vidpipe: --set x: expected key=value"),
    (
        ["train", "--set", "train.epoch=3"],
        1,
        "params.yaml: train.epoch: unknown key; nearest is epochs",
    ),
    (["extract", "--set", "train.epochs=x"], 1, "params.yaml: train.epochs:"),
    (["params", "--params", "nope.yaml"], 1, "vidpipe: nope.yaml: no such file"),
    (["params", "--params", "list.yaml"], 1, "list.yaml: expected a mapping of sections"),
    (["params", "--params", "latin.yaml"], 1, "latin.yaml: "),
    (["params", "--params", "."], 1, "vidpipe: .: "),
    (["profile"], 1, "expected --method NAME, --recipe NAME or --paper-tables"),
    (["data", "show", "--split", "test"], 1, "--split test: expected train or val"),
    (["explain", "--method", "aim", "--target", "a"], 1, "--target a: only Grad-CAM has one"),
    (["fetch-weights", "name", "file.pt"], 1, "file.pt: expected a name ending in .safetensors"),
    (["report"], 1, "results: nothing evaluated yet; run `vidpipe evaluate`"),
    (["extract", "--set", "extract.gop=0"], 1, "extract.gop"),
    (["synth", "--set", "synth.fps=1"], 1, "synth.fps"),
    (["evaluate", "--method", "aim", "--set", "evaluate.spatial_crops=2"], 1, "spatial_crops"),
    (["export", "--set", "methods.aim.bottleneck=1"], 1, "nearest is bottleneck_ratio"),
    (["explain", "--method", "aimm"], 1, "--method aimm: no such method; nearest is aim"),
    (["profile", "--method", "aimm"], 1, "--method aimm: no such method; nearest is aim"),
    (["tune", "--set", "train.seed=one"], 1, "train.seed"),
    (["tune", "--method", "aim", "--space", "methods.aim.lrr=uniform(0,1)"], 1, "nearest is lr"),
    (
        ["tune", "--method", "aim", "--space", "methods.aim.lr=uniforn(0,1)"],
        1,
        "nearest is uniform",
    ),
    (["tune", "--method", "aim", "--search", "optunna"], 1, "--search optunna"),
    (["data", "show", "--set", "train.epoch=3"], 1, "nearest is epochs"),
]
EACH = """
import contextlib, io, json, sys
from pipeline.cli.app import main
for words in json.load(sys.stdin):
    sys.argv = ["vidpipe", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code, text = repr(error), ""
    heavy = {"torch", "timm", "numpy", "pandas", "ray", "mlflow", "av"} & set(sys.modules)
    print(json.dumps([code, out.getvalue(), err.getvalue(), sorted(heavy)]))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """[exit code, standard output, standard error, heavy modules] of each command, in one process."""
    folder: Path = tmp_path_factory.mktemp("here")
    (folder / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "latin.yaml").write_bytes(b"data: \xe4\n")
    commands = [words for words, _, _ in MISTAKES] + [["params"], []]
    done = subprocess.run(
        [sys.executable, "-c", EACH],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {" ".join(words): json.loads(line) for words, line in zip(commands, lines, strict=True)}


@pytest.mark.parametrize(
    ("words", "code", "said"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES]
)
def test_a_mistake_is_one_line_before_torch(
    words: list[str], code: int, said: str, ended: dict[str, list]
) -> None:
    got, out, err, heavy = ended[" ".join(words)]
    assert (got, out, heavy) == (code, "", [])
    assert said in err
    assert err.startswith("vidpipe")
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_no_command_at_all_shows_the_help(ended: dict[str, list]) -> None:
    code, out, err, _ = ended[""]
    assert code == 2
    assert "Usage: vidpipe" in out + err
    assert "vidpipe: ;" not in err


def test_parameters_are_shown_without_torch(ended: dict[str, list]) -> None:
    code, out, _, heavy = ended["params"]
    assert (code, heavy) == (0, [])
    assert "\ntrain:\n" in out


@pytest.mark.parametrize("raised", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_says_so_and_ends_with_130(
    raised: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: Configuration) -> None:
        raise raised

    monkeypatch.setattr(Configuration, "read", stop)
    monkeypatch.setattr(sys, "argv", ["vidpipe", "params"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (130, "vidpipe: interrupted\n")
