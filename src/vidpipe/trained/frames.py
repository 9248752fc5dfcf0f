"""Frames in memory as the segment that a file of them would give."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.data.config import SamplingConfig
from vidpipe.data.sampling import test_indices
from vidpipe.errors import VidpipeError
from vidpipe.inference.segments import Segment

Frames: TypeAlias = Tensor | NDArray[np.uint8]
"""(N, 3, H, W) uint8 RGB."""


def of_frames(video: Frames, sampling: SamplingConfig, temporal_clips: int) -> Segment:
    """The frames that a model reads of a video, each once, and where each of its clips finds them.

    As many frames as `sampling.num_frames` are the clip itself; of others the clips are sampled as
    of a file's. Raises VidpipeError for another shape or type.
    """
    frames = torch.as_tensor(video)
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        kind = str(frames.dtype).removeprefix("torch.")
        raise VidpipeError(
            f"frames: {kind} of shape {tuple(frames.shape)}; expected uint8 RGB (N, 3, H, W)"
        )
    count = len(frames)
    if count == sampling.num_frames:
        indices = np.arange(count)[None]
    else:
        indices = test_indices(count, sampling, temporal_clips)
    unique, where = np.unique(indices, return_inverse=True)
    kept = frames.cpu()[torch.from_numpy(unique)].permute(0, 2, 3, 1).numpy()
    return Segment(0.0, 0.0, kept, (where.reshape(indices.shape),))
