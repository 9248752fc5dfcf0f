"""Download a backbone once, into a file that params.yaml and DVC can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import load_backbone
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file


def fetch(source: str, name: str, tag: str, file: Path) -> str:
    """Write the weights of `source`'s model `name` to `file`; returns a line that says what it is."""
    fields: dict[str, Any] = {"source": source, "name": name, "weights": f"hub:{tag}".rstrip(":")}
    size = _timm_size(name) if source == "timm" else _clip_size(name)
    backbone = load_backbone(BackboneConfig.model_validate(fields), size)
    header = {"activation": backbone.activation}
    if source == "timm":
        header["architecture"] = name.partition(".")[0]
    with atomic_file(file) as temporary:
        save_file(backbone.vit.state_dict(), temporary, metadata=header)
    return f"{file}: {source} {name} at {size} px, sha256 {backbone.sha256[:12]}"


def _timm_size(name: str) -> int:
    import timm

    card = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if card is None:
        raise VidpipeError(f"timm has no pretrained model {name!r}")
    return int(card.input_size[-1])


def _clip_size(name: str) -> int:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise VidpipeError(f"open_clip has no model {name!r}")
    return int(config["vision_cfg"]["image_size"])
