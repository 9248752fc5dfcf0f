"""`data`, `subset`, `sampling` and `transform` in params.yaml. No torch, no pandas: read by the CLI."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from vidpipe.config.section import AbsentAtDefault, NotDecisive, Place, Section, Seed, ascending
from vidpipe.data.group_pattern import compiled, is_pattern
from vidpipe.image_size import Size, sides, size_of, words

TaskName = Literal["single_label", "multilabel", "detection"]
"""What is asked of a clip: a key of `tasks.registry.TASKS`."""
Layout = Literal[
    "folders",
    "table",
    "kinetics",
    "ssv2",
    "diving48",
    "ucf101",
    "hmdb51",
    "charades",
    "ava",
    "segments",
    "activitynet",
]


class ColumnsConfig(Section):
    """Names of the columns of a table (layout `table`)."""

    path: str = "path"
    label: str = "label"
    split: str = "split"


class DetectionConfig(Section):
    """Boxes of task `detection`."""

    proposals: str | None = Field(
        None,
        description="inside root: CSV or Parquet of a detector's boxes in validation videos; null: "
        "val_proposals.csv, or ground-truth boxes where there is none",
    )
    min_score: float = Field(0.8, ge=0, le=1, description="of a proposal that is looked at")
    enlarge: float = Field(0.0, ge=0, le=1, description="share of its sides by which one grows")
    start_s: float = Field(
        0.0,
        ge=0,
        description="of the annotations' clock where files begin: 900 for AVA's cut videos",
    )


class DataConfig(Section):
    root: Annotated[str, Place()] = Field(
        description="folder of videos; every path in annotations is relative to it"
    )
    task: Annotated[TaskName, AbsentAtDefault()] = Field(
        "single_label",
        description="single_label: one class a clip; multilabel: any number of classes, or none; "
        "detection: any number for each person's box, of layout ava",
    )
    layout: Layout | None = Field(
        None, description="null: `table` where annotations is given, else one folder a class"
    )
    annotations: str | None = Field(
        None,
        description="inside root. table: a CSV or Parquet file, one row a video; "
        "the named data sets: the folder of their annotation files (default: root itself)",
    )
    columns: ColumnsConfig = ColumnsConfig()
    detection: Annotated[DetectionConfig, AbsentAtDefault()] = DetectionConfig()
    separator: Annotated[str | None, AbsentAtDefault()] = Field(
        "|",
        min_length=1,
        description="of layout table with task multilabel: what stands between the labels of a video; "
        "null: a column a class, 0 or 1 (those of `classes`, or all that have no other meaning)",
    )
    background: Annotated[str | None, AbsentAtDefault()] = Field(
        None,
        min_length=1,
        description="of spans (layouts segments, activitynet): class of what lies between them, that "
        "is then trained on; with task multilabel any text, as that has no class; null: left out",
    )
    group: Annotated[str | None, AbsentAtDefault()] = Field(
        None,
        min_length=1,
        description="what stays on one side of a split, such as a person or a source video: a column of "
        "the table, or a pattern on the path whose {braces} mark the group, such as */{*}_*; null: each "
        "video by itself",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="null: the data set's own list, or the labels found, sorted"
    )
    keep: dict[str, dict[str, str]] = Field(
        {}, description="per split, column: value that a row must have, such as val: {mirrored: 0}"
    )
    store: Annotated[str | None, NotDecisive()] = Field(
        None, description="where training reads the frame store: a folder or fsspec URL; null: here"
    )
    reader: Annotated[Literal["pyav", "decord", "torchcodec"], NotDecisive()] = Field(
        "pyav",
        description="of compact stores; all give the same frames, benchmarks/loader.py times",
    )
    split_number: Literal[1, 2, 3] = Field(1, description="ucf101 and hmdb51 only")
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="of each class, where there is no split column"
    )
    max_missing_fraction: Annotated[float, NotDecisive()] = Field(
        0.1,
        ge=0,
        le=1,
        description="of the listed videos that may be absent from the disk; each has a manifest row",
    )
    seed: Seed = 0

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        most = Counter(classes).most_common(1) if classes else []
        if most and most[0][1] > 1:
            raise ValueError(f"{most[0][0]!r} is named twice")
        return classes

    @field_validator("group")
    @classmethod
    def _compiles(cls, group: str | None) -> str | None:
        if group is not None and is_pattern(group):
            compiled(group)
        return group

    @field_validator("keep", mode="before")
    @classmethod
    def _text(cls, keep: Any) -> Any:
        # YAML reads `mirrored: 0` as a number; a CSV column is text.
        if isinstance(keep, Mapping):
            return {
                split: {k: str(v) for k, v in rule.items()} if isinstance(rule, Mapping) else rule
                for split, rule in keep.items()
            }
        return keep


class SubsetConfig(Section):
    """Training clips to use (AIM Fig. 3, ST-Adapter Fig. 2c); validation is never reduced.

    Subsets are nested: the clips of a smaller one are among those of a larger one of equal seed.
    """

    fraction: float | None = Field(None, gt=0, le=1, description="of each class, at least one clip")
    per_class: int | None = Field(None, ge=1, description="shots")
    seed: Seed = 0

    @model_validator(mode="after")
    def _one(self) -> SubsetConfig:
        if self.fraction is not None and self.per_class is not None:
            raise ValueError("give fraction or per_class, not both")
        return self


class SamplingConfig(Section):
    strategy: Literal["uniform", "dense"] = Field(
        description="uniform: T equal segments; dense: T frames at a stride"
    )
    num_frames: int = Field(ge=1, le=256)
    stride: int = Field(8, ge=1, le=10_000, description="dense only")
    short_clips: Literal["loop", "repeat_last"] = Field(
        "loop",
        description="dense only: clips shorter than the span (AIM loops, ST-Adapter repeats)",
    )
    rule: Literal["vidpipe", "aim", "st_adapter", "zeroi2v"] = Field(
        "vidpipe",
        description="whose arithmetic: ours, or to the frame that of a paper's code",
    )
    train_frames: Annotated[Literal["random", "middle"], AbsentAtDefault()] = Field(
        "random",
        description="middle: a training clip has the frames of evaluation's single clip, the same in "
        "every epoch (`train.cache_features: exact`)",
    )


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=1 / 16, le=16)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Side = Annotated[int, Field(ge=14, le=2048)]
LONGEST_ASPECT = 4
"""Of an input: how many times the longer side may be the shorter."""
CropPct = Annotated[float, Field(ge=0.25, le=1)]
MixAlpha = Annotated[float, Field(ge=0, le=1000)]


class RandAugmentConfig(Section):
    """One draw for all frames of a clip, among torchvision's 14 operations (Cubuk et al. 2020).

    timm's `rand-m7-n4-mstd0.5` and pytorchvideo's default, which count magnitudes to 10, are
    `{num_ops: 4, magnitude: 21, probability: 0.5, magnitude_std: 1.5}`.
    """

    num_ops: int = Field(4, ge=1, le=16)
    magnitude: int = Field(7, ge=0, le=30, description="of 30")
    probability: float = Field(1.0, ge=0, le=1, description="of each operation to be applied")
    magnitude_std: float = Field(
        0.0, ge=0, le=30, description="standard deviation of each operation's magnitude"
    )


class ColorJitterConfig(Section):
    brightness: float = Field(0.0, ge=0, le=10)
    contrast: float = Field(0.0, ge=0, le=10)
    saturation: float = Field(0.0, ge=0, le=10)
    hue: float = Field(0.0, ge=0, le=0.5)


class TransformConfig(Section):
    size: Side | tuple[Side, Side] | None = Field(
        None,
        description="input of the backbone, pixels: one number for a square, [height, width], "
        "or null for what its weights' card says",
    )
    interpolation: Annotated[Literal["bilinear", "bicubic", "card"], AbsentAtDefault()] = Field(
        "bilinear",
        description="of every resizing (the papers: bilinear); card: as the weights' card",
    )
    crop_pct: Annotated[CropPct | Literal["card"], AbsentAtDefault()] = Field(
        1.0,
        description="share of the resized frame's height and width that a view covers, of the side "
        "that fits tighter, where nothing is drawn; the papers: 1.0; card: as the weights' card",
    )
    crop: Literal["random_resized", "short_side_jitter", "random", "center"] = Field(
        "random_resized", description="in training; evaluation crops along the long side"
    )
    scale: Annotated[tuple[Share, Share], AfterValidator(ascending)] = Field(
        (0.08, 1.0), description="area range of random_resized"
    )
    ratio: Annotated[tuple[Ratio, Ratio], AfterValidator(ascending)] = (0.75, 1.3333)
    short_side: tuple[Pixels, Pixels] | None = Field(
        None, description="short_side_jitter: pixels, such as [256, 320]; then a random crop"
    )
    flip: bool = Field(False, description="leave off where classes differ by direction")
    flip_pairs: tuple[tuple[str, str], ...] | Literal["ssv2"] = Field(
        (),
        description="with flip: classes that a mirror turns into each other; "
        "ssv2: 86-87, 93-94, 166-167",
    )
    rand_augment: RandAugmentConfig | None = None
    color_jitter: ColorJitterConfig | None = None
    erase_probability: float = Field(0.0, ge=0, le=1, description="RandomErasing, after the rest")
    mixup_alpha: MixAlpha = Field(0.0, description="Beta(a, a) weights pairs of clips; 0: off")
    cutmix_alpha: MixAlpha = Field(0.0, description="as mixup; with both, each half of the time")

    @field_validator("size", mode="wrap")
    @classmethod
    def _one_form(cls, value: Any, handler: Callable[[Any], Size | None]) -> Size | None:
        try:
            size = handler(value)
        except ValidationError:
            raise ValueError(
                f"{reprlib.repr(value)}, expected pixels from 14 to 2048: one number for a square, or "
                "[height, width]; null is the backbone's own size"
            ) from None
        if size is None:
            return None
        if max(sides(size)) > LONGEST_ASPECT * min(sides(size)):
            raise ValueError(
                f"{words(size)}, expected one side at most {LONGEST_ASPECT} times the other"
            )
        return size_of(*sides(size))

    @model_validator(mode="after")
    def _possible(self) -> TransformConfig:
        if self.crop == "short_side_jitter":
            low, high = self.short_side or (0, 0)
            least = 1 if self.size is None else min(sides(self.size))
            if not least <= low <= high:
                size = "null" if self.size is None else words(self.size)
                raise ValueError(
                    f"crop short_side_jitter needs short_side: [low, high] with "
                    f"size {size} <= low <= high"
                )
        return self

    @property
    def complete(self) -> bool:
        """Whether nothing is left to the card of the backbone's weights."""
        return self.size is not None and "card" not in (self.interpolation, self.crop_pct)
