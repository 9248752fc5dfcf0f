"""`backbone` in params.yaml. Apart from the loader, so that reading params needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class BackboneConfig(BaseModel):
    """`backbone` in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["timm", "open_clip"] = "timm"
    name: str = Field(description="model name in that zoo, such as vit_small_patch14_dinov2")
    weights: str = Field(
        description="a local .safetensors, .pt or .pth file; `hub` or `hub:<tag>` downloads"
    )

    @property
    def hub_tag(self) -> str | None:
        """None for a local file, "" for the hub's default weights, else the tag to download."""
        if self.weights != "hub" and not self.weights.startswith("hub:"):
            return None
        return self.weights.removeprefix("hub").removeprefix(":")
