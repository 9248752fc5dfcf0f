"""`extract` in params.yaml. No torch, no PyAV: read by the CLI."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vidpipe.config.section import Section


class ExtractConfig(Section):
    short_side: int = Field(ge=16, le=4096, description="pixels; longer side keeps the aspect")
    fps: float | None = Field(None, gt=0, le=240, description="of the store; null: the source's")
    tier: Literal["compact", "fast"] = Field(
        "compact", description="compact: short-GOP H.264; fast: JPEG, several times the bytes"
    )
    gop: int = Field(8, ge=1, description="compact: frames between key frames")
    crf: int = Field(20, ge=0, le=51, description="compact: H.264 quality; lower is better")
    jpeg_quality: int = Field(90, ge=1, le=100, description="fast: quality of each frame")
    num_workers: int = Field(2, ge=1, description="decoding processes, one thread each")
    ray_address: str | None = Field(
        None,
        description="null: processes of this machine, unless RAY_ADDRESS is set; "
        "auto, local or host:port: Ray, num_workers in all",
    )
    min_frames: int = Field(2, ge=1, description="shorter videos are quarantined (too_short)")
    max_frames: int = Field(100_000, ge=1, description="of the store; longer ones (too_large)")
    max_pixels: int = Field(
        8192 * 4320, ge=1, description="of one frame, of the source or of the store (too_large)"
    )
    max_mb: float = Field(4096, gt=0, description="of one source file (too_large)")
    timeout_s: float = Field(300, gt=0, description="per video")
    max_bad_fraction: float = Field(0.1, ge=0, le=1, description="more quarantined fails the stage")
    shard_mb: float = Field(256, gt=0)
