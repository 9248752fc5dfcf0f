"""What a command imports: seconds of torch, Ray and MLflow only where they are of use."""

from __future__ import annotations

import os
import subprocess
import sys

from project import PROJECT

RUN = """
import sys
from importlib import import_module

def imported(*modules):
    for module in modules:
        import_module(module)
    heavy = ("torch", "timm", "torchmetrics", "ray", "mlflow", "decord", "open_clip", "gradio")
    return {name for name in heavy if name in sys.modules}

found = imported("pipeline.stages.report", "pipeline.tools.compare", "pipeline.stages.extract")
assert not found, found
found = imported("pipeline.tools.predict", "pipeline.tools.profile", "pipeline.tools.dry_run")
assert found == {"torch", "timm"}, found
found = imported("pipeline.stages.evaluate", "pipeline.stages.export", "pipeline.tools.explain")
assert found == {"torch", "timm", "mlflow"}, found
"""


def test_heavy_packages_are_imported_where_they_are_of_use() -> None:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
