"""ZeroI2V (Li et al., ECCV 2024): linear adapters that merge away, and attention heads moved in time.

x += S(attn(T_in(ln_1 x)));  x += M_out(mlp(M_in(ln_2 x)))       (section 3, equations 4-8)

Every adapter is `x + s * (W2 (W1 x + b1) + b2)`, without activation, so after training it folds into
its frozen neighbour. Spatial-temporal dual-headed attention (STDHA) takes the keys and values of
some heads from frame t + dt. LayerScale, which the paper's backbones lack, follows S and M_out.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidpipe.backbones.mlp import input_layers, output_layer
from vidpipe.backbones.ops import overwrite_linear
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
        self, vit: VisionTransformer, num_classes: int, num_frames: int, config: ZeroI2VConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        if config.activation != "none" and config.adapters:
            self.not_mergeable = "its adapters have a GELU"
        bottleneck = channels(self.width, config.bottleneck_ratio, "bottleneck_ratio")
        options = (config.scale, config.adapter_dropout, config.activation)
        self.adapters = nn.ModuleList(
            nn.ModuleDict(
                {name: LinearAdapter(self.width, bottleneck, *options) for name in config.adapters}
            )
            for _ in self.blocks
        )
        self.declare(self.adapters, self.temporal_embedding, self.view.norm)

    def _adapt(self, index: int, name: AdapterName, x: Tensor) -> Tensor:
        adapters = cast(nn.ModuleDict, self.adapters[index])
        return cast(Tensor, self.checkpointed(adapters[name], x)) if name in adapters else x

    def qkv(
        self, index: int, block: Block, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self._adapt(index, "attn_in", x)
        if not set(QKV) & set(self.config.adapters):
            return super().qkv(index, block, x, queries)
        qkv = cast(nn.Linear, cast(Any, block.attn).qkv)
        biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
        q, k, v = (
            nn.functional.linear(self._adapt(index, name, tokens), weight, bias)
            for name, tokens, weight, bias in zip(
                QKV, (x[:, :queries].contiguous(), x, x), qkv.weight.chunk(3), biases, strict=True
            )
        )
        return q, k, v

    def out(self, index: int, block: Block, x: Tensor) -> Tensor:
        return self._adapt(index, "attn_out", super().out(index, block, x))

    def mlp(self, index: int, block: Block, x: Tensor) -> Tensor:
        adapters = cast(nn.ModuleDict, self.adapters[index])
        if "mlp_in" in adapters:
            x = self.checkpointed(lambda x: adapters["mlp_in"](block.norm2(x)), x)
        else:
            x = block.norm2(x)
        return self._adapt(index, "mlp_out", cast(Tensor, block.mlp(x)))

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
            by_name = cast(nn.ModuleDict, adapters)
            attn = cast(Any, block.attn)
            attn_in: list[AdapterName] = ["attn_in"] * 3 if "attn_in" in by_name else list(QKV)
            _fold_before(attn.qkv, [by_name[n] if n in by_name else None for n in attn_in])  # noqa: SIM401
            if "attn_out" in by_name:
                _fold_after(attn.proj, by_name["attn_out"])
            if "mlp_in" in by_name:
                for layer in input_layers(block.mlp):  # SwiGLU has two
                    _fold_before(layer, [by_name["mlp_in"]])
            if "mlp_out" in by_name:
                _fold_after(output_layer(block.mlp), by_name["mlp_out"])
        return cast(ZeroI2V, merged.train(self.training))


def _fold_before(layer: nn.Linear, adapters: list[nn.Module | None]) -> None:
    """layer(adapter(x)), with one adapter for each equal part of the layer's outputs."""
    if not any(adapters):
        return
    weights, biases = [], []
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
    for adapter, w, b in zip(
        adapters,
        layer.weight.double().chunk(len(adapters)),
        bias.double().chunk(len(adapters)),
        strict=True,
    ):
        if adapter is not None:
            a, c = cast(LinearAdapter, adapter).matrix()
            w, b = w @ a, b + w @ c
        weights.append(w)
        biases.append(b)
    overwrite_linear(layer, torch.cat(weights), torch.cat(biases))


def _fold_after(layer: nn.Linear, adapter: nn.Module) -> None:
    """adapter(layer(x))."""
    a, c = cast(LinearAdapter, adapter).matrix()
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
    overwrite_linear(layer, a @ layer.weight.double(), a @ bias.double() + c)
