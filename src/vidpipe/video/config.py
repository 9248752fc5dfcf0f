"""`extract` and `synth` in params.yaml. No torch, no PyAV: read by the CLI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vidpipe.config.section import AbsentAtDefault, NotDecisive, Section, Seed


class ExtractConfig(Section):
    short_side: int = Field(ge=16, le=4096, description="pixels; longer side keeps the aspect")
    fps: float | None = Field(None, gt=0, le=240, description="of the store; null: the source's")
    tier: Literal["compact", "fast"] = Field(
        "compact", description="compact: short-GOP H.264; fast: JPEG, several times the bytes"
    )
    gop: int = Field(8, ge=1, le=1000, description="compact: frames between key frames")
    crf: int = Field(20, ge=0, le=51, description="compact: H.264 quality; lower is better")
    jpeg_quality: int = Field(90, ge=1, le=100, description="fast: quality of each frame")
    num_workers: Annotated[int, NotDecisive()] = Field(
        2, ge=1, le=1024, description="decoding processes, one thread each"
    )
    ray_address: Annotated[str | None, NotDecisive()] = Field(
        None,
        description="null: processes of this machine, unless RAY_ADDRESS is set; "
        "auto, local or host:port: Ray, num_workers in all",
    )
    min_frames: int = Field(2, ge=1, description="shorter videos are quarantined (too_short)")
    max_frames: int = Field(
        100_000, ge=1, le=10_000_000, description="of the store; longer ones (too_large)"
    )
    max_pixels: int = Field(
        8192 * 4320,
        ge=1,
        le=2**31,
        description="of one frame, of the source or of the store (too_large)",
    )
    max_mb: float = Field(4096, gt=0, le=1e9, description="of one source file (too_large)")
    timeout_s: Annotated[float, NotDecisive()] = Field(
        300,
        gt=0,
        description="per video; with a longer one, unfinished work retries what timed out",
    )
    max_bad_fraction: Annotated[float, NotDecisive()] = Field(
        0.1, ge=0, le=1, description="more quarantined fails the stage"
    )
    shard_mb: float = Field(256, ge=0.001)


Pair = Literal["horizontal", "vertical", "scale", "rotation"]
# pair -> (class that is rendered, class that is the same frames in reverse order)
CLASS_PAIRS: dict[str, tuple[str, str]] = {
    "horizontal": ("move_left", "move_right"),
    "vertical": ("move_up", "move_down"),
    "scale": ("grow", "shrink"),
    "rotation": ("turn_clockwise", "turn_counterclockwise"),
}


Seconds = Annotated[float, Field(gt=0, le=600)]
SidePixels = Annotated[int, Field(ge=16, le=4096)]


class SynthConfig(Section):
    """Everything that decides the pixels of the rendered data set."""

    scene: Annotated[Literal["one", "two", "turns"], AbsentAtDefault()] = Field(
        "one",
        description="one: a moving shape a clip; two: two side by side, each of which moves or not "
        "(several labels); turns: motions one after the other (segments)",
    )
    pairs: tuple[Pair, ...] = Field(("horizontal", "vertical", "scale", "rotation"), min_length=1)
    clips_per_class: int = Field(52, ge=2, le=100_000)
    val_fraction: float = Field(0.25, gt=0, lt=1)
    duration_s: tuple[Seconds, Seconds] = (1.0, 2.5)
    fps: int = Field(16, ge=2, le=120)
    size_px: tuple[SidePixels, SidePixels] = (64, 112)
    """Range of the frame's width and of its height, drawn per clip, always even."""
    noise: float = Field(3.0, ge=0, le=64)
    """Upper end of the per-clip standard deviation of the sensor noise, in 8-bit grey levels."""
    crf: int = Field(14, ge=0, le=51)
    """x264 quality. Low enough that nothing of the coding order shows in single frames."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> SynthConfig:
        if len(set(self.pairs)) != len(self.pairs):
            raise ValueError("pairs: each pair may be named once")
        low, high = self.duration_s
        if not 0 < low <= high or round(low * self.fps) < 2:
            raise ValueError("duration_s: needs 0 < low <= high, and two frames at least")
        if not 16 <= self.size_px[0] <= self.size_px[1] or any(s % 2 for s in self.size_px):
            raise ValueError("size_px: needs even numbers, 16 <= low <= high")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name for pair in self.pairs for name in CLASS_PAIRS[pair])

    @property
    def val_per_class(self) -> int:
        n = round(self.clips_per_class * self.val_fraction)
        return min(max(n, 1), self.clips_per_class - 1)
