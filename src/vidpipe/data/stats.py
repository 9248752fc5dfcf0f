"""What a store holds, in numbers: read from its manifest, not from its videos."""

from __future__ import annotations

from typing import Any

import pandas as pd

from vidpipe.data.labels import label_sets
from vidpipe.video.store import Manifest

SPLITS = ("train", "val")


def usable(rows: pd.DataFrame) -> pd.DataFrame:
    """The `ok` rows, with `duration` in seconds."""
    ok = rows[rows.status == "ok"]
    return ok.assign(duration=ok.frames / ok.fps.where(ok.fps > 0))


def class_counts(manifest: Manifest) -> pd.DataFrame:
    """Usable clips: a row a class in the manifest's order (classes without clips too), columns
    train and val. A clip of several classes counts for each."""
    ok = usable(manifest.rows)
    sets = label_sets(ok.label.tolist(), manifest.task == "multilabel")
    each = ok.assign(label=pd.Series(sets, ok.index, dtype=object)).explode("label")
    counts = pd.crosstab(each.label, each.split)
    return counts.reindex(index=list(manifest.classes), columns=list(SPLITS), fill_value=0)


def summarise(manifest: Manifest) -> dict[str, Any]:
    """Plain numbers for JSON. Durations in seconds, sizes in pixels of the store, bytes.

    `balance` is of the training clips; its `ratio` (most to least) is null where a class has none.
    """
    ok, counts = usable(manifest.rows), class_counts(manifest)
    bad = manifest.rows[manifest.rows.status != "ok"]
    files = ok.drop_duplicates("path")  # spans of one file are in the store once
    source, store = int(files.source_bytes.sum()), int(files.nbytes.sum())
    most, least = str(counts.train.idxmax()), str(counts.train.idxmin())
    low, high = int(counts.train.min()), int(counts.train.max())
    return {
        "tier": manifest.tier,
        "clips": {split: int((ok.split == split).sum()) for split in SPLITS},
        "classes": len(manifest.classes),
        "per_class": counts.to_dict("index"),
        "balance": {
            "most": {"class": most, "clips": high},
            "least": {"class": least, "clips": low},
            "ratio": high / low if low else None,
            "without_training_clips": counts.index[counts.train == 0].tolist(),
        },
        "duration_s": {**_range(ok.duration), "total": float(ok.duration.sum())},
        "frames": _range(ok.frames),
        "fps": _range(ok.fps),
        "width": _range(ok.width),
        "height": _range(ok.height),
        "source_bytes": source,
        "store_bytes": store,
        "store_to_source": store / source if source else None,
        "quarantined": {str(k): int(n) for k, n in bad.reason.value_counts().items()},
    }


def _range(values: pd.Series[Any]) -> dict[str, float | None]:
    known = values.dropna()
    if known.empty:
        return {"min": None, "median": None, "max": None}
    return {name: float(getattr(known, name)()) for name in ("min", "median", "max")}
