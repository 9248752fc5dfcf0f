"""The view of a plain ViT that methods work on: which models have one, and how tokens become a feature.

The feature is that of timm's `forward_head(forward_features(x), pre_logits=True)`, to the order of its
norm and its mean: a class token (`x[:, 0]`), the mean of class and distillation token, a mean of patches
before or after the final norm, attention pooling. A model for which that cannot be promised has a
`refusal`.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from timm.layers import Attention
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidpipe.backbones.mlp import MLPS, input_layers, output_layer

FORWARD = ("forward_features", "forward_head", "pool", "_pos_embed")
"""What a subclass of timm's ViT must not replace: methods run these pieces one by one."""


class ViTView:
    """Pooling of a timm ViT that `refusal` finds nothing against.

    Final norms act on tokens or on the pooled feature. Where a method's mean over T comes before the
    norm (ST-Adapter), it comes between `reduce` and `finish`; `pool` is both.

    Args:
        vit: in eval mode when it is used. It is looked at anew in each call.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        self.vit = vit

    @property
    def reads(self) -> Literal["prefix", "all"]:
        """The tokens behind the last block that the feature is made of: class token and what comes with
        it before the patches, or all."""
        token = self.vit.attn_pool is None and self.vit.global_pool == "token"
        return "prefix" if token else "all"

    @property
    def norm(self) -> nn.Module:
        """The final norm, whichever pooling uses: of tokens, or of the pooled feature (`fc_norm`). The
        methods that train the final norm train this one. Identity where the model ends without."""
        return self.vit.fc_norm if isinstance(self.vit.norm, nn.Identity) else self.vit.norm

    def reduce(self, x: Tensor) -> Tensor:
        """(B*T, N, D) behind the last block -> (B*T, D): everything but a norm of one vector a frame."""
        if isinstance(self.vit, VisionTransformerDistilled):
            return self.vit.forward_head(self.vit.norm(x), pre_logits=True)
        if self.reads == "prefix":
            return x[:, 0]  # the norm of tokens, of this one, follows in `finish`
        return self.vit.pool(self.vit.norm(x))

    def finish(self, feature: Tensor) -> Tensor:
        """The final norm of (..., D), where it is one of a single vector."""
        if isinstance(self.vit, VisionTransformerDistilled):
            return feature
        if self.reads == "prefix":
            feature = self.vit.norm(feature)
        return cast(Tensor, self.vit.fc_norm(feature))

    def pool(self, x: Tensor) -> Tensor:
        """(B*T, N, D) behind the last block -> (B*T, D), the zoo's own feature."""
        return self.finish(self.reduce(x))


def refusal(model: nn.Module) -> str | None:
    """Why methods cannot promise the features of `model`, a phrase after its name; None: they can."""
    if not isinstance(model, VisionTransformer):
        return f"is a {type(model).__name__}, not a plain ViT or Swin"
    distilled = isinstance(model, VisionTransformerDistilled)
    known = VisionTransformerDistilled if distilled else VisionTransformer
    for name in FORWARD:
        if getattr(type(model), name) is not getattr(known, name):
            return f"is a {type(model).__name__} with a {name} of its own, not a plain ViT"
    if not model.global_pool and model.attn_pool is None:
        return "has no pooling (global_pool is empty), so it has no feature"
    reasons = (_block_refusal(block, model.embed_dim) for block in model.blocks)
    return next((reason for reason in reasons if reason), None)


def _block_refusal(block: nn.Module, width: int) -> str | None:
    if type(block) is not Block:
        return f"has {type(block).__name__} blocks, which no method can adapt yet"
    attn, mlp = cast(Any, block.attn), cast(Any, block.mlp)
    if type(attn) is not Attention:
        return f"has {type(attn).__name__}, which no method can adapt yet"
    if getattr(attn, "gate", None) is not None:
        return "has gated attention, which no method can adapt yet"
    if attn.attn_dim != width:
        return f"has heads of {attn.attn_dim} channels in all, not of its width {width}"
    if type(mlp) not in MLPS:
        return f"has {type(mlp).__name__} as MLP, which no method can adapt yet"
    if not all(type(layer) is nn.Linear for layer in (*input_layers(mlp), output_layer(mlp))):
        return "has layers in its MLP that are not linear"
    return None
