"""One decoded frame, whatever its format, as an upright 8-bit RGB picture of the canonical size."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any, cast

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
PQ, HLG, BT2020 = 16, 18, 9  # ITU-T H.273: transfer characteristics and primaries


def canonical_size(
    width: int, height: int, short_side: int, pixel_aspect: float | None = None
) -> tuple[int, int]:
    """Width and height with the short side given and both even (H.264 4:2:0 needs even sides).

    `pixel_aspect`: width / height of a source pixel; None or out of reason (some muxers write 0:1): 1.
    """
    if pixel_aspect and 0.1 < pixel_aspect < 10:
        width = max(1, round(width * pixel_aspect))
    scale = short_side / min(width, height)
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))  # type: ignore[return-value]


class Canonical:
    """Frames of one video -> (H, W, 3) uint8 RGB, all of one size, which the first one decides.

    Pixels are made square, rotation is applied, transparency is laid over black, high dynamic range
    (PQ, HLG) and wide gamut (BT.2020) are mapped to BT.709 by FFmpeg's scaler, more bits and finer
    chroma are rounded to 8-bit RGB.
    """

    def __init__(self, short_side: int, pixel_aspect: float | None) -> None:
        self.short_side, self.pixel_aspect = short_side, pixel_aspect
        self.size: tuple[int, int] | None = None
        self.scaler = (
            VideoReformatter()
        )  # one for all frames: to set it up takes longer than to scale

    def __call__(self, frame: Any) -> Frame:
        if self.size is None:
            source = frame.width, frame.height
            self.size = canonical_size(*source, self.short_side, self.pixel_aspect)
        if frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020:
            rgb = self._tone_mapped(frame)
        elif any(part.is_alpha for part in frame.format.components):
            rgba = self._scaled(frame, "rgba")
            alpha = rgba[..., 3:].astype(np.uint16)
            rgb = ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)
        else:
            rgb = self._scaled(frame, "rgb24")
        quarter_turns = round(frame.rotation / 90) % 4  # FFmpeg's sign: counter-clockwise
        return np.ascontiguousarray(np.rot90(rgb, quarter_turns))

    def _scaled(self, frame: Any, pixels: str) -> Frame:
        assert self.size is not None
        width, height = self.size
        scaled = self.scaler.reformat(
            frame, width=width, height=height, format=pixels, interpolation="AREA", threads=1
        )
        return cast(Frame, scaled.to_ndarray())

    def _tone_mapped(self, frame: Any) -> Frame:
        assert self.size is not None
        form = (frame.width, frame.height, frame.format.name)
        _, source, sink = _tone_mapper(*form, frame.color_trc, frame.color_primaries, *self.size)
        source.push(frame)
        rgb: Frame = sink.pull().to_ndarray(format="rgb24")
        return rgb


@functools.lru_cache(maxsize=4)
def _tone_mapper(
    width: int,
    height: int,
    pixels: str,
    _curve: int,
    _primaries: int,
    to_width: int,
    to_height: int,
) -> tuple[Any, Any, Any]:
    """A graph (which must outlive its ends), its source and its sink.

    FFmpeg's scale filter: only that knows transfer curves and primaries. Kept from video to video,
    because for each kind of picture it works out a table, which takes seconds.
    """
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat(pixels), time_base=Fraction(1, 1000)
    )
    scale = graph.add(
        "scale",
        f"w={to_width}:h={to_height}:flags=area:out_primaries=bt709:out_transfer=bt709"
        ":intent=perceptual",
    )
    form, sink = graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")
    for left, right in ((source, scale), (scale, form), (form, sink)):
        left.link_to(right)
    graph.configure()
    return graph, source, sink
