"""`backbone` in params.yaml. Apart from the loader, so that reading params needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RANDOM = "random"
GIVEN = "a module in memory"
"""What stands for `weights` where they come from no file and no hub; only `create_model` makes such."""


class BackboneConfig(BaseModel):
    """`backbone` in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["timm", "open_clip"] = "timm"
    name: str = Field(description="model name in that zoo, such as vit_small_patch14_dinov2")
    weights: str = Field(
        description="a local .safetensors, .pt or .pth file; `hub` or `hub:<tag>` downloads"
    )

    @classmethod
    def of(cls, name: str, weights: str) -> BackboneConfig:
        """Of a name as the Python functions take it: `open_clip:ViT-B-16`, or timm's without prefix."""
        source, colon, rest = name.partition(":")
        if colon and source in ("timm", "open_clip"):
            return cls(source=source, name=rest, weights=weights)
        return cls(name=name, weights=weights)

    @property
    def hub_tag(self) -> str | None:
        """None for a local file, "" for the hub's default weights, else the tag to download."""
        if self.weights != "hub" and not self.weights.startswith("hub:"):
            return None
        return self.weights.removeprefix("hub").removeprefix(":")
