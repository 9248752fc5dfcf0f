"""Download a backbone once, into a file that params.yaml and DVC can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.openclip import create_whole
from vidpipe.backbones.zoo import default_size, load_backbone
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file


def fetch(source: str, name: str, tag: str, file: Path) -> str:
    """Write the weights of `source`'s model `name` to `file`; returns a line that says what it is."""
    fields: dict[str, Any] = {"source": source, "name": name, "weights": f"hub:{tag}".rstrip(":")}
    config = BackboneConfig.model_validate(fields)
    size = _timm_size(name) if source == "timm" else default_size(config)
    backbone = load_backbone(config, size)
    header = {"activation": backbone.activation, "architecture": name.partition(".")[0]}
    state = backbone.vit.state_dict()
    if source == "open_clip":
        header |= {key: ",".join(map(repr, getattr(backbone, key))) for key in ("mean", "std")}
        # Both halves, as open_clip names them: a head may start from text.
        state = {k: v.contiguous() for k, v in create_whole(name, tag).state_dict().items()}
    with atomic_file(file) as temporary:
        save_file(state, temporary, metadata=header)
    return f"{file}: {source} {name} at {size} px, sha256 {backbone.sha256[:12]}"


def _timm_size(name: str) -> int:
    import timm

    card = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if card is None:
        raise VidpipeError(f"timm has no pretrained model {name!r}")
    return int(card.input_size[-1])
