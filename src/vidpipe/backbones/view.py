"""The view of an image model that methods work on: how frames become tokens, and tokens a feature.

`ImageView` is timm's plain ViT; a family with another class overrides what differs, and `families`
says which view a model has. The feature is timm's `forward_head(forward_features(x),
pre_logits=True)`, to the order of its norm and its mean: a class token (`x[:, 0]`), the mean of class
and distillation token, a mean of patches before or after the final norm, attention pooling.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView, Kinds, block_refusal

FORWARD = ("forward_features", "forward_head", "pool", "_pos_embed")
"""What a subclass of timm's model must not replace: methods run these pieces one by one."""


class ImageView:
    """A plain ViT of timm that `refusal` finds nothing against.

    Final norms act on tokens or on the pooled feature. Where a method's mean over T comes before the
    norm (ST-Adapter), it comes between `reduce` and `finish`; `pool` is both.

    Args:
        vit: in eval mode when it is used. It is looked at anew in each call.
    """

    kept: Tensor | None = None
    """(B*T, n) patches that the tokens of now are of, for blocks that know places; None: all."""

    def __init__(self, vit: nn.Module) -> None:
        self.vit = cast(Any, vit)
        self.blocks = self._blocks()

    def _blocks(self) -> list[BlockView]:
        return [BlockView(block) for block in self.vit.blocks]

    # -- frames to tokens -----------------------------------------------------------------------

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_class_token(self) -> bool:
        return self.vit.cls_token is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, always the last tokens."""
        return cast(tuple[int, int], self.vit.patch_embed.grid_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch, pixels."""
        return cast(tuple[int, int], self.vit.patch_embed.patch_size)

    @property
    def whole_grid(self) -> str | None:
        """Why the blocks need the tokens of all patches; None: they do with some of them."""
        return None

    def embed(self, frames: Tensor) -> Tensor:
        """(B*T, 3, H, W) frames to tokens (B*T, N, D), with their positions, before `norm_pre`."""
        return cast(Tensor, self.vit._pos_embed(self.vit.patch_embed(frames)))

    def norm_pre(self, x: Tensor) -> Tensor:
        """The norm before the first block, where the model has one (CLIP's `ln_pre`)."""
        return cast(Tensor, self.vit.norm_pre(x))

    # -- tokens to a feature --------------------------------------------------------------------

    @property
    def reads(self) -> Literal["prefix", "all"]:
        """The tokens behind the last block that the feature is made of: class token and what comes with
        it before the patches, or all."""
        token = self.attn_pool is None and self.vit.global_pool == "token"
        return "prefix" if token else "all"

    @property
    def attn_pool(self) -> nn.Module | None:
        return getattr(self.vit, "attn_pool", None)

    @property
    def norm(self) -> nn.Module:
        """The final norm, whichever pooling uses: of tokens, or of the pooled feature (`fc_norm`). The
        methods that train the final norm train this one. Identity where the model ends without."""
        own = self.vit.fc_norm if isinstance(self.vit.norm, nn.Identity) else self.vit.norm
        return cast(nn.Module, own)

    def reduce(self, x: Tensor) -> Tensor:
        """(B*T, N, D) behind the last block -> (B*T, D): everything but a norm of one vector a frame."""
        if isinstance(self.vit, VisionTransformerDistilled):
            return self.vit.forward_head(self.vit.norm(x), pre_logits=True)
        if self.reads == "prefix":
            return x[:, 0]  # the norm of tokens, of this one, follows in `finish`
        return self._mean(self.vit.norm(x))

    def _mean(self, x: Tensor) -> Tensor:
        """The zoo's pooling of tokens, where it is no single one: their mean, maximum, or attention."""
        return cast(Tensor, self.vit.pool(x))

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


def vit_refusal(model: VisionTransformer) -> str | None:
    """Why methods cannot promise the features of a `VisionTransformer`; None: they can."""
    distilled = isinstance(model, VisionTransformerDistilled)
    known = VisionTransformerDistilled if distilled else VisionTransformer
    return replaced(model, known) or unpooled(model) or blocks_refusal(model)


def replaced(model: nn.Module, known: type[nn.Module]) -> str | None:
    """Why a subclass is refused; None: it runs as the class that is `known` does."""
    for name in FORWARD:
        if getattr(type(model), name, None) is not getattr(known, name, None):
            return f"is a {type(model).__name__} with a {name} of its own, not a plain ViT"
    return None


def unpooled(model: nn.Module) -> str | None:
    """Why a model without pooling is refused; None: it has one."""
    if not cast(Any, model).global_pool and getattr(model, "attn_pool", None) is None:
        return "has no pooling (global_pool is empty), so it has no feature"
    return None


def blocks_refusal(model: nn.Module, *known: Kinds) -> str | None:
    """Why methods cannot adapt a model's blocks; None: they can. `known` as in `block_refusal`."""
    own = cast(Any, model)
    reasons = (block_refusal(block, own.embed_dim, *known) for block in own.blocks)
    return next((reason for reason in reasons if reason), None)
