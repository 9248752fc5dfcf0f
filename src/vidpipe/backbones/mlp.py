"""The linear layers of a block's MLP, whichever of timm's MLPs it is: what methods adapt or fold into.

A gated MLP (SwiGLU) has an input layer in two halves, gate and value. timm keeps them in one matrix
(`GluMlp`: DINOv2's giants) or in two (`SwiGLU`: AIMv2). Together they are the MLP's `joint` input.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn

MLPS = (Mlp, GluMlp, SwiGLU)
"""The classes that these functions know."""


def input_layers(mlp: nn.Module) -> list[nn.Linear]:
    """The layers that read the MLP's input; their outputs side by side are `joint`."""
    own = cast(Any, mlp)
    return [own.fc1_g, own.fc1_x] if isinstance(mlp, SwiGLU) else [own.fc1]


def output_layer(mlp: nn.Module) -> nn.Linear:
    """The layer that makes the MLP's output of `hidden`."""
    return cast(nn.Linear, cast(Any, mlp).fc2)


def joint(mlp: nn.Module, x: Tensor) -> Tensor:
    """(B*T, N, D) -> (B*T, N, sum of the input layers' widths)."""
    outputs = [layer(x) for layer in input_layers(mlp)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def hidden(mlp: nn.Module, joint: Tensor) -> Tensor:
    """What the output layer reads: activation, gate, inner norm."""
    own = cast(Any, mlp)
    if type(mlp) is Mlp:
        return cast(Tensor, own.norm(own.act(joint)))
    first, second = joint.chunk(2, dim=-1)
    gate_last = isinstance(mlp, GluMlp) and mlp.gate_last
    return cast(Tensor, own.norm(first * own.act(second) if gate_last else own.act(first) * second))
