"""A model folder may come from anyone: it opens and answers with numbers, or is refused in a line."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.errors import VidpipeError
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import Parity
from vidpipe.methods.create import create_model
from vidpipe.trained import Classifier, load, save
from vidpipe.trained.package import open_model

T = 4
FRAMES = torch.randint(0, 256, (T, 3, 48, 48), dtype=torch.uint8)
TENSORS = {"adapter": "adapter.safetensors", "package": "model.safetensors"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter and a package of a tiny model; copy before you break one."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = create_model("st_adapter", ARCHITECTURE, num_classes=3, num_frames=T, weights=WEIGHTS)
    save(model, root / "adapter", classes=["left", "right", "up"], training={"epoch": 3})
    trained = open_model(root / "adapter")
    exported = inference_model(trained.model)
    save_package(root / "package", trained, exported, Parity(1, 0.0, 1.0, 1e-4))
    return {"adapter": root / "adapter", "package": root / "package"}


@pytest.fixture(params=["adapter", "package"])
def folder(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[request.param], tmp_path / request.param))


def opens(folder: Path) -> Classifier | str:
    """The classifier, or the line that refuses it."""
    try:
        return load(folder, device="cpu")
    except VidpipeError as error:
        line = str(error)
        assert len(line) < 1000
        assert not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, line)), line
        return line


def refused(folder: Path) -> str:
    line = opens(folder)
    assert isinstance(line, str), "it was opened"
    return line


# -- config.json --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "expected the description of a model, got []"),
        (b"null", "got None"),
        (b"3", "got 3"),
        (b'"vidpipe-adapter"', "got 'vidpipe-adapter'"),
        (b"9" * 5000, "not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"\xff\xfe{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"format": NaN}', "NaN is not a finite number"),
        (b'{"format": 1e999}', "1e999 is not a finite number"),
        (b'{"format": ["vidpipe-adapter"]}', "format ['vidpipe-adapter'] version None"),
        (b'{"format": "vidpipe-adapter", "version": true}', "version True, expected"),
        (b'{"format": "vidpipe-adapter", "version": 1}', "method: missing"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_config_that_is_no_card_is_one_line(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert message in refused(folder)


def test_a_config_that_is_no_file_is_one_line(folder: Path) -> None:
    config = folder / "config.json"
    text = config.read_text()
    config.unlink()
    assert "no such file" in refused(folder)
    config.mkdir()
    assert "cannot be read (Is a directory)" in refused(folder)
    config.rmdir()
    config.write_text(text + " " * 2**24)
    assert "larger than any description" in refused(folder)


NUMBERS = [0.5, 0.5, 0.5]
WRONG = [
    *((("backbone", key), wrong) for key in ("mean", "std") for wrong in (
        *([0.5, 0.5], [*NUMBERS, 0.5], "half", ["a", "b", "c"], None, 0.5, [1e9, 0, 0]),
        *([[0.5], [0.5], [0.5]], [None] * 3, {"r": 1}),
    )),
    (("backbone", "std"), [0.5, 0, 0.5]),
    (("backbone", "std"), [0.5, -1, 0.5]),
    (("backbone", "std"), [0.5, 1e-30, 0.5]),
    *((("classes",), wrong) for wrong in (
        *("abc", [], ["a", "a", "b"], [["a"], ["b"], ["c"]], [1, 2, 3], {"a": 1}, None),
        *(["a", "b"], [f"class {i}" for i in range(1000)], ["a", "b", "\ud800"]),
    )),
    *((("method_config", "bottleneck_ratio"), wrong) for wrong in (
        *(1e9, 1e-9, 1e300, 0, -1, "wide", 0.25),
    )),
    (("method_config", "kernel_size"), [3, 1, 10**9]),
    (("method_config", "kernel_size"), [-3, 1, 1]),
    (("method_config", "blocks"), [10**9]),
    (("method_config", "bottleneck"), 0.5),
    (("method_config",), None),
    (("method",), "zeroi2v"),
    (("method",), "no\x1b[2Jsuch"),
    (("backbone", "name"), "vit_giant_patch14_reg4_dinov2"),
    (("backbone", "name"), "\x1b[2J"),
    (("backbone", "weights_sha256"), "0" * 63),
    (("backbone", "no\nsuch"), 1),
    (("transform", "size"), 10**9),
    (("transform", "size"), 60),
    (("sampling", "num_frames"), 10**9),
    (("extract",), {"short_side": 10**9, "fps": None}),
    (("extract",), {"short_side": 36}),
    (("no such key",), 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "wrong"), WRONG, ids=[f"{'.'.join(w)}={v!r}"[:50] for w, v in WRONG]
)
def test_a_card_that_cannot_be_true_is_refused(
    folder: Path, where: tuple[str, ...], wrong: object
) -> None:
    change(folder, where, wrong)
    if where == ("transform", "size") and wrong == 60 and folder.name == "adapter":
        return  # a backbone's position grid is resized: that adapter exists
    refused(folder)


def change(folder: Path, where: tuple[str, ...], value: object) -> None:
    card = json.loads((folder / "config.json").read_text())
    inner = card
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (folder / "config.json").write_text(json.dumps(card))


def paths(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*at, key))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=5),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_place_opens_or_is_refused(
    made: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(sorted(made)))
    folder = tmp_path / kind
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made[kind], folder)
    card = json.loads((folder / "config.json").read_text())
    change(folder, data.draw(st.sampled_from(sorted(paths(card)))), data.draw(JUNK))
    classifier = opens(folder)
    # Of an adapter only what it asks of a stranger's backbone file, which may be resized at will.
    if isinstance(classifier, Classifier) and kind == "package":
        assert all(0 <= guess.probability <= 1 for guess in classifier.predict(FRAMES))


@given(content=st.binary(max_size=200))
@example(content=b"")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(made: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    for kind, tensors in TENSORS.items():
        for name in ("config.json", tensors):
            folder = tmp_path / kind
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(made[kind], folder)
            (folder / name).write_bytes(content)
            refused(folder)


# -- tensors ------------------------------------------------------------------------------------


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        copy.view(-1)[-1] = value
        return copy

    return changed


HARMS: dict[str, Callable[[Tensor], Tensor]] = {
    "not finite: nan": with_value(float("nan")),
    "not finite: inf": with_value(float("inf")),
    "not finite: half": lambda t: with_value(float("-inf"))(t.half()),
    "complex": lambda t: t.to(torch.complex64),
    "is torch.int64": lambda t: t.long(),
    "weights do not fit": lambda t: t[:-1],
}


@pytest.mark.parametrize("harm", HARMS)
def test_weights_that_are_no_numbers_are_refused(folder: Path, harm: str) -> None:
    file = folder / TENSORS[folder.name]
    state = load_file(file)
    state["head.bias"] = HARMS[harm](state["head.bias"])
    save_file(state, file)
    forget_hash(folder)
    line = refused(folder)
    word = {"complex": "C64"}.get(harm, harm.partition(":")[0])
    assert file.name in line
    assert word in line


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm != "is torch.int64"])
def test_backbone_weights_that_are_no_numbers_are_refused(
    made: dict[str, Path], tmp_path: Path, harm: str
) -> None:
    state = load_file(WEIGHTS)
    state["norm.bias"] = HARMS[harm](state["norm.bias"])
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(VidpipeError, match=harm.partition(":")[0]) as error:
        create_model(
            *("st_adapter", ARCHITECTURE),
            **{"num_classes": 3, "num_frames": T, "weights": tmp_path / "vit.safetensors"},
        )
    assert "\n" not in str(error.value)


def forget_hash(folder: Path) -> None:
    card = json.loads((folder / "config.json").read_text())
    card.get("training", {}).pop("sha256", None)
    (folder / "config.json").write_text(json.dumps(card))


def test_tensors_that_were_not_trained_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["adapter"], tmp_path / "adapter"))
    state = load_file(folder / "adapter.safetensors")
    save_file({**state, "head.bias": state["head.bias"] + 1}, folder / "adapter.safetensors")
    assert "adapter.safetensors: not the tensors that were trained: sha256" in refused(folder)
    forget_hash(folder)  # an adapter of an older version
    assert isinstance(opens(folder), Classifier)
    change(folder, ("training", "sha256"), {"a": "\x1b[2J"})
    refused(folder)


def test_what_the_card_asks_for_is_never_allocated(folder: Path) -> None:
    change(folder, ("backbone", "name"), "vit_giant_patch16_gap_224")  # 4 GB
    before = torch_bytes()
    assert "weights do not fit the model" in refused(folder)
    assert torch_bytes() - before < 200 * 2**20


def torch_bytes() -> int:
    """The most memory that this process ever had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
