"""The view of one block of an image model: attention over the tokens of a frame, then an MLP.

x += scale1(out(attend(project(norm1 x))));  x += scale2(mlp(norm2 x))

Methods recombine these pieces and never reach into timm's classes. `BlockView` is timm's plain `Block`;
a family whose attention differs overrides what differs. Shapes: (B*T, N, D) tokens; q, k and v with
their heads side by side.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidpipe.backbones.mlp import MLPS, hidden, input_layers, joint, output_layer
from vidpipe.backbones.ops import attention, project

Part = Literal["q", "k", "v", "out", "up", "down"]
"""A linear map of a block: the projections of attention, and the MLP's input and output. The two halves
of a gated MLP's input count as one `up`."""
QKV: tuple[Part, Part, Part] = ("q", "k", "v")
PARTS: tuple[Part, ...] = (*QKV, "out", "up", "down")


class BlockView:
    """A block of timm's plain ViT that `refusal` finds nothing against.

    Args:
        module: the block; it is looked at anew in each call, so that merged layers count.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    # -- what a family overrides ------------------------------------------------------------

    def scale1(self, x: Tensor) -> Tensor:
        """LayerScale of the attention branch, where the model has it."""
        return cast(Tensor, cast(Any, self.module).ls1(x))

    def scale2(self, x: Tensor) -> Tensor:
        """LayerScale of the MLP branch, where the model has it."""
        return cast(Tensor, cast(Any, self.module).ls2(x))

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Normed tokens to q, k, v; q of the first `queries` tokens only (None: all)."""
        qkv = self.attn.qkv
        if queries is None:
            q, k, v = qkv(x).chunk(3, dim=-1)
            return q, k, v
        return project(qkv.weight, qkv.bias, x, queries)

    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys by head, (B*T, heads, N, D / heads), as attention within a frame compares
        them: with q/k norm, and with the positions that a RoPE turns in."""
        return self.normed(self.heads(q), self.heads(k))

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys by head, with the norms that some models give to each."""
        return self.attn.q_norm(q), self.attn.k_norm(k)

    def bias(self, tokens: int) -> Tensor | None:
        """What attention within a frame adds to its scores, (1, heads, `tokens`, `tokens`)."""
        return None

    # -- attention ----------------------------------------------------------------------------

    @property
    def attn(self) -> Any:
        return cast(Any, self.module).attn

    @property
    def num_heads(self) -> int:
        return cast(int, self.attn.num_heads)

    @property
    def scale(self) -> float:
        """Of the product of a query and a key."""
        return cast(float, self.attn.scale)

    @property
    def norm1(self) -> nn.Module:
        """Before the attention."""
        return cast(nn.Module, cast(Any, self.module).norm1)

    def heads(self, x: Tensor) -> Tensor:
        """(B*T, N, D) -> (B*T, heads, N, D / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention among the tokens of a frame: projected q of any number of leading tokens, k and v
        of all -> heads joined, before the output projection."""
        q, k = self.place(q, k)
        bias = self.bias(k.shape[-2])
        return self._attend(q, k, v, None if bias is None else bias[..., : q.shape[-2], :])

    def attend_over_time(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention among the T tokens of one position, (B*N, T, D): without positions, which are the
        same for all of them."""
        return self._attend(*self.normed(self.heads(q), self.heads(k)), v, None)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = attention(q, k, self.heads(v), bias, self.scale)
        return self.inner_norm(out.transpose(1, 2).flatten(2))

    def inner_norm(self, x: Tensor) -> Tensor:
        """The norm between attention and its output projection, where the model has one."""
        return cast(Tensor, self.attn.norm(x))

    def out(self, x: Tensor) -> Tensor:
        """The attention's output projection."""
        return cast(Tensor, self.attn.proj(x))

    def attention(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Self-attention over normed tokens, as seen from the first `queries` of them (None: all).

        Of all, it is timm's; its backward pass has one pass over q, k and v less.
        """
        return self.out(self.attend(*self.project(x, queries)))

    def attention_over_time(self, x: Tensor) -> Tensor:
        """The same weights over the T tokens of each position, (B*N, T, D) -> same."""
        return self.out(self.attend_over_time(*self.project(x)))

    # -- MLP ------------------------------------------------------------------------------------

    @property
    def norm2(self) -> nn.Module:
        """Before the MLP."""
        return cast(nn.Module, cast(Any, self.module).norm2)

    @property
    def _mlp(self) -> nn.Module:
        return cast(nn.Module, cast(Any, self.module).mlp)

    @property
    def activation(self) -> nn.Module:
        return cast(nn.Module, cast(Any, self._mlp).act)

    def mlp(self, x: Tensor) -> Tensor:
        """Of normed tokens."""
        return cast(Tensor, self._mlp(x))

    def up(self, x: Tensor) -> Tensor:
        """The MLP's input layer; of a gated MLP, its two halves side by side."""
        return joint(self._mlp, x)

    def hidden(self, x: Tensor) -> Tensor:
        """What lies between `up` and `down`: activation, gate, inner norm."""
        return hidden(self._mlp, x)

    def down(self, x: Tensor) -> Tensor:
        """The MLP's output layer."""
        return cast(Tensor, output_layer(self._mlp)(x))

    # -- the whole block ------------------------------------------------------------------------

    def __call__(self, x: Tensor, kept: int | None = None) -> Tensor:
        """The image model's block as it is; the first `kept` tokens of its output (None: all)."""
        x = x[:, :kept] + self.scale1(self.attention(self.norm1(x), kept))
        return x + self.scale2(self.mlp(self.norm2(x)))

    # -- weights --------------------------------------------------------------------------------

    def affine(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias of a linear map; None: without."""
        if part in QKV:
            return self.affine_qkv(part)
        layers = self._layers(part)
        if len(layers) == 1:
            return layers[0].weight, layers[0].bias
        weight = torch.cat([layer.weight for layer in layers])
        return weight, None if layers[0].bias is None else torch.cat([ly.bias for ly in layers])

    def overwrite(self, part: Part, weight: Tensor, bias: Tensor | None) -> None:
        """Replace a frozen linear map, keeping its type. A bias that was None may become one; a `bias`
        of None leaves it as it was."""
        if part in QKV:
            self.overwrite_qkv(part, weight, bias)
            return
        layers = self._layers(part)
        rows = [layer.out_features for layer in layers]
        biases = [None] * len(layers) if bias is None else bias.split(rows)
        for layer, own, b in zip(layers, weight.split(rows), biases, strict=True):
            overwrite_linear(layer, own, b)

    def open_biases(self) -> None:
        """Give every linear map a bias, of zeros where it had none: the form of the block that adapters
        fold into, whatever their values."""
        for part in PARTS:
            weight, bias = self.affine(part)
            if bias is None:
                self.overwrite(part, weight.detach(), weight.new_zeros(len(weight)))

    def affine_qkv(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """`affine` of one of the three projections."""
        own, qkv = QKV.index(part), self.attn.qkv
        return qkv.weight.chunk(3)[own], None if qkv.bias is None else qkv.bias.chunk(3)[own]

    def overwrite_qkv(self, part: Part, weight: Tensor, bias: Tensor | None) -> None:
        """`overwrite` of one of the three projections."""
        own, qkv = QKV.index(part), self.attn.qkv
        weights = [*qkv.weight.chunk(3)]
        weights[own] = weight.to(qkv.weight)
        whole = None
        if bias is not None:
            old = qkv.weight.new_zeros(qkv.out_features) if qkv.bias is None else qkv.bias
            biases = [*old.chunk(3)]
            biases[own] = bias.to(old)
            whole = torch.cat(biases)
        overwrite_linear(qkv, torch.cat(weights), whole)

    def _layers(self, part: Part) -> list[nn.Linear]:
        if part == "out":
            return [cast(nn.Linear, self.attn.proj)]
        return input_layers(self._mlp) if part == "up" else [output_layer(self._mlp)]


def overwrite_linear(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Replace a frozen linear layer's weight and, unless None, its bias, keeping its dtype."""
    layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=False)


Kinds = tuple[type[nn.Module], ...]


def block_refusal(
    block: nn.Module, width: int, blocks: Kinds = (Block,), attentions: Kinds = (Attention,)
) -> str | None:
    """Why methods cannot adapt a block, a phrase after the model's name; None: they can.

    Args:
        width: of the model's tokens.
        blocks, attentions: the classes that the family's view knows; of a plain ViT by default.
    """
    if type(block) not in blocks:
        return f"has {type(block).__name__} blocks, which no method can adapt yet"
    attn = cast(Any, block.attn)
    if type(attn) not in attentions:
        return f"has {type(attn).__name__}, which no method can adapt yet"
    return attention_refusal(attn, width) or mlp_refusal(cast(nn.Module, block.mlp))


def attention_refusal(attn: nn.Module, width: int) -> str | None:
    own = cast(Any, attn)
    if getattr(own, "gate", None) is not None:
        return "has gated attention, which no method can adapt yet"
    if getattr(own, "num_kv_groups", 1) > 1:
        return "has grouped-query attention: fewer keys and values than heads to shift or fold"
    channels = own.proj.in_features
    if channels != width:
        return f"has heads of {channels} channels in all, not of its width {width}"
    return None


def mlp_refusal(mlp: nn.Module) -> str | None:
    if type(mlp) not in MLPS:
        return f"has {type(mlp).__name__} as MLP, which no method can adapt yet"
    if not all(type(layer) is nn.Linear for layer in (*input_layers(mlp), output_layer(mlp))):
        return "has layers in its MLP that are not linear"
    return None
