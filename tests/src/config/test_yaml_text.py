"""Reading YAML is quick and ends in plain values or in one line, whoever wrote it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import PROJECT

from vidpipe.config.overlay import parse_override, read_yaml
from vidpipe.config.yaml_text import DEEPEST, parse_yaml
from vidpipe.errors import VidpipeError
from vidpipe.params import load_params

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)
HOSTILE = {
    "an alias bomb": (BOMB, "more than 100,000 values"),
    "a bomb of merge keys": (MERGES, "more than 100,000 values"),
    "deep lists": ("a: " + "[" * 50_000, f"nested more than {DEEPEST} levels"),
    "deep mappings": ("{a: " * 5_000, f"nested more than {DEEPEST} levels"),
    "deep blocks": ("- " * 2_000 + "1", f"nested more than {DEEPEST} levels"),
    "a list within itself": ("a: &a [*a]", "alias .a stands within"),
    "a mapping within itself": ("a: &a {b: *a}", "alias .a stands within"),
    "5,000 digits": ("a: " + "1" * 5_000, "not valid YAML"),
    "a date that is none": ("a: 2001-99-99", "not valid YAML"),
    "an object": ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
    "a key twice": ("train: {seed: 1}\ntrain: {epochs: 1}", "'train' is given twice"),
    "a list as a key": ("? [1]\n: 2", "not valid YAML"),
    "control characters": ("a: \x07", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not valid YAML"),
    "two million characters": ("a: 1\n#" + "x" * 2_000_000, "at most 1,024 KiB"),
    "many values": ("a: [" + "1," * 200_000 + "]", "more than 100,000 values"),
    "an unknown alias": ("a: *nothing", "not valid YAML"),
}


def refused(file: Path, message: str) -> None:
    with pytest.raises(VidpipeError, match=message) as caught:
        load_params(file)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1000


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    refused(file, message)
    if "\n" not in text and len(text) < 10**6:
        with pytest.raises(VidpipeError) as caught:
            parse_override(f"data.classes={text.removeprefix('a: ')}")
        assert len(str(caught.value)) < 1000


def test_what_is_no_file_of_text_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path, "expected a file of YAML")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "expected a file of YAML")
    (tmp_path / "latin").write_bytes("# für\na: 1".encode("latin-1"))
    refused(tmp_path / "latin", "not UTF-8 text at byte 3")
    (tmp_path / "zeros").write_bytes(b"\0" * 100)
    refused(tmp_path / "zeros", "not valid YAML")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    refused(tmp_path / "itself", "cannot be read")
    refused(tmp_path / ("x" * 300), "cannot be read")
    refused(Path("a\0b"), "cannot be read")
    refused(tmp_path / "nowhere", "no such file")


def test_ordinary_yaml_is_read_as_before() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: *a\n"
    assert parse_yaml(text, "here") == {
        **{"a": {"x": 1, "y": [1, 2]}, "b": {"x": 2, "y": [1, 2]}, "c": {"x": 1, "y": [1, 2]}}
    }
    assert read_yaml(PROJECT / "params.yaml")["train"]["epochs"] == 40


@given(st.text(alphabet="abx1&*<>:-?[]{}!|,'\"#%@ \n\t.~", max_size=60))
def test_any_text_is_plain_values_or_refused(text: str) -> None:
    with suppress(VidpipeError):
        parse_yaml(text, "here")


def test_no_other_module_reads_yaml() -> None:
    for folder in ("src", "pipeline", "scripts"):
        for file in (PROJECT / folder).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            assert file.name == "yaml_text.py" or "safe_load" not in source, file
            assert file.name == "yaml_text.py" or "yaml.load(" not in source or "ruamel" in source
