"""Models as programs that run without vidpipe: `torch.export` (needs torch alone) and ONNX.

Each takes uint8 RGB clips (N, T, 3, h, w), any N, and gives fp32 logits (N, C), or, where a clip may
have several labels, the probability of each class: normalisation and sigmoid are inside. Of task
detection it takes boxes (N, M, 4), too, any M, and gives (N, M, C). What else a
caller must know (class names, sampling, size) is JSON in the file: the extra file `vidpipe.json` of a
.pt2, the metadata property `vidpipe` of an ONNX model. Neither holds a path or a time, so equal models
give equal bytes.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vidpipe.errors import VidpipeError
from vidpipe.export.pt2_check import refuse_unsafe
from vidpipe.trained.trained_model import TrainedModel

METADATA = "vidpipe.json"
ONNX_METADATA = "vidpipe"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPSET = 23
"""The newest that torch's exporter writes."""
OPSET_WITH_BOXES = 21
"""The last before a RoiAlign (22) that onnxruntime does not have."""


class PixelModel(nn.Module):
    """(N, T, 3, h, w) uint8 -> (N, C) fp32: logits, or what else the model's task gives of a program; in
    between it computes in `dtype`. Of task detection also (N, M, 4) boxes -> (N, M, C)."""

    offset: Tensor
    scale: Tensor

    def __init__(self, trained: TrainedModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        model = trained.model.eval()
        # A copy only where it is needed: `to` changes the module itself.
        own = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.model = trained.task.network(own)
        self.dtype, self.task = dtype, trained.task
        self.clip_shape = (model.num_frames, 3, *trained.form.sides)
        for name, values in (("offset", trained.backbone.mean), ("scale", trained.backbone.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1, 1) * 255, False)
        self.eval()

    def forward(self, clips: Tensor, boxes: Tensor | None = None) -> Tensor:
        return self.task.program_output(self.logits(clips, boxes))

    def probabilities(self, clips: Tensor, boxes: Tensor | None = None) -> Tensor:
        """(N, C), or (N, M, C), as evaluation has them."""
        return self.task.probabilities(self.logits(clips, boxes))

    def logits(self, clips: Tensor, boxes: Tensor | None = None) -> Tensor:
        x = (clips.transpose(-4, -3).float() - self.offset) / self.scale
        logits: Tensor = self.model(x.to(self.dtype), *(() if boxes is None else (boxes,)))
        return logits.float()


def program_name(form: str, dtype: str) -> str:
    suffix = {"torch_export": "pt2", "onnx": "onnx"}[form]
    return f"model.{suffix}" if dtype == "fp32" else f"model.{dtype}.{suffix}"


def require(formats: tuple[str, ...]) -> None:
    """Refuse, before any work, a format whose packages are not installed."""
    if "onnx" in formats:
        _onnx_packages()


def _onnx_packages() -> Any:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise VidpipeError(
            f"export.formats: onnx needs {error.name}, which is not installed; "
            "pip install 'vidpipe[onnx]'"
        ) from None
    return onnx, onnxruntime


def write_program(
    folder: Path, trained: TrainedModel, form: str, dtype: str, card: Mapping[str, Any]
) -> Path:
    """Write `trained` (eval mode) as one file in `folder`. `card`: what travels inside.

    Raises VidpipeError where torch cannot express the model in that format.
    """
    path = folder / program_name(form, dtype)
    try:
        with _quiet():
            if form == "torch_export":
                program = _traced(PixelModel(trained, DTYPES[dtype]))
                torch.export.save(program, path, extra_files={METADATA: json.dumps(card)})
            elif dtype == "int8":
                _quantise(trained, path, card)
            else:
                _write_onnx(PixelModel(trained, DTYPES[dtype]), path, card)
    except VidpipeError:
        raise
    except Exception as error:  # tracing and conversion raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VidpipeError(
            f"export.formats: {trained.model.name} cannot be written as {form} in {dtype} ({reason}); "
            f"leave {form} out"
        ) from error
    return path


def _traced(pixels: PixelModel) -> ExportedProgram:
    """The graph for any number of clips. Without what only a debugger reads: paths of this machine."""
    batch = Dim("batch", min=1)
    inputs = [torch.zeros(2, *pixels.clip_shape, dtype=torch.uint8)]
    shapes: list[dict[int, Any]] = [{0: batch}]
    if "boxes" in pixels.task.inputs:
        inputs.append(torch.tensor([0.1, 0.2, 0.6, 0.9]).expand(2, 3, 4).contiguous())
        shapes.append({0: batch, 1: Dim("boxes", min=1)})
    with torch.no_grad():
        program = torch.export.export(
            pixels, tuple(inputs), dynamic_shapes=tuple(shapes), strict=False
        )
    # That there are boxes for each clip would be Python that is run when the file is opened.
    program._guards_code = []
    # They would travel as a pickle, and nothing reads them.
    program._example_inputs = None  # type: ignore[assignment]
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _write_onnx(pixels: PixelModel, path: Path, card: Mapping[str, Any]) -> None:
    _onnx_packages()
    converted = torch.onnx.export(
        _traced(pixels),
        input_names=list(pixels.task.inputs),
        output_names=[pixels.task.output],
        opset_version=OPSET_WITH_BOXES if "boxes" in pixels.task.inputs else OPSET,
        dynamo=True,
        verbose=False,
    )
    assert converted is not None
    converted.model.metadata_props[ONNX_METADATA] = json.dumps(card)
    converted.save(path)


def _quantise(trained: TrainedModel, path: Path, card: Mapping[str, Any]) -> None:
    """Weights of matrix products to int8, a scale a channel; activations as they come (dynamic)."""
    onnx = _onnx_packages()[0]
    from tempfile import TemporaryDirectory

    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as scratch:
        whole = Path(scratch) / "model.onnx"
        _write_onnx(PixelModel(trained), whole, card)
        model = onnx.load(whole)
        # The quantiser turns Gemm around and trips over the shapes noted of it; it infers its own.
        del model.graph.value_info[:]
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def open_program(path: Path, threads: int = 0) -> Callable[..., Tensor]:
    """A written program as a function of uint8 clips (N, T, 3, h, w), of task detection with boxes; on
    the CPU. `threads` is for onnxruntime; torch has its own setting.

    Raises VidpipeError for a file that is missing or cannot be read, and for a .pt2 that could run code
    when it is opened (`pt2_check`).
    """
    if not path.is_file():
        raise VidpipeError(f"{path}: no such file")
    try:
        if path.suffix == ".pt2":
            refuse_unsafe(path)
            import torchvision  # noqa: F401 (knows the operators of boxes)

            return torch.export.load(path).module()
        onnxruntime = _onnx_packages()[1]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except VidpipeError:
        raise
    except Exception as error:  # each raises kinds of its own for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VidpipeError(f"{path}: not a readable program ({reason}); export again") from None
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in inputs)
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk about their own deprecations and steps; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
