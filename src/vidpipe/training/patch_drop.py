"""`train.patch_drop` in a training: when patches are left out, and what cannot do without them."""

from __future__ import annotations

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.patch_drop import PatchDrop
from vidpipe.methods.split import Split
from vidpipe.training.config import TrainConfig


def drop_patches(model: VideoModel, config: TrainConfig, done: float) -> None:
    """Set what `model` drops when the share `done` of the training lies behind it."""
    drops = config.patch_drop > 0 and done < config.patch_drop_until
    model.patch_drop = PatchDrop(config.patch_drop, config.patch_drop_by) if drops else None


def refuse_patch_drop(model: VideoModel, config: TrainConfig, split: Split | None = None) -> None:
    """Raises VidpipeError where patches are to be dropped and the model, or what is trained of it on
    kept features, needs them all."""
    if config.patch_drop and (why := (model if split is None else split).whole_grid):
        raise VidpipeError(
            f"train.patch_drop: {config.patch_drop:g}, but method {model.name} needs every patch here: "
            f"{why}; set it to 0"
        )
