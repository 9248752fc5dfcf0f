"""ZeroI2V (Li et al., ECCV 2024): linear adapters that merge away, and attention heads moved in time.

x += S(attn(T_in(ln_1 x)));  x += M_out(mlp(M_in(ln_2 x)))       (section 3, equations 4-8)

Every adapter is `x + s * (W2 (W1 x + b1) + b2)`, without activation, so after training it folds into
its frozen neighbour. Spatial-temporal dual-headed attention (STDHA) takes the keys and values of
some heads from frame t + dt. LayerScale, which the paper's backbones lack, follows S and M_out.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from vidpipe.backbones.block import QKV as PROJECTIONS
from vidpipe.backbones.block import BlockView, Part
from vidpipe.methods.config import QKV, AdapterName, ZeroI2VConfig, channels
from vidpipe.methods.noise import ClipDropout
from vidpipe.methods.stdha import STDHA


class LinearAdapter(nn.Module):
    """`x + s * (W2 (dropout(W1 x + b1)) + b2)`. As in the released code, W1 starts at N(0, 0.02)
    whatever the width, and W2, b1 and b2 at zero."""

    def __init__(
        self, width: int, bottleneck: int, scale: float, dropout: float, activation: str = "none"
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, bottleneck)
        self.act = nn.GELU() if activation == "gelu" else nn.Identity()
        self.dropout = ClipDropout(dropout)
        self.fc2 = nn.Linear(bottleneck, width)
        self.scale = scale
        nn.init.trunc_normal_(self.fc1.weight, std=0.02)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.scale * self.fc2(self.dropout(self.act(self.fc1(x)))))

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The adapter as `W x + b`, in fp64: W = I + s W2 W1, b = s (W2 b1 + b2)."""
        w1, b1, w2, b2 = (
            p.detach().double()
            for p in (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        )
        eye = torch.eye(w2.shape[0], dtype=w2.dtype, device=w2.device)
        return eye + self.scale * (w2 @ w1), self.scale * (w2 @ b1 + b2)


class ZeroI2V(STDHA):
    name = "zeroi2v"
    Config = ZeroI2VConfig
    config: ZeroI2VConfig

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: ZeroI2VConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        if config.activation != "none" and config.adapters:
            self.not_mergeable = "its adapters have a GELU"
        if not config.adapters:  # as merged: whichever were folded in, a bias may have come of them
            for block in self.blocks:
                block.open_biases()
        bottleneck = channels(self.width, config.bottleneck_ratio, "bottleneck_ratio")
        options = (config.scale, config.adapter_dropout, config.activation)
        self.adapters = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: LinearAdapter(self.width, bottleneck, *options)
                    for name in (config.adapters if index in self.adapted else ())
                }
            )
            for index in range(len(self.blocks))
        )
        self.declare(self.adapters, self.temporal_embedding, self.view.norm)

    def _adapt(self, index: int, name: AdapterName, x: Tensor) -> Tensor:
        adapters = cast(nn.ModuleDict, self.adapters[index])
        return cast(Tensor, self.checkpointed(adapters[name], x)) if name in adapters else x

    def qkv(
        self, index: int, block: BlockView, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self._adapt(index, "attn_in", x)
        if not set(QKV) & set(cast(nn.ModuleDict, self.adapters[index])):
            return super().qkv(index, block, x, queries)
        q, k, v = (
            nn.functional.linear(self._adapt(index, name, tokens), *block.affine(part))
            for name, part, tokens in zip(
                QKV, PROJECTIONS, (x[:, :queries].contiguous(), x, x), strict=True
            )
        )
        return q, k, v

    def out(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        return self._adapt(index, "attn_out", super().out(index, block, x))

    def mlp(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        adapters = cast(nn.ModuleDict, self.adapters[index])
        if "mlp_in" in adapters:
            x = self.checkpointed(lambda x: adapters["mlp_in"](block.norm2(x)), x)
        else:
            x = block.norm2(x)
        return self._adapt(index, "mlp_out", block.mlp(x))

    @torch.no_grad()
    def merge(self) -> ZeroI2V:
        """Fold every adapter into its frozen linear layer (section 3.3). Composed in fp64.

        The result is the plain ViT with `adapters: []`: same offsets, temporal embedding, final norm
        and head, no new weight in any block. Merging it again returns an equal model.
        """
        self.refuse_merge()
        config = self.config.model_copy(update={"adapters": ()})
        classes = self.head.out_features
        merged = type(self)(copy.deepcopy(self.vit), classes, self.num_frames, config)
        self.copy_rest(merged)
        for block, adapters in zip(merged.blocks, self.adapters, strict=True):
            for name, adapter in cast(nn.ModuleDict, adapters).items():
                a, c = cast(LinearAdapter, adapter).matrix()
                for part in BEFORE.get(name, ()):  # layer(adapter(x))
                    weight, bias = in_fp64(block, part)
                    block.overwrite(part, weight @ a, bias + weight @ c)
                for part in AFTER.get(name, ()):  # adapter(layer(x))
                    weight, bias = in_fp64(block, part)
                    block.overwrite(part, a @ weight, a @ bias + c)
        return cast(ZeroI2V, merged.train(self.training))


BEFORE: dict[str, tuple[Part, ...]] = {
    **{name: (part,) for name, part in zip(QKV, PROJECTIONS, strict=True)},
    "attn_in": PROJECTIONS,
    "mlp_in": ("up",),
}
"""The linear maps that read an adapter's output."""
AFTER: dict[str, tuple[Part, ...]] = {"attn_out": ("out",), "mlp_out": ("down",)}
"""The linear map that an adapter reads."""


def in_fp64(block: BlockView, part: Part) -> tuple[Tensor, Tensor]:
    """Weight and bias of `part`; the bias zero where it has none."""
    weight, bias = block.affine(part)
    weight = weight.double()
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.double()
