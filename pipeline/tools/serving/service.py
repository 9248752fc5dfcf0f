"""The models and decoders behind the API: a video and a query become an answer. No HTTP, no Ray."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pipeline.tools.predict_people import Who
from pipeline.tools.serving.measures import Measures, Snapshot
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError
from vidpipe.inference.given import Refused, Rules, Wanted, decoded, given_decoder
from vidpipe.inference.segments import Segment
from vidpipe.serving.answering import Item, body_of, compute, wanted_of
from vidpipe.serving.answers import Found, by_second
from vidpipe.serving.queries import Query, answer_of
from vidpipe.tasks.detection.people import PersonDetector
from vidpipe.trained.shelf import Shelf, Shelved
from vidpipe.video.guard import Guards

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of a model, as it stands in a URL."""
Together: TypeAlias = Callable[[Item], Awaitable[Any]]


@dataclass(frozen=True)
class Settings:
    """What is served, and how: plain values, for each replica to open the models itself."""

    models: tuple[tuple[str, Path], ...]
    """Name and folder of each."""
    rules: Rules = field(default_factory=Rules)
    weights: str | None = None
    max_queue: int = 32
    """Requests of a replica that are read, decoded, waiting or computed at a time."""
    batch_size: int = 8
    batch_wait_s: float = 0.005
    decoders: int = 2
    threads: int = 1
    top: int = 5
    who: Who = field(default_factory=Who)
    """Its detector, for models of task detection."""
    admin: bool = True
    """Whether models are loaded and unloaded by request; only with `rules.root`."""
    token: str | None = None
    """What such a request has to show, where there is one."""
    hosts: frozenset[str] | None = None
    """Names that the server answers under; None: any."""

    @property
    def deadline_s(self) -> float:
        """Of a whole answer: of waiting, and of a decoder at its own limit."""
        return 2 * self.rules.timeout_s


class Service:
    """What one replica holds.

    Raises VidpipeError where the models or the detector cannot be opened.
    """

    def __init__(
        self, settings: Settings, models: Sequence[tuple[str, Path]] | None = None
    ) -> None:
        self.settings = settings
        # Freed memory goes back to the system, unlike in a training: models come and go.
        torch.set_num_threads(settings.threads)
        self.shelf = Shelf(choose_device("auto"))
        self.measures = Measures()
        for name, folder in settings.models if models is None else models:
            self.shelf.load(name, folder, settings.weights)
        self.detector: PersonDetector | None = None
        if settings.who.detector is not None:
            people = settings.who.open(self.shelf.device)
            assert isinstance(people, PersonDetector)
            self.detector = people
        self._scratch = tempfile.TemporaryDirectory(prefix="vidpipe-serve-")
        self.scratch = Path(self._scratch.name)
        self._decoders: list[Guards[Wanted, Segment]] = []
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decoder")

    def close(self) -> None:
        """End the decoding processes."""
        for decoder in self._decoders:
            decoder.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._scratch.cleanup()

    # -- the models -----------------------------------------------------------------------------

    def model(self, name: str | None) -> Shelved:
        """The model of that name, or the only one. Raises Refused: 404, or 422 where it is not said."""
        models = self.shelf.models
        listed = ", ".join(sorted(models)) or "none is loaded"
        if name is None:
            if len(models) == 1:
                return next(iter(models.values()))
            raise Refused(422, "bad_parameter", f"model: which one? expected one of {listed}")
        if name not in models:
            raise Refused(404, "unknown_model", f"model {name[:80]!r}: unknown; expected {listed}")
        return models[name]

    def load(self, path: Any, name: Any) -> dict[str, Any]:
        """Open the adapter or package at `path` below the root. Raises Refused."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Refused(422, "bad_parameter", f"name: expected {NAME.pattern}")
        folder = self.settings.rules.path(path, folder=True)
        try:
            self.shelf.load(name, folder, inside=self.settings.rules.root)
        except VidpipeError as error:
            raise Refused(422, "no_model", str(error)) from None
        return self.report(name)

    def unload(self, name: str) -> dict[str, Any]:
        """Raises Refused (404) where there is none; who has begun to use it may finish."""
        self.model(name)
        self.shelf.unload(name)
        return {"unloaded": name}

    def listed(self) -> list[tuple[str, Path]]:
        """Name and folder of each model, for a replica that starts later."""
        return [(name, model.folder) for name, model in self.shelf.models.items()]

    def report(self, name: str | None = None) -> dict[str, Any]:
        """Of all models, or of one: task, classes, and MB in memory."""
        memory, models = self.shelf.memory(), self.shelf.models
        keys = list(dict.fromkeys(model.backbone for model in models.values() if model.backbone))
        rows = {
            each: {
                "name": each,
                "task": model.trained.task.name,
                "method": model.trained.model.name,
                "backbone": model.trained.backbone.config.name,
                "shares_backbone": None if model.backbone is None else keys.index(model.backbone),
                "own_mb": round(memory["own"].get(each, 0.0), 3),
                "frames": model.trained.sampling.num_frames,
                "window_s": model.trained.window_s,
                "classes": model.trained.classes,
            }
            for each, model in models.items()
        }
        if name is not None:
            return rows.get(name, {"name": name})
        numbers = {key: round(memory[key], 3) for key in ("total", "shared", "apart")}
        return {"models": list(rows.values()), "memory_mb": numbers}

    def snapshot(self) -> Snapshot:
        """The numbers of `/metrics`."""
        memory = self.shelf.memory()
        return self.measures.snapshot(
            models=len(self.shelf.models),
            model_mb=memory["total"],
            shared_mb=memory["shared"],
            queue=self.settings.max_queue,
        )

    # -- a video --------------------------------------------------------------------------------

    async def answer(
        self, model: Shelved, source: str, query: Query, together: Together
    ) -> dict[str, Any]:
        """What the model says of the video at a path or URL; `together` computes an Item.

        Raises Refused where the video cannot be used or the query does not fit the model.
        """
        begun, trained = time.perf_counter(), model.trained
        kind = answer_of(query, model.name, trained, detector=self.detector is not None)
        found: list[tuple[float, float, Found]] = []  # start and end in seconds
        wanted = wanted_of(model, source, query, kind, self.settings.rules, self.scratch)
        given = by_second(query)

        async def use(segment: Segment) -> None:
            boxes = given.get(segment.start_s) if kind == "boxes" else None
            probabilities = await together(Item(model, segment, source, boxes))
            found.append((segment.start_s, segment.end_s, probabilities))

        try:
            await self._each(wanted, use)
        except Refused as error:
            if kind == "boxes" and error.reason == "too_short":  # than a second that was asked for
                raise Refused(422, error.reason, f"boxes: {error}") from None
            raise
        return {
            **{"model": model.name, "answer": kind},
            **body_of(model, query, kind, found),
            "ms": round(1000 * (time.perf_counter() - begun), 1),
        }

    async def _each(self, wanted: Wanted, use: Callable[[Segment], Awaitable[None]]) -> None:
        """Decode in a thread that has a decoding process to itself; it waits where `use` is behind."""
        loop, stopped = asyncio.get_running_loop(), threading.Event()

        def pump() -> None:
            waiting: list[Future[None]] = []
            for segment in decoded(wanted, self._decoder()):
                if stopped.is_set():
                    return
                waiting.append(asyncio.run_coroutine_threadsafe(_run(use, segment), loop))
                while len(waiting) >= self.settings.batch_size:
                    waiting.pop(0).result()
            for each in waiting:
                each.result()

        try:
            await loop.run_in_executor(self._pool, pump)
        finally:
            stopped.set()

    def _decoder(self) -> Guards[Wanted, Segment]:
        """This thread's."""
        if not hasattr(self._own, "decoder"):
            self._own.decoder = given_decoder(self.settings.rules.timeout_s)
            self._decoders.append(self._own.decoder)
        decoder: Guards[Wanted, Segment] = self._own.decoder
        return decoder

    # -- a batch --------------------------------------------------------------------------------

    def compute(self, items: Sequence[Item]) -> list[Found | Exception]:
        """Of each item, what was found or why nothing was; those of one model go through it together."""
        self.measures.batch(len(items))
        return compute(items, self.detector)


async def _run(use: Callable[[Segment], Awaitable[None]], segment: Segment) -> None:
    await use(segment)


def cpus() -> int:
    """Of this machine, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
