"""What every method shares: a frozen image model, a head, and a declared set of trained parameters.

The forward here is a ViT's; `methods.swin` has that of a Swin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidpipe.backbones.activation import keep_less
from vidpipe.backbones.block import BlockView
from vidpipe.backbones.families import view_of
from vidpipe.backbones.ops import fold_frames
from vidpipe.backbones.swin import SWINS
from vidpipe.backbones.view import ImageView
from vidpipe.backbones.zoo import Backbone
from vidpipe.data.model_input import InputForm, middle_view, to_input
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size
from vidpipe.methods.config import MethodConfig
from vidpipe.methods.noise import ClipDropout, ClipNoise, Keys
from vidpipe.methods.patch_drop import PatchDrop, only
from vidpipe.methods.text_head import make_head
from vidpipe.weights import refuse_mismatch

__all__ = ["MethodConfig", "VideoModel"]


class VideoModel(nn.Module):
    """(B, 3, T, H, W) normalised clips -> (B, num_classes) logits.

    A subclass adds its modules, overrides `block` (what happens to the tokens in block i) and
    `declare`s what is trained; everything else stays frozen. Frame features are the image
    model's own (`ImageView.pool`): of most the CLS token; clip features their mean over T.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    order_blind: bool = False
    """True when permuting the frames cannot change the logits; a config may decide it."""
    starts_as_image_model: bool = True
    """True when an untrained model classifies the mean of the image model's frame features."""
    not_mergeable: str | None = "it has parts that are not linear"
    """Why the adapters cannot be folded into the backbone; None when they can."""
    head_init_std: ClassVar[float] = 0.01
    trained_names: frozenset[str] = frozenset()
    """What `declare` declared. A gradient anywhere else ends a training."""
    reads_pooled_only: ClassVar[bool] = True
    """False where something after the last block, or within it, reads tokens that the image model's
    pooling does not."""
    vit: Any
    """The image model, of whichever family; methods work on its `view`."""
    view: ImageView
    """How frames become tokens and tokens a feature, and the blocks' views. A Swin has none."""
    every_token: bool = False
    """Whether the last block computes every token, as the papers' code does and their GFLOPs say, or
    those that are read (`tokens_needed`)."""
    backbone: Backbone
    """What it was made on, with the normalisation; of models that `vidpipe.create_model` or
    `vidpipe.load` made."""
    form: InputForm
    """Of its input: size, and how a frame becomes one; set with `backbone`."""
    recomputed: int = 0
    """Leading blocks under activation checkpointing: the backward pass runs them again."""
    patch_drop: PatchDrop | None = None
    """What is left out while training; the trainer sets it (`train.patch_drop`)."""

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: MethodConfig
    ) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        if not isinstance(vit, SWINS):  # a Swin has GELU
            keep_less(vit)
            self.view = view_of(vit)
        self.num_frames = num_frames
        self.config = config
        self.width: int = self.vit.num_features
        self.feature_width = self.width  # of what the head classifies
        self.clip_keys = Keys()
        self.head_dropout = ClipDropout(config.head_dropout)
        self.head = make_head(vit, self.width, num_classes, config.head_init, self.head_init_std)

    # -- what a method overrides ------------------------------------------------------------

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        """Tokens (B*T, N, D) through block `index`; (B*T, `tokens_needed(index)`, D) come out."""
        return block(x, self.tokens_needed(index))

    def tokens_needed(self, index: int) -> int | None:
        """Number of leading output tokens of block `index` that something reads; None: all.

        Behind the last block that is what the pooling reads: all, or only the class token (with
        registers, which stay with it). Its patches are then keys and values there, but ask no query and
        pass no MLP: 6 % of a ViT-B's forward.
        """
        last = index == len(self.blocks) - 1
        if not last or self.every_token or not self.reads_pooled_only:
            return None
        return self.view.num_prefix_tokens if self.view.reads == "prefix" else None

    def embed(self, frames: Tensor, num_frames: int) -> Tensor:
        return self.view.norm_pre(self.view.embed(frames))

    @property
    def whole_grid(self) -> str | None:
        """Why patches cannot be dropped (`train.patch_drop`); None: they can."""
        return self.view.whole_grid

    def key_offsets(self, index: int) -> tuple[tuple[int, int], ...]:
        """((channels, dt), ...) covering the width: the keys of block `index` at frame t come from
        frame t + dt (`shift_frames`). Only explanations ask."""
        return ((self.width, 0),)

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        """The image model's feature of each frame, mean over T, dropout, linear."""
        return self.classify_pooled(self.view.pool(x), num_frames)

    def classify_pooled(self, features: Tensor, num_frames: int) -> Tensor:
        """The rest of `classify` behind the pooling: (B*T, D) features of frames -> (B, C)."""
        feature = features.unflatten(0, (-1, num_frames)).mean(1)
        return cast(Tensor, self.head(self.head_dropout(feature)))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on the trained parameter `name`: as a rule on matrices and kernels,
        not on biases, norms, or the backbone's positions and class token. A method whose paper's code
        decays otherwise overrides this."""
        spared = {f"vit.{own}" for own in self.vit.no_weight_decay()}
        return parameter.ndim > 1 and name not in spared

    def merge(self) -> VideoModel:
        """A new model of the same method without adapters and with equal logits (eval mode)."""
        self.refuse_merge()
        raise NotImplementedError(f"{self.name} says it can be merged, and has no merge()")

    def refuse_merge(self) -> None:
        if self.not_mergeable is not None:
            raise VidpipeError(f"{self.name} cannot be merged: {self.not_mergeable}")

    # -- what is common ---------------------------------------------------------------------

    def forward(self, video: Tensor) -> Tensor:
        return self.classify(self.tokens(video), video.shape[2])

    def tokens(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) clips -> (B*T, N, D) behind the last block, before the final norm: those that
        `tokens_needed` says, all with `every_token`."""
        return self.through_blocks(self.first_tokens(video), video.shape[2])

    def first_tokens(self, video: Tensor) -> Tensor:
        """What the first block reads of (B, 3, T, H, W) clips: (B*T, N, D), of the patches that stay."""
        return self.drop_patches(self.embed(fold_frames(video), video.shape[2]), video)

    def drop_patches(self, x: Tensor, clips: Tensor) -> Tensor:
        """Tokens (B*T, N, D) of `clips` -> those of the patches that stay; all of them at inference."""
        self.view.kept = None
        if self.patch_drop is None or not self.training:
            return x
        own = self.patch_drop(clips, self.view.grid, self.clip_keys.now)
        self.view.kept = own.repeat_interleave(len(x) // len(clips), 0)
        return only(x, self.view.kept, self.view.num_prefix_tokens)

    def through_blocks(
        self, x: Tensor, num_frames: int, first: int = 0, end: int | None = None
    ) -> Tensor:
        """Tokens (B*T, N, D) before block `first` -> those behind the one before `end` (None: all)."""
        for index in range(first, len(self.blocks) if end is None else end):
            x = self.run_block(index, self.blocks[index], x, num_frames)
        return x

    @property
    def img_size(self) -> Size:
        """Of its input, pixels: one number for a square, else (height, width)."""
        return self.form.size

    def preprocess(self, frames: Tensor) -> Tensor:
        """Frames as they were decoded -> the model's input, by evaluation's centre view.

        Args:
            frames: uint8 RGB, (T, 3, H, W) or (B, T, 3, H, W), of any size: they are resized until they
                just cover `img_size`, and the middle is cropped (`InputForm`).

        Returns:
            (B, 3, T, h, w) fp32 of `img_size` (h, w), normalised as the backbone's weights expect, on
            the model's device.

        Raises:
            VidpipeError: for another shape or type.

        Example:
            >>> import torch, vidpipe
            >>> from vidpipe.backbones.still import WEIGHTS
            >>> model = vidpipe.create_model(
            ...     "aim", "vit_still_patch12_48", num_classes=4, num_frames=8, weights=WEIGHTS
            ... )
            >>> model.preprocess(torch.zeros(8, 3, 60, 80, dtype=torch.uint8)).shape
            torch.Size([1, 3, 8, 48, 48])
        """
        if not hasattr(self, "backbone"):
            raise VidpipeError(
                "this model was built without its backbone's normalisation; make it by "
                "vidpipe.create_model or vidpipe.load"
            )
        video = middle_view(frames, self.form).to(self.head.weight.device)
        return to_input(video, self.backbone.mean, self.backbone.std)

    def run_block(self, index: int, block: Any, x: Tensor, num_frames: int) -> Tensor:
        """`block`, recomputed in the backward pass where `recomputed` says so."""
        if index < self.recomputed and self.training and torch.is_grad_enabled():
            return checkpoint(self.block, index, block, x, num_frames, use_reentrant=False)
        return self.block(index, block, x, num_frames)

    def checkpointed(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """`function(*inputs)` under activation checkpointing: the backward pass runs it again from its
        inputs. For a norm or a bottleneck, whose tensors are large beside its arithmetic."""
        if self.training and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def block_of(self, name: str) -> int | None:
        """The block that parameter `name` belongs to; -1: before the first; None: after the last.

        A part with one entry a block is known by its name; a method that has others overrides this.
        """
        own = re.match(r"(?:vit\.blocks|adapters|updates|differences|temporal)\.(\d+)[._]", name)
        if own:
            return int(own[1])
        embedding = ("vit.patch_embed.", "vit.pos_embed", "vit.norm_pre.", "temporal_embedding.")
        tokens = ("vit.cls_token", "vit.reg_token", "vit.dist_token")
        of_all = ("vit.rel_pos_bias.", "vit.rope.")  # positions that all blocks read
        return -1 if name.startswith((*embedding, *tokens, *of_all)) else None

    @property
    def blocks(self) -> list[BlockView]:
        return self.view.blocks

    def chosen_blocks(self, blocks: tuple[int, ...] | None) -> tuple[int, ...]:
        """The option `blocks` (None: all), checked against this backbone's depth."""
        depth = len(self.blocks)
        chosen = tuple(range(depth)) if blocks is None else blocks
        if wrong := [index for index in chosen if not 0 <= index < depth]:
            raise VidpipeError(
                f"methods.{self.name}.blocks: {wrong} not in this backbone, whose blocks are "
                f"0..{depth - 1}"
            )
        return chosen

    def declare(self, *trained: nn.Module | nn.Parameter) -> None:
        """Unfreeze exactly these parts, and the head; a subclass calls it once, at the end of init.

        Noisy layers are numbered here, so that no two of them have the same mask.
        """
        self.requires_grad_(False)
        for part in (*trained, self.head):
            part.requires_grad_(True)
        for number, layer in enumerate(m for m in self.modules() if isinstance(m, ClipNoise)):
            layer.keys, layer.number = self.clip_keys, number
        self.trained_names = frozenset(n for n, p in self.named_parameters() if p.requires_grad)

    def parameter_groups(
        self, lr: float | None = None, weight_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """The trained parameters in groups of one rate and one weight decay, for any torch optimizer.

        vidpipe's own trainings use the same: the method says what is decayed (`decays`) and which
        parameters have a lower rate (`lr_scale`).

        Args:
            lr: peak learning rate; None: the method's option `lr`, or `base_lr` without one.
            weight_decay: of the decayed parameters; None: the method's option `weight_decay`.

        Returns:
            Dictionaries with `params`, `lr`, `weight_decay` and `lr_scale` (`lr` is the peak rate times
            that), those with weight decay first.

        Example:
            >>> import torch, vidpipe
            >>> from vidpipe.backbones.still import WEIGHTS
            >>> model = vidpipe.create_model(
            ...     "aim", "vit_still_patch12_48", num_classes=4, num_frames=8, weights=WEIGHTS
            ... )
            >>> optimizer = torch.optim.SGD(model.parameter_groups(lr=0.1, weight_decay=0.01))
            >>> [group["weight_decay"] for group in optimizer.param_groups]
            [0.01, 0.0]
        """
        peak = self.config.peak_lr() if lr is None else lr
        decay = self.config.weight_decay if weight_decay is None else weight_decay
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for decayed in (True, False):  # there are always both, so that lr has its place
            groups[decayed, 1.0] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                key = self.decays(name, parameter), self.lr_scale(name)
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": peak * scale,
                "weight_decay": decay if decayed else 0.0,
                "lr_scale": scale,
            }
            for (decayed, scale), parameters in sorted(groups.items(), key=lambda x: not x[0][0])
            if parameters
        ]

    def lr_scale(self, name: str) -> float:
        """Of the peak learning rate, for parameter `name`: lower for what came with the backbone, and,
        with `layer_decay`, the deeper its block lies."""
        scale = 1.0
        if name.startswith("vit.") and self.config.pretrained_lr_scale is not None:
            scale = self.config.pretrained_lr_scale
        block = self.block_of(name)
        if block is not None:
            scale *= self.config.layer_decay ** (len(self.blocks) - block)
        return scale

    def carried(self) -> dict[str, nn.Parameter]:
        """Parameters of an adapter checkpoint: the trained ones and the whole head, unless a method adds
        others."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad or name.startswith("head.")
        }

    def adapter_state(self) -> dict[str, Tensor]:
        """The trained tensors by name: all that an adapter checkpoint holds."""
        return {n: p.detach() for n, p in self.carried().items()}

    def load_adapter_state(self, state: dict[str, Tensor], source: str) -> None:
        """Load `adapter_state` of an equally configured model; refuse any other set of names."""
        own = self.carried()
        refuse_mismatch(source, own, state)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def train(self, mode: bool = True) -> VideoModel:
        super().train(mode)
        # The frozen image model runs as at inference: its own dropout would be noise on features.
        self.vit.eval()
        if not mode and hasattr(self, "view"):  # a Swin has none
            self.view.kept = None
        return self
