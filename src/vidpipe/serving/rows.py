"""Many videos at once, a row each: one that cannot be answered says why, and the others are answered."""

from __future__ import annotations

import logging
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidpipe.errors import VidpipeError
from vidpipe.inference.given import KINDS, Refused, Rules, Wanted, decoded, given_decoder, source_of
from vidpipe.inference.segments import Segment
from vidpipe.serving.answering import Item, body_of, compute, wanted_of
from vidpipe.serving.answers import Found, by_second
from vidpipe.serving.queries import Answer, Query, answer_of, read_query
from vidpipe.trained.frames import of_frames
from vidpipe.trained.predictor import predict_extract
from vidpipe.trained.shelf import Shelved
from vidpipe.video.guard import Guards

LOG = logging.getLogger(__name__)
COLUMNS = ("answer", "seconds", "labels", "timeline", "boxes", "error", "reason")
BATCH = 8
"""Segments that go through the model together, of one row or of several."""


class Rows:
    """One model's answers to videos that strangers send.

    Safe to use from several threads, which wait for each other.

    Args:
        model: from a `Shelf`.
        rules: which paths and URLs are read, within which limits.

    Raises:
        VidpipeError: for limits out of bounds.

    Example:
        >>> rows = Rows(Shelf().load("model", folder), Rules(root))
        >>> [each["reason"] for each in rows([{"path": "a.mp4"}, {"path": "../b.mp4"}], {"top": 1})]
        [None, 'outside_root']
    """

    def __init__(self, model: Shelved, rules: Rules) -> None:
        self.model, self.rules = model, rules
        predict_extract(
            model.frames, **rules.limits
        )  # wrong limits are seen before the first video
        self._lock = threading.Lock()
        self._decoder: Guards[Wanted, Segment] | None = None  # begins with the first video

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """The answers, in order.

        Args:
            rows: of each video one of `bytes` (as they are, or base64), `url`, `path` and `frames`:
                uint8 RGB (N, 3, H, W) of any size, as for `Classifier.predict`. Of a model of task
                detection also `boxes`: [second, x1, y1, x2, y2] each, fractions of the frame, or,
                beside the frames of one clip, [x1, y1, x2, y2].
            asked: of all rows, the fields of `Query`.

        Returns:
            Of each row all of COLUMNS; those that it has no value for are None.
        """
        none = dict.fromkeys(COLUMNS)
        with self._lock, tempfile.TemporaryDirectory(prefix="vidpipe-") as scratch:
            return [{**none, **answer} for answer in self._answers(rows, asked, Path(scratch))]

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], asked: Mapping[str, Any], scratch: Path
    ) -> list[Mapping[str, Any]]:
        failed: dict[int, Exception] = {}
        queries: dict[int, tuple[Query, Answer]] = {}
        found: list[list[tuple[float, float, Found]]] = [[] for _ in rows]
        waiting: list[tuple[int, Item]] = []

        def work() -> None:
            results = compute([item for _, item in waiting], None)
            for (number, item), result in zip(waiting, results, strict=True):
                if isinstance(result, Exception):
                    failed[number] = result
                else:
                    found[number].append((item.segment.start_s, item.segment.end_s, result))
            waiting.clear()

        for number, row in enumerate(rows):
            try:
                query, kind = queries[number] = self._query(row, asked)
                for item in self._items(row, query, kind, scratch):
                    waiting.append((number, item))
                    if len(waiting) == BATCH:
                        work()
            except Refused as error:
                failed[number] = error
        work()
        return [
            _said(failed[number])
            if number in failed
            else self._answer(row, *queries[number], found[number])
            for number, row in enumerate(rows)
        ]

    def _answer(
        self,
        row: Mapping[str, Any],
        query: Query,
        kind: Answer,
        found: Sequence[tuple[float, float, Found]],
    ) -> Mapping[str, Any]:
        answer = {"answer": kind, **body_of(self.model, query, kind, found)}
        if row.get("frames") is not None:
            answer.pop("seconds", None)  # of a video; frames have no clock
        return answer

    def _query(self, row: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[Query, Answer]:
        given, boxes = dict(asked), row.get("boxes")
        frames = row.get("frames") is not None
        if boxes is not None:
            given["boxes"] = _plain(boxes)
            if frames and isinstance(given["boxes"], list):
                given["boxes"] = [
                    [0, *box] if isinstance(box, list) and len(box) == 4 else box
                    for box in given["boxes"]
                ]
        elif frames and "boxes" not in self.model.trained.task.inputs:
            given.setdefault("answer", "labels")
        query = read_query(given)
        kind = answer_of(query, self.model.name, self.model.trained, detector=False)
        if frames and kind == "timeline":
            raise Refused(422, "bad_parameter", "answer: timeline, but frames are one clip")
        return query, kind

    def _items(
        self, row: Mapping[str, Any], query: Query, kind: Answer, scratch: Path
    ) -> Iterator[Item]:
        boxes = by_second(query)
        frames = row.get("frames")
        if frames is not None:
            named = [key for key in KINDS if row.get(key) is not None]
            if named:
                raise Refused(
                    422, "bad_parameter", f"a video: got frames and {' and '.join(named)}"
                )
            yield self._clip(frames, boxes, kind)
            return
        with source_of(row, self.rules, scratch) as source:
            wanted = wanted_of(self.model, source, query, kind, self.rules, scratch)
            if self._decoder is None:
                self._decoder = given_decoder(self.rules.timeout_s)
                weakref.finalize(self, self._decoder.close)
            for segment in decoded(wanted, self._decoder):
                own = boxes.get(segment.start_s) if kind == "boxes" else None
                yield Item(self.model, segment, source, own)

    def _clip(self, given: Any, boxes: Mapping[float, Any], kind: Answer) -> Item:
        sampling = self.model.trained.sampling
        try:
            segment = of_frames(_uint8(given), sampling, 1)
        except VidpipeError as error:
            raise Refused(422, "bad_parameter", str(error)) from None
        if kind == "boxes" and (len(segment.frames) != sampling.num_frames or set(boxes) != {0.0}):
            raise Refused(
                422,
                "bad_parameter",
                f"frames: expected {sampling.num_frames}, the clip around the boxes' second, and boxes "
                "[x1, y1, x2, y2]",
            )
        return Item(self.model, segment, "frames", boxes.get(0.0) if kind == "boxes" else None)


def _uint8(given: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Frames as they were, or as JSON has them: nested lists of whole numbers from 0 to 255."""
    try:
        frames = np.asarray(given)
    except ValueError:
        raise VidpipeError("frames: expected uint8 RGB (N, 3, H, W), got ragged lists") from None
    if frames.dtype.kind == "i" and frames.size and frames.min() >= 0 and frames.max() <= 255:
        frames = frames.astype(np.uint8)
    if frames.dtype != np.uint8:
        raise VidpipeError(f"frames: {frames.dtype}; expected uint8 RGB (N, 3, H, W), 0 to 255")
    return frames


def _plain(value: Any) -> Any:
    """Lists in place of arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _said(error: Exception) -> dict[str, Any]:
    if isinstance(error, Refused):
        return {"error": str(error), "reason": error.reason}
    LOG.error("a video could not be answered", exc_info=error)
    return {
        "error": "an error of the model, not of the video; its log has more",
        "reason": "internal",
    }
