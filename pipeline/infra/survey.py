"""A look at a folder of videos: how it is laid out, what it holds, and what that suggests."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import Listing, list_items
from vidpipe.data.layouts.common import walk
from vidpipe.data.layouts.generic import SPLITS
from vidpipe.errors import VidpipeError
from vidpipe.video.config import ExtractConfig
from vidpipe.video.probe import check_size, probe, video_stream
from vidpipe.video.probe import opened as container_of
from vidpipe.video.quarantine import QuarantineError

NAMED = {
    "ssv2": "**/*something-v2-train*.json",
    "diving48": "**/Diving48*_train.json",
    "ucf101": "**/trainlist01.txt",
    "hmdb51": "**/*_test_split1.txt",
    "kinetics": "**/train.csv",
}
"""Layout of a named data set -> a file that only it has, at most two folders deep."""
PATHS = ("path", "video", "video_path", "file", "filename", "file_name", "name", "clip")
LABELS = ("label", "class", "action", "category", "target", "class_name")
MOST_PROBED = 40
"""Videos that are opened, spread over the data set."""
BY_PREFIX = "*/{*}_*"
SIDES = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Survey:
    config: DataConfig
    """As params.yaml would have it."""
    listing: Listing
    seconds: list[float] = field(default_factory=list)
    """Of the videos that were opened, as the next three."""
    fps: list[float] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    @property
    def classes(self) -> Counter[str]:
        return Counter(item.label for item in self.listing.items)

    @property
    def train_clips(self) -> int:
        return sum(item.split == "train" for item in self.listing.items)

    @property
    def has_sides(self) -> bool:
        """Whether a mirrored clip may be of another class."""
        return any(SIDES.search(name) for name in self.listing.classes)

    def lines(self) -> list[str]:
        """What was seen, for people."""
        config, counts = self.config, self.classes
        few, many = min(counts.values()), max(counts.values())
        layout = {"folders": "a folder a class", "table": f"a table, {config.annotations}"}
        told = [
            f"layout     {config.layout}: {layout.get(str(config.layout), 'a named data set')}",
            f"videos     {len(self.listing.items)}, {self.train_clips} to train on",
            f"classes    {len(counts)}, with {few} to {many} videos"
            + (" (left and right among them: no flip)" if self.has_sides else ""),
        ]
        if config.group is not None:
            groups = Counter(item.group for item in self.listing.items)
            named = ", ".join(sorted(groups)[:4])
            told.append(
                f"groups     {len(groups)} by {config.group}: {named}, ...; kept on one side"
            )
        else:
            told.append("groups     none seen; data.group names what belongs together, if anything")
        if self.seconds:
            low, middle, high = (
                min(self.seconds),
                statistics.median(self.seconds),
                max(self.seconds),
            )
            (height, width), _ = self.sizes.most_common(1)[0]
            told.append(
                f"durations  {low:.1f} to {high:.1f} s, median {middle:.1f}, at "
                f"{statistics.median(self.fps):.3g} frames/s, mostly {width} x {height} px"
            )
        if self.unreadable:
            seen = len(self.seconds) + len(self.unreadable)
            told.append(
                f"damaged    {len(self.unreadable)} of {seen} looked at: {self.unreadable[0]}"
            )
        return told


def survey(root: Path, name: str) -> Survey:
    """Look at the videos below `root`; `name`: what params.yaml calls it.

    Raises VidpipeError, in one line, where no layout fits.
    """
    if not root.is_dir():
        raise VidpipeError(f"--data {root}: no such folder")
    config, listing = _laid_out(root)
    if config.group is None and config.layout in ("folders", "table"):
        config, listing = _grouped(config, listing)
    found = Survey(config.model_copy(update={"root": name}), listing)
    for path in _spread([item.path for item in listing.items]):
        try:
            seconds, fps, size = _seen(root / path)
        except QuarantineError as error:
            found.unreadable.append(f"{path} ({error.reason})")
            continue
        found.seconds.append(seconds)
        found.fps.append(fps)
        found.sizes[size] += 1
    return found


def _laid_out(root: Path) -> tuple[DataConfig, Listing]:
    reasons = []
    for config in _candidates(root):
        try:
            return config, list_items(config)
        except VidpipeError as error:
            reasons.append(f"{config.layout}: {error}")
    if not any(True for _ in walk(root)):
        raise VidpipeError(f"--data {root}: no videos found")
    tops = {path.partition("/")[0].lower() for path in walk(root) if "/" in path}
    if tops and tops <= SPLITS.keys():
        raise VidpipeError(
            f"--data {root}: its folders are splits ({', '.join(sorted(tops))}), not classes; put a "
            "table there, index.csv with the columns path, label and split"
        )
    raise VidpipeError(f"--data {root}: no layout fits; {reasons[0]}")


def _candidates(root: Path) -> Iterator[DataConfig]:
    for layout, pattern in NAMED.items():
        for depth in ("", "*/"):
            if any(root.glob(depth + pattern.removeprefix("**/"))):
                yield _config(root, layout=layout)
                break
    for file in sorted([*root.glob("*.csv"), *root.glob("*.parquet")]):
        if (columns := _columns(file)) is not None:
            yield _config(root, layout="table", annotations=file.name, columns=columns)
    yield _config(root, layout="folders")


def _config(root: Path, **more: Any) -> DataConfig:
    return DataConfig.model_validate({"root": str(root), **more})


def _columns(file: Path) -> dict[str, str] | None:
    """Which columns of a table name the video and its class."""
    from vidpipe.data.layouts.tables import read_table

    try:
        have = [str(name) for name in read_table(file).columns]
    except VidpipeError:
        return None
    path = next((name for name in have if name.lower() in PATHS), None)
    label = next((name for name in have if name.lower() in LABELS), None)
    if path is None or label is None:
        return None
    split = next((name for name in have if name.lower() == "split"), "split")
    return {"path": path, "label": label, "split": split}


def _grouped(config: DataConfig, listing: Listing) -> tuple[DataConfig, Listing]:
    """By what stands before the first underscore of a name, where it recurs in several classes as a
    person's or a source's name does."""
    labels: dict[str, set[str]] = defaultdict(set)
    for item in listing.items:
        prefix, underscore, _ = item.path.rpartition("/")[2].partition("_")
        if not underscore or "/" not in item.path or item.path.count("/") > 1:
            return config, listing
        labels[prefix].add(item.label)
    several = sum(len(found) > 1 for found in labels.values())
    if not 3 <= len(labels) <= len(listing.items) / 2 or several < 0.8 * len(labels):
        return config, listing
    own = config.model_copy(update={"group": BY_PREFIX})
    try:
        return own, list_items(own)
    except VidpipeError:  # too few groups for a split of each class
        return config, listing


def _spread(paths: list[str]) -> list[str]:
    count = min(MOST_PROBED, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _seen(file: Path) -> tuple[float, float, tuple[int, int]]:
    """Seconds, rate, and (height, width). Raises QuarantineError."""
    config = ExtractConfig(short_side=64)
    if not file.is_file():
        raise QuarantineError("missing_file", "no such file")
    check_size(file, config)
    found = probe(file, config)
    with container_of(file) as container:
        stream = video_stream(container)
        size = (int(stream.height), int(stream.width))
    return found.packets / float(found.fps), float(found.fps), size
