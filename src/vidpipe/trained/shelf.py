"""Trained models that come and go while a program runs; adapters of one backbone hold it once."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidpipe.backbones.zoo import Backbone, load_backbone
from vidpipe.device import Precision
from vidpipe.errors import VidpipeError
from vidpipe.trained.card import OWN_BACKBONE, TENSORS, read_card
from vidpipe.trained.predictor import (
    BackboneKey,
    Predictor,
    backbone_key,
    frames_of,
)
from vidpipe.trained.trained_model import TrainedModel

MB = 2**20


@dataclass(frozen=True)
class Shelved:
    """A model in memory, with what makes probabilities of its segments."""

    name: str
    folder: Path
    trained: TrainedModel
    predictor: Predictor
    frames: Mapping[str, Any]
    """`short_side` and `fps` of the frames that it is given."""
    backbone: BackboneKey | None
    """Models of equal keys share their frozen tensors; None: a package, whose tensors are its own."""


class Shelf:
    """Models by name; each has a backbone in memory once, and the last that leaves takes it along.

    Safe to use from several threads: what was taken from it can be used while others are loaded.

    Args:
        device: where they compute.
        precision: as of `vidpipe.load`.

    Example:
        >>> shelf = Shelf()
        >>> a, b = shelf.load("a", folders[0]), shelf.load("b", folders[1])
        >>> a.backbone == b.backbone
        True
        >>> shelf.unload("a"); list(shelf.models)
        ['b']
    """

    def __init__(self, device: str | torch.device = "cpu", precision: Precision = "auto") -> None:
        self.device, self.precision = torch.device(device), precision
        self.models: dict[str, Shelved] = {}
        self._backbones: dict[BackboneKey, Backbone] = {}
        self._lock = threading.Lock()

    def load(
        self, name: str, folder: Path, weights: str | None = None, inside: Path | None = None
    ) -> Shelved:
        """Open an adapter or package under `name`, in place of a model of that name once it is there.

        Args:
            name: by which it is asked for.
            folder: adapter or package.
            weights: where an adapter's backbone is, in place of what it records.
            inside: no file outside of this folder is read: neither by a link nor as the backbone's
                weights that the adapter records. A backbone in memory is shared from wherever it came.

        Raises:
            VidpipeError: as `vidpipe.load`, and for what lies outside of `inside`.
        """
        with self._lock:
            try:
                found = self._open(name, folder, weights, inside)
                self.models = {**self.models, name: found}
            finally:
                self._forget_unused()
            return found

    def unload(self, name: str) -> None:
        """Raises VidpipeError where there is no such model."""
        with self._lock:
            if name not in self.models:
                raise VidpipeError(f"model {name}: not loaded")
            self.models = {key: model for key, model in self.models.items() if key != name}
            self._forget_unused()

    def _open(self, name: str, folder: Path, weights: str | None, inside: Path | None) -> Shelved:
        if inside is not None:
            for file in ("config.json", *TENSORS.values(), OWN_BACKBONE):
                _refuse_outside(folder / file, inside)
        card = read_card(folder)
        key = backbone_key(card, card.backbone.weights_sha256)
        if key is not None and key not in self._backbones:
            config = card.backbone_config(folder, weights)
            if inside is not None and weights is None:
                if config.hub_tag is not None:
                    raise VidpipeError(
                        f"{folder.name}: its backbone {config.name} is not in memory and would have to "
                        "be downloaded; start with a model that has it, or put its weights beside it"
                    )
                _refuse_outside(Path(config.weights), inside)
            self._backbones[key] = load_backbone(config, card.form.size)
        trained = card.build(folder, weights, None if key is None else self._backbones[key])
        models = {name: trained}
        predictor = Predictor(models, device=self.device, precision=self.precision)
        return Shelved(name, folder, trained, predictor, frames_of(models), key)

    def _forget_unused(self) -> None:
        used = {model.backbone for model in self.models.values()}
        self._backbones = {key: one for key, one in self._backbones.items() if key in used}

    def memory(self) -> dict[str, Any]:
        """MB of tensors: `total`; `shared`, those of backbones that several models have; `apart`, what
        the models would take if each had its backbone to itself; `own` of each model, what it shares
        with no other."""
        each = {name: _storages(model.trained.model) for name, model in self.models.items()}
        users: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for storages in each.values():
            for place, size in storages.items():
                users[place], sizes[place] = users.get(place, 0) + 1, size
        return {
            "total": sum(sizes.values()) / MB,
            "shared": sum(size for place, size in sizes.items() if users[place] > 1) / MB,
            "apart": sum(sum(storages.values()) for storages in each.values()) / MB,
            "own": {
                name: sum(size for place, size in storages.items() if users[place] == 1) / MB
                for name, storages in each.items()
            },
        }


def _storages(model: nn.Module) -> dict[int, int]:
    """Address -> bytes of the memory that its parameters and buffers lie in."""
    tensors = (*model.parameters(), *model.buffers())
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _refuse_outside(file: Path, folder: Path) -> None:
    root = folder.resolve()
    try:
        place = file.resolve()
    except (OSError, RuntimeError, ValueError):
        raise VidpipeError(f"{file.name}: no readable path") from None
    if root not in place.parents:
        raise VidpipeError(f"{file.name}: lies outside of the root; put it below it")
