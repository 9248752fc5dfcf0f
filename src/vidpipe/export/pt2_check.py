"""What a .pt2 may hold for us to open it.

`torch.export.load` unpickles weights, constants and example inputs where the archive says so, loads
compiled libraries, and evaluates expressions and guards as Python: whoever wrote the file can have
the reader's machine do anything. The programs that we write hold none of that, so a file that does is
refused.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.export.pt2_archive import PT2ArchiveReader

from vidpipe.errors import VidpipeError

ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)"
    r"|models/model\.json|extra/vidpipe\.json|data/sample_inputs/model\.pt"
    r"|data/(weights/(weight_\d+|model_weights_config\.json)"
    r"|constants/(tensor_\d+|model_constants_config\.json))"
)
INPUTS, GRAPH = "data/sample_inputs/model.pt", "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+(\.\w+)?|_operator\.[a-z]+|torch\.sym_\w+|math\.[a-z]+"
    r"|torch\.ops\.torchvision\.roi_align\.default"  # of task detection
)
SYMBOLIC = {"Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv"}
"""Of sympy and torch: what sizes that depend on the batch are written with."""


def refuse_unsafe(path: Path) -> None:
    """Raise VidpipeError, in one line, for a .pt2 that could run code when it is opened. Nothing of it
    is unpickled or evaluated here."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    root = names[0].partition("/")[0] if names else ""
    strange = [name for name in names if not _known(name, root)]
    if strange or len(set(names)) < len(names):
        _refuse(path, f"holds {strange[0][:100]!r}" if strange else "holds an entry twice")
    # The reader that torch uses: another may find other entries in a file made to fool it.
    reader = PT2ArchiveReader(str(path))
    for name in reader.get_file_names():
        if not ENTRIES.fullmatch(name):
            _refuse(path, f"holds {name[:100]!r}")
    if INPUTS in reader.get_file_names() and reader.read_bytes(INPUTS):
        _refuse(path, f"holds pickled inputs ({INPUTS})")
    for name in CONFIGS:
        for key, entry in json.loads(reader.read_bytes(name))["config"].items():
            if entry.get("use_pickle") is not False or not re.fullmatch(
                r"(weight|tensor)_\d+", str(entry.get("path_name"))
            ):
                _refuse(path, f"holds pickled weights ({key[:100]!r})")
    for key, value in _walk(json.loads(reader.read_bytes(GRAPH))):
        if key == "guards_code" and value:
            _refuse(path, "holds guards, which are Python")
        if key == "target" and isinstance(value, str) and not OPERATORS.fullmatch(value):
            _refuse(path, f"calls {value[:100]!r}")
        if key == "expr_str" and not _symbolic(str(value)):
            _refuse(path, f"evaluates {str(value)[:100]!r}")


def _refuse(path: Path, what: str) -> None:
    raise VidpipeError(
        f"{path}: {what}, which can run code when it is opened; take model.safetensors, or export again"
    )


def _known(name: str, root: str) -> bool:
    own, _, inner = name.partition("/")
    return own == root and ENTRIES.fullmatch(inner) is not None


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _symbolic(text: str) -> bool:
    """Whether `text` is nothing but calls of SYMBOLIC and constants."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    plain = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword)
    return all(
        isinstance(node, plain) and (not isinstance(node, ast.Name) or node.id in SYMBOLIC)
        for node in ast.walk(tree)
    )
