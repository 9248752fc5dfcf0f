"""What a training keeps: which rows, under which key, and whether there is room for them.

A folder belongs to all that decides a feature but the clip: weights, cut, input, transform, sampling
and, where bits count, the machine's arithmetic. A row belongs to the clip's content, as the manifest has
it, and to the number of its view. So other weights, another transform or a changed video never meet an
old row, and trainings on other folds, seeds, rates or subsets share what is there.

Not chosen: one folder a training, which computes a clip again in every fold; an index file beside the
shards, which a kill leaves out of step with them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidpipe.backbones.zoo import Backbone
from vidpipe.config.identity import config_hash, deciding
from vidpipe.data.batches import EpochBatches, parts
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.device import autocast_dtype
from vidpipe.errors import VidpipeError
from vidpipe.features.fill import Filler
from vidpipe.features.place import Place
from vidpipe.features.sets import ANY, CachedTestViews, CachedTrainSet, CachedViewSet, Kept
from vidpipe.features.store import FeatureStore, gigabytes, refuse_full
from vidpipe.features.views import (
    Item,
    TestViews,
    TrainViews,
    ValidationViews,
    Views,
    refuse_mixing,
    refuse_random,
)
from vidpipe.methods.split import Split
from vidpipe.training.config import CachedViews, TrainConfig
from vidpipe.video.store import FrameStore, read_manifest

VERSION = 1
BATCH = "batch-"
"""Of the folders of a store, one a size of batches whose bits differ."""


@dataclass
class _Job:
    """The rows of one set of clips."""

    folder: Place
    about: dict[str, Any]
    clips: Clips
    names: list[list[str]]
    """Of each clip's views."""
    source: Views
    clips_of_size: Mapping[int, Sequence[int]]
    """Size of a batch -> the clips that are ever in one, largest first."""
    exact: bool

    def rows(self, size: int) -> dict[str, Item]:
        return {
            name: (i, view)
            for i in self.clips_of_size[size]
            for view, name in enumerate(self.names[i])
        }


class FeatureCache:
    """The frozen features of one training, below `root`.

    Args:
        root: a folder or an fsspec URL; each combination of what decides a feature has its own in it.
        split: of the model.
        backbone: of the model.
        config: `train` of params.yaml, with `cache_features` exact or {views: N}.
        device: where the training computes.
        say: called with a line about what is computed and how large it is, before it is written.
    """

    def __init__(
        self,
        root: Place,
        split: Split,
        backbone: Backbone,
        config: TrainConfig,
        device: torch.device,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.root, self.split, self.backbone, self.config = root, split, backbone, config
        self.device, self.say = device, say
        self.filler = Filler(split, backbone, config, device, say)

    def sets(
        self, train: TrainSet, val: ViewSet | None, rank: int = 0, world_size: int = 1
    ) -> tuple[CachedTrainSet, CachedViewSet | None]:
        """`train` and `val` with features in place of frames; what is missing is computed first.

        Raises VidpipeError, before anything is written, where views are drawn anew in every epoch and
        where the disk is too small.
        """
        if type(train) is not TrainSet:  # its samples hold more than a view of a clip
            raise VidpipeError(
                "train.cache_features: clips of a task with boxes are cropped with them; set it to off"
            )
        jobs = [self._train_job(train, world_size)]
        sizes: list[int] = []
        if val is not None:
            job, sizes = self._val_job(val, world_size)
            jobs.append(job)
        self._refuse_full(jobs, loud=rank == 0)
        kept, *kept_val = [self._kept(job) for job in jobs]
        cached = CachedTrainSet(train, kept, self.config.accumulate)
        return cached, CachedViewSet(val, kept_val[0], sizes) if val is not None else None

    def test_views(self, plain: ViewSet) -> CachedTestViews:
        """`plain` with features of all its views; what is missing is computed first.

        Raises VidpipeError where the disk is too small.
        """
        size, clips = self.config.batch_size, plain.clips
        count = plain.temporal_clips * plain.spatial_crops
        form = [plain.form.identity(), plain.temporal_clips, plain.spatial_crops]
        place = self._folder("test", True, clips.store, plain.sampling, form)
        names = [[f"{name}-{view}" for view in range(count)] for name in _names(clips)]
        everyone: dict[int, Sequence[int]] = {size: range(len(clips))}
        job = _Job(*place, clips, names, TestViews(plain), everyone, True)
        self._refuse_full([job], loud=True)
        return CachedTestViews(plain, self._kept(job), size)

    # -- which rows -----------------------------------------------------------------------------

    def _train_job(self, plain: TrainSet, world_size: int) -> _Job:
        clips, config = plain.clips, self.config
        transform, wanted = plain.transform.config, config.cache_features
        refuse_mixing(transform)
        exact, views = True, 1
        if isinstance(wanted, CachedViews):
            exact, views = False, wanted.views
        else:
            lengths = {clips.num_frames(i) for i in range(len(clips))}
            refuse_random(plain.sampling, transform, lengths)
        names = [[f"{name}-{view}" for view in range(views)] for name in _names(clips)]
        seeds = [[int(_hash(name), 16) for name in own] for own in names]
        everyone = range(len(clips))
        sizes = _part_sizes(len(clips), config, world_size) if exact else {ANY}
        place = self._folder("train", exact, clips.store, plain.sampling, transform)
        return _Job(
            *(*place, clips, names, TrainViews(plain, seeds)),
            dict.fromkeys(sorted(sizes, reverse=True), everyone),
            exact,
        )

    def _val_job(self, plain: ViewSet, world_size: int) -> tuple[_Job, list[int]]:
        """And of each clip the size of the batch that it is validated in."""
        batch, count = max(1, self.config.batch_size // world_size), len(plain)
        sizes = []
        for i in range(count):
            own = len(range(i % world_size, count, world_size))
            sizes.append(min(batch, own - i // world_size // batch * batch))
        of_size = {
            size: [i for i, own in enumerate(sizes) if own == size]
            for size in sorted(set(sizes), reverse=True)
        }
        form = plain.form.identity()
        place = self._folder("val", True, plain.clips.store, plain.sampling, form)
        names = [[f"{name}-0"] for name in _names(plain.clips)]
        return _Job(*place, plain.clips, names, ValidationViews(plain), of_size, True), sizes

    def _folder(
        self, kind: str, exact: bool, store: FrameStore, *views: Any
    ) -> tuple[Place, dict[str, Any]]:
        """Of all that decides a feature beside the clip, and what that is: its `about.json`."""
        dtype = autocast_dtype(self.config.precision, self.device)
        about = {
            "version": VERSION,
            "clips": kind,
            "backbone": self.backbone.card(),
            "features": self.split.identity(),
            "views": [deciding(view) for view in views],
            "tier": store.tier,
            "computed_in": str(dtype or torch.float32).removeprefix("torch."),
            "kept_in": "float32" if exact else "bfloat16",
            "machine": self._machine() if exact else None,
        }
        return self.root / f"{kind}-{config_hash(about)}", about

    def _machine(self) -> list[Any]:
        """What the last bits of fp32 arithmetic depend on, beside the shape of a batch."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        capability = torch.backends.cpu.get_cpu_capability()
        threads = self.config.threads if self.device.type == "cpu" else 0
        return [torch.__version__, name, capability, threads, self.config.deterministic]

    # -- where they are -------------------------------------------------------------------------

    def _refuse_full(self, jobs: Sequence[_Job], loud: bool) -> None:
        needed = 0
        for job in jobs:
            names = {name for size in job.clips_of_size for name in job.rows(size)}
            there: set[str] = set()
            for name in job.folder.names():
                if re.fullmatch(rf"{BATCH}\w+", name):
                    there |= FeatureStore(job.folder / name).places.keys()
            missing, row = len(names - there), self.filler.row_bytes(job.exact)
            needed += missing * row
            if missing and loud:
                self.say(
                    f"frozen features ({self.split.what}): {missing:,} of {len(names):,} views to "
                    f"compute, {gigabytes(missing * row)} in {job.folder}"
                )
        refuse_full(self.root, needed)

    def _kept(self, job: _Job) -> Kept:
        kept = Kept(job.clips, len(job.names[0]))
        if "about.json" not in job.folder.names():
            job.folder.write_json("about.json", job.about)
        for size in job.clips_of_size:
            rows = job.rows(size)
            if job.exact:
                store = self.filler.variant(job.folder, size, rows, job.source)
                number = int(store.place.name.removeprefix(BATCH))
            else:
                store, number = FeatureStore(job.folder / f"{BATCH}any"), self.config.batch_size
            self.filler.fill(store, rows, job.source, number, job.exact)
            kept.add(size, store, job.names)
        return kept


def _part_sizes(clips: int, config: TrainConfig, world_size: int) -> set[int]:
    """Clips of the parts that steps are computed in, on any rank."""
    batches = EpochBatches(
        clips, config.batch_size, config.seed, 0, world_size, drop_last=config.drop_last
    )
    of_all = {batches.size_of(0), batches.size_of(len(batches) - 1)}
    own = {len(range(rank, count, world_size)) for count in of_all for rank in range(world_size)}
    return {p.stop - p.start for count in own - {0} for p in parts(count, config.accumulate)}


def _names(clips: Clips) -> list[str]:
    """Of each clip, what its content is known by: its row in the manifest, without id and label."""
    columns = ("status", "sha256", "frames", "fps", "width", "height", "nbytes")
    manifest = read_manifest(clips.store.root, columns)
    rows = manifest.rows[manifest.rows.status == "ok"].drop(columns="status")
    own = rows.iloc[clips.rows]
    return [_hash(f"{manifest.tier} {row}") for row in own.itertuples(index=False, name=None)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
