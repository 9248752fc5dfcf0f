"""`vidpipe import-checkpoint`: calls the library's importer with what the command line gave as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vidpipe.backbones.config import BackboneConfig
from vidpipe.config.messages import explain
from vidpipe.config.overlay import parse_override
from vidpipe.errors import VidpipeError
from vidpipe.interop.importer import ImportOptions, import_checkpoint


def run(
    file: Path,
    method: str,
    backbone: Mapping[str, str],
    options: Mapping[str, Any],
    stdha: Sequence[str],
    classes: Path | None,
    out: Path,
) -> dict[str, str]:
    try:
        config = BackboneConfig.model_validate(backbone)
    except ValidationError as error:
        raise VidpipeError(explain(error, BackboneConfig, "backbone")) from None
    names = None if classes is None else _lines(classes)
    parsed = ImportOptions(**options, stdha=_stdha(stdha), classes=names)
    return import_checkpoint(file, method, config, parsed, out)


def _stdha(texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        try:
            found |= parse_override(text)
        except VidpipeError:
            raise VidpipeError(f"--stdha {text}: expected key=value, like shift_div=12") from None
    return found


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VidpipeError(f"--classes {path}: cannot be read ({error})") from None
    return tuple(line.strip() for line in lines if line.strip())
