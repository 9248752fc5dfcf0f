"""Download a backbone once, into a file that params.yaml and DVC can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.input_card import input_card
from vidpipe.backbones.openclip import create_whole
from vidpipe.backbones.zoo import load_backbone
from vidpipe.files import atomic_file
from vidpipe.image_size import words


def fetch(source: str, name: str, tag: str, file: Path) -> str:
    """Write the weights of `source`'s model `name` to `file`; returns a line that says what it is.

    The file's header holds their card: two tags of one name may want other pictures.
    """
    fields: dict[str, Any] = {"source": source, "name": name, "weights": f"hub:{tag}".rstrip(":")}
    config = BackboneConfig.model_validate(fields)
    card = input_card(config)
    backbone = load_backbone(config, card.size)
    header = {"activation": backbone.activation, "architecture": name.partition(".")[0]}
    state = backbone.vit.state_dict()
    if source == "open_clip":
        # Both halves, as open_clip names them: a head may start from text.
        state = {k: v.contiguous() for k, v in create_whole(name, tag).state_dict().items()}
    with atomic_file(file) as temporary:
        save_file(state, temporary, metadata=header | card.header())
    return f"{file}: {source} {name} at {words(card.size)} px, sha256 {backbone.sha256[:12]}"
