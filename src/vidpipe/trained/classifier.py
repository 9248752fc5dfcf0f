"""A trained model in hand: a folder becomes an object that names what a video shows."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeAlias, cast, overload

import torch
from torch import Tensor

from vidpipe.device import Precision, choose_device
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.inference.fetch import is_url
from vidpipe.inference.segments import Request, Segment, decoders
from vidpipe.methods.base import VideoModel
from vidpipe.tasks.base import said
from vidpipe.trained.embedder import Embedder
from vidpipe.trained.frames import Frames, of_frames
from vidpipe.trained.hub import fetch, is_address
from vidpipe.trained.package import open_model
from vidpipe.trained.predictor import Predictor, frames_of, predict_extract
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.guard import Guards
from vidpipe.video.quarantine import QuarantineError

Video: TypeAlias = str | Path | Frames
"""A local file, or its frames."""
BATCH = 8
"""Videos that go through the model together; a CPU gains nothing by more, and frames take memory."""


class Guess(NamedTuple):
    """A class and how probable the model finds it."""

    label: str
    probability: float


class Classifier:
    """A trained model with its preprocessing and class names, from `vidpipe.load`.

    A file is decoded, sampled and cropped as `vidpipe predict` and evaluation do it, in a process of its
    own that a damaged file can hang or kill without harm; it starts with the first file and ends with
    `close`, with the `with` block, or with the object.

    Args:
        trained: the model and what travels beside it.
        device: where it computes; None: a GPU where there is one.
        temporal_clips: clips of a video whose probabilities are averaged; dense sampling only.
        spatial_crops: 1 (centre) or 3 (along the long side).
        precision: `"fp32"`, `"bf16"` or `"fp16"`; `"auto"`: bf16 on a GPU, exact fp32 on a CPU.

    Raises:
        VidpipeError: for more clips than the model's sampling has, or other crops than 1 or 3.

    Example:
        >>> clf = Classifier(trained, spatial_crops=3)
        >>> clf
        Classifier(st_adapter on vit_still_patch12_48, 2 classes, 8 frames uniform)
    """

    def __init__(
        self,
        trained: TrainedModel,
        device: str | torch.device | None = None,
        *,
        temporal_clips: int = 1,
        spatial_crops: int = 1,
        precision: Precision = "auto",
    ) -> None:
        if spatial_crops not in (1, 3):
            raise ArgumentError("spatial_crops", f" {spatial_crops}: expected 1 or 3")
        chosen = choose_device("auto") if device is None else torch.device(device)
        self.trained = trained
        models = {"model": trained}
        options = (models, temporal_clips, spatial_crops, chosen, precision)
        self._predictor, self._embedder = Predictor(*options), Embedder(*options)
        extract = predict_extract(frames_of(models))
        self._request = Request(extract, self._predictor.samplings, temporal_clips)
        self._guards: Guards[str, Segment] | None = None

    @property
    def model(self) -> VideoModel:
        """(B, 3, T, S, S) normalised clips -> (B, C) logits; in eval mode."""
        return self.trained.model

    @property
    def classes(self) -> list[str]:
        """Names of the C classes, in the order of the logits."""
        return self.trained.classes

    @overload
    def predict(self, video: Video, top: int = 5) -> list[Guess]: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, video: Sequence[Video], top: int = 5) -> list[list[Guess]]: ...

    def predict(
        self, video: Video | Sequence[Video], top: int = 5
    ) -> list[Guess] | list[list[Guess]]:
        """The most probable classes.

        Args:
            video: a local file; or frames, uint8 RGB (N, 3, H, W) of any size, as a tensor or an array:
                a video at the rate the model learned on, of which the clip is sampled as of a file's
                frames, or, where N is the model's number of frames, the clip itself; or a list of those.
            top: classes to name, at most all of them.

        Returns:
            (label, probability) of the `top` classes, best first; for a list, a list of that. Of several
            labels a video (task multilabel), only the classes that reach their thresholds, maybe none.

        Raises:
            VidpipeError: for a file that is missing, damaged or too large, with the reason; for frames
                of another shape or type.

        Example:
            >>> frames = torch.zeros(20, 3, 240, 320, dtype=torch.uint8)
            >>> best, other = clf.predict(frames)
            >>> best.label in clf.classes and best.probability >= other.probability
            True
        """
        if top < 1:
            raise VidpipeError(f"top {top}: expected 1 or more")
        if isinstance(video, list | tuple):
            return [self._guesses(p, top) for p in self._probabilities(video)]
        (probabilities,) = self._probabilities([cast(Video, video)])
        return self._guesses(probabilities, top)

    def features(self, video: Video | Sequence[Video]) -> Tensor:
        """What the head classifies: the feature of the clip, before its dropout and linear layer.

        Args:
            video: as for `predict`.

        Returns:
            (D,) fp32 on the CPU, the mean over the views; for a list of N, (N, D).

        Raises:
            VidpipeError: as `predict`.

        Example:
            >>> frames = torch.zeros(20, 3, 240, 320, dtype=torch.uint8)
            >>> clf.features([frames, frames]).shape
            torch.Size([2, 96])
        """
        if not isinstance(video, list | tuple):
            return self.features([cast(Video, video)])[0]
        found = [self._embedder([self._segment(each)])[0]["model"][0] for each in video]
        return torch.stack(found) if found else torch.empty(0, self.model.feature_width)

    def preprocess(self, frames: Frames) -> Tensor:
        """Frames -> the model's input, by the centre view.

        Args:
            frames: uint8 RGB (T, 3, H, W) or (B, T, 3, H, W) of any size, one clip or several.

        Returns:
            (B, 3, T, h, w) fp32 on the model's device: resized to cover (h, w), the middle cropped,
            normalised as the backbone's weights expect.

        Raises:
            VidpipeError: for another shape or type.

        Example:
            >>> clf.preprocess(torch.zeros(8, 3, 60, 80, dtype=torch.uint8)).shape
            torch.Size([1, 3, 8, 48, 48])
        """
        return self.model.preprocess(torch.as_tensor(frames))

    def merge(self) -> Classifier:
        """The same classifier with its adapters folded into the backbone's own weights.

        Returns:
            A new Classifier whose model has the cost of the plain backbone and the same logits but for
            rounding. This one stays as it is.

        Raises:
            VidpipeError: where the method cannot be merged, with the reason.

        Example:
            >>> clf.merge()
            Traceback (most recent call last):
            vidpipe.errors.VidpipeError: st_adapter cannot be merged: ...
        """
        merged = self.model.merge().eval()
        merged.backbone, merged.form = self.model.backbone, self.model.form
        return Classifier(
            replace(self.trained, model=merged),
            self._predictor.device,
            temporal_clips=self._predictor.temporal_clips,
            spatial_crops=self._predictor.spatial_crops,
            precision=self._predictor.precision,
        )

    def close(self) -> None:
        """End the decoding process, if one was started; the next file starts another."""
        if self._guards is not None:
            self._guards.close()
            self._guards = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        backbone, sampling = self.trained.backbone.config.name, self.trained.sampling
        return (
            f"Classifier({self.model.name} on {backbone}, {len(self.classes)} classes, "
            f"{sampling.num_frames} frames {sampling.strategy})"
        )

    # -- from a video to the model's input ------------------------------------------------------

    def _probabilities(self, videos: Sequence[Video]) -> list[Tensor]:
        """(C,) of each, on the CPU."""
        found = []
        for start in range(0, len(videos), BATCH):
            segments = [self._segment(video) for video in videos[start : start + BATCH]]
            found += [result["model"] for result in self._predictor(segments)]
        return found

    def _guesses(self, probabilities: Tensor, top: int) -> list[Guess]:
        best = said(probabilities, self.trained.thresholds, top)
        return [Guess(self.classes[index], float(probabilities[index])) for index in best]

    def _segment(self, video: Video) -> Segment:
        if isinstance(video, str | Path):
            return self._decoded(video)
        return of_frames(video, self.trained.sampling, self._predictor.temporal_clips)

    def _decoded(self, path: str | Path) -> Segment:
        if is_url(str(path)):
            raise VidpipeError(f"{path}: expected a local file; fetch it first")
        if self._guards is None:
            self._guards = decoders(self._request)
            weakref.finalize(self, self._guards.close)
        segment: Segment | None = None
        for event in self._guards.run([str(path)]):
            if isinstance(event.result, QuarantineError):
                detail = " ".join(event.result.detail.split())[:500]
                raise VidpipeError(f"{path}: {event.result.reason} ({detail})")
            if isinstance(event.result, Segment):
                segment = event.result
        assert segment is not None  # a video that is read to its end has given one
        return segment


def load(
    folder: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    temporal_clips: int = 1,
    spatial_crops: int = 1,
    precision: Precision = "auto",
) -> Classifier:
    """Open a trained model: an adapter folder or a model package, here or on the Hugging Face Hub.

    Nothing in the folder is executed, and what does not fit is refused before memory is taken for it.

    Args:
        folder: from `vidpipe.save`, `vidpipe train` or `vidpipe export`; or `hf://OWNER/NAME@REVISION`
            of what `vidpipe push` wrote, where a commit as the revision always gives the same model.
        weights: where an adapter's backbone is; None: where the adapter says. A package needs none.
        device: where it computes, such as `"cuda:1"`; None: a GPU where there is one.
        temporal_clips: clips of a video whose probabilities are averaged; dense sampling only.
        spatial_crops: 1 (centre) or 3 (along the long side).
        precision: `"fp32"`, `"bf16"` or `"fp16"`; `"auto"`: bf16 on a GPU, exact fp32 on a CPU.

    Returns:
        A `Classifier`.

    Raises:
        VidpipeError: in one line, for a folder that is missing, damaged, or no trained model, for
            backbone weights that are not those it was trained on, and for a repository that the hub does
            not give or that holds what could run code.

    Example:
        >>> import tempfile, torch, vidpipe.trained
        >>> from vidpipe.backbones.still import WEIGHTS
        >>> model = vidpipe.create_model(
        ...     "aim", "vit_still_patch12_48", num_classes=2, num_frames=8, weights=WEIGHTS
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clf = load(vidpipe.trained.save(model, f"{folder}/out", classes=["left", "right"]))
        >>> len(clf.predict(torch.zeros(30, 3, 60, 80, dtype=torch.uint8), top=5))
        2
    """
    chosen = None if weights is None else str(weights)
    path = fetch(str(folder), chosen)[0] if is_address(folder) else Path(folder)
    trained = open_model(path, chosen)
    if "boxes" in trained.task.inputs:
        raise VidpipeError(
            f"{folder}: a model of task {trained.task.name} answers for boxes, not for clips; use "
            "`vidpipe predict` with people's boxes, or `vidpipe.export.programs.PixelModel`"
        )
    return Classifier(
        trained,
        device,
        temporal_clips=temporal_clips,
        spatial_crops=spatial_crops,
        precision=precision,
    )
