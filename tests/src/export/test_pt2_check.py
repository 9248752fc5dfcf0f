"""A .pt2 that could run code when it is opened is refused; ours, which cannot, are opened."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vidpipe.errors import VidpipeError
from vidpipe.export.programs import METADATA, open_program


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("offset", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(0, 1) * self.weight + self.offset).unflatten(0, (-1, 2))


class Touches:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.file), "w")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program as ours are: any batch, a parameter, a constant, no example inputs."""
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(Doubled(), (torch.zeros(2, 2, 3),), dynamic_shapes=shapes)
    program._example_inputs = None
    torch.export.save(program, path, extra_files={METADATA: "{}"})
    return path


Entries = dict[str, bytes]


def rewritten(written: Path, target: Path, change: Callable[[Entries], None]) -> Path:
    with zipfile.ZipFile(written) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:  # stored, as torch's reader wants it
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return target


def in_json(name: str, change: Callable[[dict], None]) -> Callable[[Entries], None]:
    def changed(entries: Entries) -> None:
        content = json.loads(entries[name])
        change(content)
        entries[name] = json.dumps(content).encode()

    return changed


WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
GRAPH = "models/model.json"


def test_ours_is_opened_also_when_it_was_packed_anew(written: Path, tmp_path: Path) -> None:
    expected = Doubled()(torch.ones(5, 2, 3))
    again = rewritten(written, tmp_path / "model.pt2", lambda entries: None)
    for path in (written, again):
        assert torch.equal(open_program(path)(torch.ones(5, 2, 3)), expected)


def test_a_pickle_in_any_place_is_not_opened(written: Path, tmp_path: Path) -> None:
    """The control shows that torch itself opens each of them, and what that does."""
    touched = tmp_path / "touched"
    buffer = io.BytesIO()
    torch.save(Touches(touched), buffer)
    evil = buffer.getvalue()

    def weights(entries: Entries) -> None:
        entries["data/weights/weight_0"] = evil
        in_json(WEIGHTS, lambda c: c["config"]["weight"].update(use_pickle=True))(entries)

    def constant(entries: Entries) -> None:
        entries["data/constants/tensor_0"] = evil
        in_json(CONSTANTS, lambda c: c["config"]["offset"].update(use_pickle=True))(entries)

    def opaque(entries: Entries) -> None:
        entries["data/constants/opaque_obj_0"] = pickle.dumps(Touches(touched))
        name = {"path_name": "opaque_obj_0", "use_pickle": True}
        in_json(CONSTANTS, lambda c: c["config"]["offset"].update(name))(entries)

    def inputs(entries: Entries) -> None:
        entries["data/sample_inputs/model.pt"] = evil

    def legacy(entries: Entries) -> None:
        entries["data/weights/model.pt"] = evil

    for number, change in enumerate((weights, constant, opaque, inputs, legacy)):
        path = rewritten(written, tmp_path / f"{number}.pt2", change)
        with pytest.raises(VidpipeError, match="can run code when it is opened") as error:
            open_program(path)
        assert "\n" not in str(error.value)
        assert not touched.exists(), change.__name__
        with contextlib.suppress(Exception):  # what was unpickled is no tensor
            torch.export.load(path)
        assert touched.exists(), f"{change.__name__}: torch does not unpickle this: no test"
        touched.unlink()


def first_call(target: str) -> Callable[[Entries], None]:
    def change(content: dict) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = target

    return in_json(GRAPH, change)


def expression(text: str) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        found = entries[GRAPH].decode()
        symbol = json.dumps("Symbol('s")[1:-1]
        at = found.index(symbol)
        end = found.index('"', at)
        entries[GRAPH] = (found[:at] + json.dumps(text)[1:-1] + found[end:]).encode()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_call("torch.hub.load"), "calls 'torch.hub.load'"),
        (first_call("torch.ops.load_library"), "calls"),
        (expression("__import__('os').system('true')"), "evaluates"),
        (expression("sympify('1')"), "evaluates"),
        (expression("().__class__"), "evaluates"),
        (in_json(GRAPH, lambda c: c.update(guards_code=["print(1)"])), "guards, which are Python"),
        (lambda e: e.update({"data/aotinductor/model/a.so": b"\x7fELF"}), "aotinductor"),
        (lambda e: e.update({"data/weights/../x": b""}), "data/weights/../x"),
        (lambda e: e.update({"serialized_state_dict.pt": b""}), "serialized_state_dict.pt"),
    ],
)
def test_what_else_could_run_code_is_refused(
    written: Path, tmp_path: Path, change: Callable[[Entries], None], message: str
) -> None:
    path = rewritten(written, tmp_path / "model.pt2", change)
    with pytest.raises(VidpipeError, match="can run code when it is opened") as error:
        open_program(path)
    assert message in str(error.value)


def test_an_entry_that_is_there_twice_is_refused(written: Path, tmp_path: Path) -> None:
    path = rewritten(written, tmp_path / "model.pt2", lambda entries: None)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"model/{GRAPH}", "{}")
    with pytest.raises(VidpipeError, match="an entry twice"):
        open_program(path)


def test_what_we_write_holds_no_pickle(written: Path) -> None:
    with zipfile.ZipFile(written) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"PK", b"\x80")), name
