"""`backbone` in params.yaml. Apart from the loader, so that reading params needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vidpipe.config.section import AbsentAtDefault, Place, Section

Pool = Literal["zoo", "token", "avg"]
RANDOM = "random"
GIVEN = "a module in memory"
"""What stands for `weights` where they come from no file and no hub; only `create_model` makes such."""


class BackboneConfig(Section):
    """`backbone` in params.yaml."""

    source: Literal["timm", "open_clip"] = "timm"
    name: str = Field(description="model name in that zoo, such as vit_small_patch14_dinov2")
    weights: Annotated[str, Place()] = Field(
        description="a local .safetensors, .pt or .pth file; `hub` or `hub:<tag>` downloads"
    )
    pool: Annotated[Pool, AbsentAtDefault()] = Field(
        "zoo",
        description="the feature of a frame: as the zoo makes it, the class `token`, or the mean of "
        "patches (`avg`)",
    )

    @classmethod
    def of(cls, name: str, weights: str, pool: Pool = "zoo") -> BackboneConfig:
        """Of a name as the Python functions take it: `open_clip:ViT-B-16`, or timm's without prefix."""
        source, colon, rest = name.partition(":")
        if colon and source in ("timm", "open_clip"):
            return cls(source=source, name=rest, weights=weights, pool=pool)
        return cls(name=name, weights=weights, pool=pool)

    @property
    def hub_tag(self) -> str | None:
        """None for a local file, "" for the hub's default weights, else the tag to download."""
        if self.weights != "hub" and not self.weights.startswith("hub:"):
            return None
        return self.weights.removeprefix("hub").removeprefix(":")
