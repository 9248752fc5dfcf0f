"""What of a clip is left when it is mirrored, trimmed, scaled and encoded anew: hashes of its motion.

A perceptual hash (pHash) is the signs of the low frequencies of a picture's DCT, against their median.
Of frames themselves it says where a clip was filmed, and all clips of one camera would be alike. So what
is hashed is the difference of two frames a moment apart, in which what stands still cancels out, at the
moments in which the clip moves most: these are the same in a copy, wherever that begins. Of a clip
without motion, three frames are hashed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.signal import find_peaks

SIDE = 32
"""Pixels of the small grey pictures that all is made of."""
BITS = 63
"""Of a hash: 8 x 8 frequencies without the mean."""
STILL = 1.0
"""Grey levels that frames a moment apart differ by on average, below which a clip stands still."""
MOMENTS_S = (0.08, 0.24)
"""Seconds between a moment and the two frames around it whose difference is hashed."""
MOST_MOMENTS = 64
"""Of each length."""
CHUNK = 64
"""Frames made small at once."""


@dataclass(frozen=True)
class Fingerprint:
    """`hashes` (2, N) uint64: as it is, and mirrored; `times` (N,), seconds from the first frame."""

    hashes: NDArray[np.uint64]
    times: NDArray[np.float64]


def small_frames(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W, 3) RGB to (T, SIDE, SIDE) luma, each pixel the mean of its area."""
    small = []
    for start in range(0, len(frames), CHUNK):
        rgb = torch.from_numpy(frames[start : start + CHUNK]).float()
        luma = rgb @ torch.tensor([0.2126, 0.7152, 0.0722])
        small.append(torch.nn.functional.adaptive_avg_pool2d(luma, SIDE).round().to(torch.uint8))
    return torch.cat(small).numpy()


def fingerprint(small: NDArray[np.uint8], fps: float) -> Fingerprint:
    """Of `small_frames`. `fps`: frames a second; 0 where it is not known."""
    rate = fps if fps > 0 else 25.0
    grey = small.astype(np.float32)
    pictures, at = [], []
    for moment in MOMENTS_S:
        step = max(1, round(moment * rate))
        change = grey[2 * step :] - grey[: -2 * step]
        energy = np.abs(change).mean((1, 2))
        if len(change) and energy.max() >= STILL:
            peaks, _ = find_peaks(np.pad(energy, 1))  # zeros around: the ends may be peaks, too
            strongest = np.sort(
                peaks[np.argsort(-energy[peaks - 1], kind="stable")[:MOST_MOMENTS]] - 1
            )
            pictures.append(change[strongest])
            at.append(strongest + step)
    if not at:
        at = [np.unique(np.linspace(0, len(grey) - 1, 5).round().astype(np.int64)[1:-1])]
        pictures = [grey[at[0]]]
    low = dctn(np.concatenate(pictures), axes=(1, 2), norm="ortho")[:, :8, :8]
    mirrored = low * np.where(np.arange(8) % 2, -1, 1)
    return Fingerprint(np.stack([_bits(low), _bits(mirrored)]), np.concatenate(at) / rate)


def _bits(frequencies: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N, 8, 8) to (N,)."""
    flat = frequencies.reshape(len(frequencies), -1)[:, 1:]
    signs = flat > np.median(flat, axis=1, keepdims=True)
    return (signs.astype(np.uint64) << np.arange(BITS, dtype=np.uint64)).sum(1, dtype=np.uint64)
