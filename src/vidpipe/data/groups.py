"""The group of each clip: `data.group` of params.yaml, read from a table or made of the path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidpipe.data.boxes import PROPOSAL, read_box_rows
from vidpipe.data.config import DataConfig
from vidpipe.data.folds import GroupedClips
from vidpipe.data.group_pattern import group_in, is_pattern
from vidpipe.data.labels import join_labels
from vidpipe.errors import VidpipeError
from vidpipe.video.store import read_manifest


def path_groups(paths: Sequence[str], pattern: str) -> list[str]:
    """The group of each path. Raises VidpipeError where the pattern finds none in one of them."""
    groups = [group_in(path, pattern) for path in paths]
    if "" in groups:
        first = paths[groups.index("")]
        raise VidpipeError(
            f"data.group: {pattern} finds no group in {first[:200]!r} and {groups.count('') - 1} "
            f"more of {len(paths)} paths; the pattern covers the whole path below data.root, and the "
            "{braces} in it mark the group, such as */{*}_*"
        )
    return groups


def store_clips(store: Path | str, config: DataConfig) -> GroupedClips:
    """The usable clips of a frame store, of both splits, by group.

    A pattern is matched anew, so that it may be another than at extraction. Without `data.group`, groups
    are those of the extraction, or each video is its own.

    Raises VidpipeError where the store is missing, a pattern does not fit, or a column is asked for
    that the extraction did not know of.
    """
    manifest = read_manifest(store)
    rows = manifest.rows
    rows = rows[rows.status == "ok"]
    paths = rows.path.tolist()
    if config.group is not None and is_pattern(config.group):
        groups = path_groups(paths, config.group)
    elif manifest.group is not None and config.group in (None, manifest.group):
        groups = rows.group.tolist()
    elif config.group is None:
        groups = paths
    else:
        raise VidpipeError(
            f"data.group: {config.group}: {store} was extracted with {manifest.group or 'none'}, and "
            "columns of the table are read then; run `vidpipe extract` again, or give a pattern on the "
            "path, such as */{*}_*"
        )
    labels = rows.label.tolist()
    if manifest.task == "detection":
        boxes = read_box_rows(store)
        classes, own = manifest.classes, boxes.take(boxes.action != PROPOSAL)
        found: dict[str, set[str]] = {}
        for video, action in zip(own.video.tolist(), own.action.tolist(), strict=True):
            found.setdefault(boxes.videos[video], set()).add(classes[action])
        labels = [join_labels(sorted(found.get(id_, ()))) for id_ in rows.id]
    return GroupedClips.of(rows.id, groups, labels, manifest.task != "single_label")
