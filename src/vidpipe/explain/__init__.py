"""Why a model says what it says: attention by spatial and temporal heads, and Grad-CAM."""

from __future__ import annotations

from vidpipe.explain.attention import AttentionMaps, attention_maps
from vidpipe.explain.clip import Explanation, View, explain_clip
from vidpipe.explain.grad_cam import grad_cam

__all__ = [
    "AttentionMaps",
    "Explanation",
    "View",
    "attention_maps",
    "explain_clip",
    "grad_cam",
]
