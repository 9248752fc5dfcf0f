"""The layer rule: `pipeline` imports `vidpipe`, never the reverse; the library stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from project import PROJECT
from without import run_without

from vidpipe.methods.registry import METHODS

FORBIDDEN = {"ray", "mlflow", "dvc", "typer", "pipeline"}
LIBRARY = sorted((PROJECT / "src" / "vidpipe").rglob("*.py"))


def imported(source: str) -> set[str]:
    """Top-level names of every import in `source`, wherever it stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


def test_the_check_itself_sees_nested_imports() -> None:
    assert imported("def f():\n    from ray.train import x\n    import mlflow.pyfunc") == {
        "ray",
        "mlflow",
    }


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(PROJECT)))
def test_library_imports_no_orchestration(path) -> None:
    assert not imported(path.read_text(encoding="utf-8")) & FORBIDDEN


def test_models_run_where_only_torch_and_timm_are_installed() -> None:
    code = """
import torch, timm
from vidpipe.methods.registry import METHODS
from vidpipe.interop import build_from_reference
from vidpipe.backbones.zoo import load_backbone
vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
for name, method in METHODS.items():
    print(name, method(vit, 3, 2, method.Config()).eval()(torch.zeros(1, 3, 2, 224, 224)).shape)
"""
    done = run_without("ray mlflow dvc typer decord av open_clip pyarrow matplotlib pandas", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("torch.Size([1, 3])") == len(METHODS)


def test_every_library_module_imports_without_decord_and_orchestration() -> None:
    modules = [
        ".".join(p.relative_to(PROJECT / "src").with_suffix("").parts).removesuffix(".__init__")
        for p in LIBRARY
    ]
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    done = run_without("ray mlflow dvc typer decord", code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from typer.testing import CliRunner
from pipeline.cli.app import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "train" in result.output
heavy = {"torch", "ray", "mlflow", "dvc", "timm", "pandas", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
