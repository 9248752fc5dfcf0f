"""`vidpipe push` and `pull`: trained models on the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from vidpipe.errors import VidpipeError
from vidpipe.export.hub import About, push
from vidpipe.files import atomic_folder, read_json, write_json
from vidpipe.trained.card import ADAPTER, read_card
from vidpipe.trained.hub import FILES, PREFIX, fetch
from vidpipe.trained.package import open_model

__all__ = ["About", "pull", "push"]


def pull(text: str, folder: Path, weights: str | None, force: bool) -> str:
    """Copy a model of the hub to `folder`, and prove that it opens; returns what it is, in a line.

    An adapter's card then names `weights`. Raises VidpipeError for an existing folder without `force`.
    """
    if folder.exists() and not force:
        raise VidpipeError(
            f"{folder}: exists already; name another folder, or --force to replace it"
        )
    text = text if text.startswith(PREFIX) else PREFIX + text
    source, address = fetch(text, weights)
    trained = open_model(source, weights)
    with atomic_folder(folder) as target:
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        if weights is not None and read_card(source).format == ADAPTER:
            config = read_json(target / "config.json")
            config["backbone"]["weights"] = weights
            write_json(target / "config.json", config)
    method, backbone = trained.model.name, trained.backbone.config.name
    return f"{folder}: {method} on {backbone}, {len(trained.classes)} classes, from {address}"
