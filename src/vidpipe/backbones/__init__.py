"""Frozen image transformers behind one interface: whatever the zoo, a timm `VisionTransformer`."""

from vidpipe.backbones.zoo import Backbone, BackboneConfig, load_backbone

__all__ = ["Backbone", "BackboneConfig", "load_backbone"]
