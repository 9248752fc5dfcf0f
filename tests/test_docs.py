"""README and docs: their code runs or is known not to, every command is one that vidpipe takes, every
link and file leads somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
import typer.main
import yaml
from clips import moving
from markdown_it import MarkdownIt
from project import PROJECT, SHARED, command
from small_store import small_project
from typer.core import TyperGroup
from videos import write_video

from pipeline.cli.app import app
from pipeline.cli.options import Configuration
from pipeline.infra.search_space import checked_texts
from vidpipe.errors import VidpipeError
from vidpipe.inference.given import Rules
from vidpipe.serving.queries import Query

PAGES = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "data/README.md",
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "docs/guides").glob("*.md")),
]
NAMES = [page.relative_to(PROJECT).as_posix() for page in PAGES]
TARGETS = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
STAGES = {
    name
    for file in ("dvc.yaml", "study/dvc.yaml")
    for name in yaml.safe_load((PROJECT / file).read_text())["stages"]
}
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


OWN = re.compile(r"[A-Z]{2,}|my_\w+|\*")
"""A place for the reader's own."""


def commands(text: str) -> Iterator[list[str]]:
    """Words of each command line in code blocks and spans: `vidpipe ...` and `make ...`."""
    joined = re.sub(r"\\\n\s*", " ", text)
    blocks = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
    spans = re.findall(r"`((?:vidpipe|make) [^`]+)`", " ".join(joined.split()))
    for line in (*blocks, *spans):
        if re.match(r"(vidpipe|make) [a-z]", line):
            yield shlex.split(line, comments=True)


def refused(words: list[str]) -> str | None:
    """Why the command line is not taken; nothing is run."""
    command, name = typer.main.get_command(app), words.pop(0)
    if name == "make":
        return None if words[0] in TARGETS else f"no target {words[0]}"
    parent = command.context_class(command, info_name=name)
    while isinstance(command, TyperGroup):
        if not words:
            return None
        name, command = words[0], command.get_command(parent, words.pop(0))
        if command is None:
            return f"no command {name}"
        parent = command.context_class(command, info_name=name, parent=parent)
    if not words or "..." in words:  # `vidpipe predict` stands for what it does
        return None
    try:
        with ExitStack() as stack:
            for parameter in command.params:  # models, videos and folders are the reader's
                info = parameter.type_descriptor.parameter_info
                stack.enter_context(patch.object(info, "exists", False))
                stack.enter_context(patch.object(parameter, "callback", None))
            context = command.make_context(name, [*words], parent=parent.parent)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return wrong_values(context.params)


def wrong_values(given: Mapping[str, Any]) -> str | None:
    """Why a recipe, a method, a search space or a value of `--set` is none."""
    methods = given.get("methods") or given.get("method") or ()
    if isinstance(methods, str):
        methods = methods.split(",")
    recipe = given.get("recipe")
    if recipe is not None and OWN.search(recipe):
        recipe = None
    configuration = Configuration(
        params=PROJECT / "params.yaml", recipe=recipe, set=given.get("set")
    )
    try:
        params = configuration.read()
        for name in methods if "recipe" in given else ():  # others read no parameters
            if not OWN.search(name):
                params.method(name)
        if given.get("space"):
            checked_texts(configuration.read_raw(), given["method"], given["space"], "random")
    except VidpipeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_is_one_that_vidpipe_takes(page: Path) -> None:
    found = list(commands(page.read_text(encoding="utf-8")))
    wrong = {shlex.join(words): refused([*words]) for words in found}
    assert {line: why for line, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("vidpipe train --methd aim", "make tea", "vidpipe fly", "vidpipe export --method aimm"),
        *("vidpipe train --method aim --set train.epoch=3", "vidpipe run --recipe k4000"),
        *("vidpipe train --method aim --set train.epochs=many", "vidpipe run --methods aim,ami"),
        "vidpipe evaluate --method aim --set methods.aim.bottleneck=0.5",
        "vidpipe tune --method aim --space 'methods.aim.bottleneck=choice(1)'",
        "vidpipe predict clip.mp4 --model m --top many",
    ],
)
def test_a_command_that_is_not_taken_is_seen(line: str) -> None:
    (words,) = commands(f"    {line}   # so")
    assert refused(words) is not None


# -- blocks ---------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A code block, with what stands in it and how."""

    page: str
    kind: str
    """python, shell, or the text that it is."""
    text: str

    @property
    def lines(self) -> list[str]:
        """Of a shell: one a command, without remarks."""
        joined = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        bare = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined)
        return [re.sub(r"\s+", " ", line) for line in bare if line]


def blocks() -> Iterator[Block]:
    for page, name in zip(PAGES, NAMES, strict=True):
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type == "fence" and token.info.startswith("{"):
                continue  # directives of the site, which a test builds
            if token.type in ("code_block", "fence"):
                words = re.findall(r"[\w.-]+", token.content)
                kind = "shell" if words[0] in SHELL else token.content.strip()
                if words[0] in ("import", "from") or words[0].startswith("mlflow.pyfunc."):
                    kind = "python"
                yield Block(name, kind, token.content)


SHELL = {"vidpipe", "make", "pip", "curl", "dvc", "mlflow", "export", "cd", "python"}
"""First words."""
BLOCKS = list(blocks())
LINES = {line for block in BLOCKS if block.kind == "shell" for line in block.lines}
NO_CODE = {
    "    src/vidpipe/": "the folders, which test_every_folder_of_the_design_is_there looks for",
    "    videos/": "a folder of the reader's",
    "    # AIM, CLIP": "the head of a recipe; tests/pipeline/infra/test_recipes.py reads all of them",
    '    {"model"': "an answer of `vidpipe serve`; tests/pipeline/tools/test_serving.py has it",
    "    synth ->": "the order of the stages",
}
"""Beginnings of the blocks that are neither Python nor a shell's, and what they are."""


def test_every_block_is_python_a_shells_or_known() -> None:
    others = [block for block in BLOCKS if block.kind not in ("python", "shell")]
    known = {
        block.text: [s for s in NO_CODE if block.text.startswith(s.strip())] for block in others
    }
    assert {text: found for text, found in known.items() if len(found) != 1} == {}
    assert {start for found in known.values() for start in found} == NO_CODE.keys()


def test_every_folder_of_the_design_is_there() -> None:
    (tree,) = (b.text for b in BLOCKS if b.text.startswith("src/vidpipe/"))
    for line in tree.splitlines():
        root = line.strip() if not line.startswith(" ") else root  # noqa: F821
        if line.startswith(" "):
            first = re.split(r"\s{2,}", line.strip())[0]
            for name in first.split():
                assert (PROJECT / root / name).exists(), f"{root}{name}"


PYTHON = {
    "README.md": "tests/src/test_front_door.py runs it, with a small backbone in CLIP's place",
    "docs/guides/serving.md": None,
    "docs/guides/importing.md": None,
}
"""Pages with Python, and who runs it where not a test below does."""


def test_python_is_run() -> None:
    assert {block.page for block in BLOCKS if block.kind == "python"} == PYTHON.keys()
    assert len([block for block in BLOCKS if block.kind == "python"]) == len(PYTHON)


def python_of(page: str) -> str:
    (text,) = (block.text for block in BLOCKS if block.page == page and block.kind == "python")
    return text


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="../shared/golden is not here")
def test_the_python_of_importing() -> None:
    golden = torch.load(SHARED / "golden/aim_k400.pt", weights_only=True)
    names = {key: golden[key] for key in ("state_dict", "meta")}
    exec(python_of("docs/guides/importing.md"), names)
    torch.testing.assert_close(names["model"](golden["input"]), golden["logits"], atol=1e-5, rtol=0)


def test_the_python_of_serving() -> None:
    """Its settings are those that a logged model has; tests/pipeline/infra/mlflow loads one."""
    seen = []
    pyfunc = SimpleNamespace(load_model=lambda uri, model_config: seen.append(model_config))
    names = {"uri": "models:/a@b", "mlflow": SimpleNamespace(pyfunc=pyfunc)}
    exec(python_of("docs/guides/serving.md"), names)
    assert seen[0].keys() <= {field.name for field in fields(Rules)}


# -- lines of a shell -----------------------------------------------------------------------------

RUN = (
    "vidpipe params --write --data-root videos --set data.layout=folders --set data.annotations=null "
    "--set evaluate.reversed_pairs=[]",
    "vidpipe profile --recipe modern/k400_zeroi2v_dinov3_b16_8f",
    "vidpipe data stats",
)
"""In seconds, on a store of ten clips."""
TOUR = (
    "vidpipe data show --clips 8 --epoch 3",
    "vidpipe train --method st_adapter --dry-run",
    "vidpipe train --method st_adapter",
    "vidpipe evaluate --method zeroi2v",
    "vidpipe export --method zeroi2v",
    "vidpipe explain --method zeroi2v --clips 4 --grad-cam",
    "vidpipe predict long.mp4 --model models/aim/package --window 10 --step 5 --out rows.parquet",
    "vidpipe predict long.mp4 --model models/aim/package --timeline --window 2 --smooth 3 "
    "--out long.vtt",
    "vidpipe embed videos/ --model models/aim/package --frames --out features.parquet",
    "vidpipe drift new_videos/ --model models/aim/package --videos data/synth",
)
"""One after the other, a quarter of an hour; with `models/zeroi2v` also as `models/aim`."""
NOT_RUN = {
    r"make (demo|test.*|docs|lint|setup)": "what CI runs, and this test in it",
    r"pre-commit install": "changes the reader's clone; its file is read below",
    r"pip install .*": "fetches packages; its extra is looked up below",
    r"cd .*": "a folder that the line before it makes",
    r"vidpipe params --write --data-root videos --set data.ann.*": "as the one that is run",
    r"(\w+=\S+ )?dvc exp .*": "trainings; tests/pipeline/test_dvc.py; keys are looked up below",
    r"dvc repro.*": "tests/e2e/test_pipeline.py; its stage is looked up below",
    r"curl .*/predict.*": "tests/e2e/test_serve.py asks so",
    r"(mlflow models serve|curl .*/invocations|export SERVING).*": "tests/e2e/test_serving.py",
    r"vidpipe serve .*": "tests/e2e/test_serve.py",
    r"vidpipe demo .*": "tests/e2e/test_demo_page.py",
    r"vidpipe init .*": "tests/pipeline/tools/test_init.py; it asks for a folder of videos",
    r"vidpipe doctor": "looks at the machine; tests/pipeline/tools/test_init.py",
    r"vidpipe data check.*": "refuses a store of ten clips; tests/pipeline/tools/test_data_check.py",
    r"vidpipe backbones .*": "a minute and more; tests/pipeline/tools/test_list_backbones.py",
    r"vidpipe profile --paper-tables": "two minutes; tests/src/test_profile.py",
    r"vidpipe profile --method .*": "as the one that is run, with a larger backbone",
    r"vidpipe run --recipe demo_.*": "a whole training; tests/e2e/test_tasks.py has it smaller",
    r"vidpipe (run|train) --recipe .* --data-root DIR.*": "data that the reader has",
    r"vidpipe study .*": "hours; tests/pipeline/stages/test_study.py",
    r"vidpipe tune .*": "a search; tests/e2e/test_search.py, tests/pipeline/stages/test_offsets.py",
    r"vidpipe train --method zeroi2v --set methods.zeroi2v.head_offsets=auto": "the same",
    r"vidpipe compare .*": "evaluations of two methods; tests/pipeline/stages/test_evaluate.py",
    r"vidpipe splits .*": "evaluations of three splits; tests/pipeline/stages/test_evaluate.py",
    r"vidpipe import-checkpoint .*": "an author's file; tests/src/interop/test_import.py",
    r"vidpipe (push|pull|predict .*hf:).*": "the hub; tests/src/trained/test_hub.py",
    r"vidpipe predict .*https.*": "fetches; tests/src/inference/test_fetch.py",
    r"vidpipe predict .*(--proposals|--detector).*": "tests/pipeline/tools/test_predict_people.py",
    r"vidpipe predict --live .*": "a camera; tests/pipeline/tools/test_predict_live.py",
}
"""Pattern of a line -> why no test here runs it, and which does. All lines are parsed above."""


def test_every_line_is_run_or_has_a_reason() -> None:
    reasons = {
        line: [p for p in NOT_RUN if re.fullmatch(p, line)]
        for line in LINES
        if line not in (*RUN, *TOUR)
    }
    assert {line: found for line, found in reasons.items() if len(found) != 1} == {}
    assert {p for found in reasons.values() for p in found} == NOT_RUN.keys()
    assert {*RUN, *TOUR} <= LINES
    for file in re.findall(r"tests/[\w/.]+", " ".join(NOT_RUN.values())):
        assert (PROJECT / file.rstrip(".")).exists(), file


def test_what_a_line_of_another_tool_names_is_there() -> None:
    for line in LINES:
        tool, *words = shlex.split(re.sub(r"^\w+=\S+ ", "", line))
        if tool == "pip":
            (extra,) = re.findall(r"^vidpipe\[(\w+)\]$", words[-1])
            assert extra in EXTRAS, line
        elif tool == "dvc":
            assert words.pop(0) in ("repro", "exp")
            values = [words[i + 1] for i, word in enumerate(words) if word == "-S"]
            for key, equals, value in (text.partition("=") for text in values):
                for one in value.split(","):
                    assert wrong_values({"set": [f"{key}{equals}{one}"]}) is None, line
            stages = {word.partition("@")[0] for word in words if word not in values}
            rest = {word for word in stages - STAGES if not word.startswith("-")}
            assert rest <= {"run", "show"}, line
        elif tool == "pre-commit":
            assert (PROJECT / ".pre-commit-config.yaml").is_file()
        elif tool == "export":
            config = json.loads(words[0].partition("=")[2])
            assert config.keys() <= {field.name for field in fields(Rules)}, line
        elif tool == "curl":
            (url,) = (urlsplit(word) for word in words if word.startswith("http"))
            assert url.path in ("/predict", "/invocations"), line
            assert parse_qs(url.query).keys() <= set(Query.model_fields), line
        else:
            assert tool in ("vidpipe", "make", "cd", "mlflow"), line


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> None:
    code = command(monkeypatch, *shlex.split(line)[1:])
    assert code == 0, f"{line}: {capsys.readouterr().err[-2000:]}"


def test_lines_run(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_project(in_folder)
    (in_folder / "videos/a").mkdir(parents=True)
    write_video(in_folder / "videos/a/a.mp4", moving(5))
    for line in RUN[1:]:
        call(monkeypatch, capsys, line)
    call(monkeypatch, capsys, RUN[0])  # it changes the parameters


@pytest.mark.long
def test_the_tour_runs(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_project(in_folder)
    for folder in ("videos", "new_videos", "data/synth"):
        (in_folder / folder).mkdir(parents=True, exist_ok=True)
        for number in range(3):
            file = in_folder / folder / f"c{number + 7}.mp4"
            write_video(file, np.roll(moving(20), 3 * number, 2))
    write_video(in_folder / "long.mp4", moving(400))
    call(monkeypatch, capsys, "vidpipe train --method zeroi2v")
    for line in TOUR:
        call(monkeypatch, capsys, line)
        if line.startswith("vidpipe export"):
            (in_folder / "models/aim").symlink_to(in_folder / "models/zeroi2v")


# -- files ----------------------------------------------------------------------------------------

ROOTS = ("", "src", "src/vidpipe", "pipeline")
"""Folders that a path in a span is below."""
MADE = re.compile(r"(results|models|outputs|ray|build|checkpoints|features)/|data/(synth|store)")
"""Folders that a run fills."""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_are_there(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    spans = re.findall(r"`(?:python )?([\w.-]+(?:/[\w.*-]*)+)(?: [^`]*)?`", text)
    missing = {
        span
        for span in spans
        if not OWN.search(span)
        and not MADE.match(span)
        and not any((PROJECT / root / span).exists() for root in ROOTS)
    }
    assert missing - ELSEWHERE.keys() == set()


ELSEWHERE = {
    **dict.fromkeys(("base/", "modern/"), "below pipeline/recipes, which the sentence names"),
    "../shared/golden": "beside the project, where it is at all",
}


# -- links and the site ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    made = {"recipes.md", "parameters.md", "figures"}
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve()
        assert file.exists() or made & set(file.parts), f"{page.name}: {target}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """From a copy, since pages are made beside the others."""
    import shutil

    for name in ("docs", "CHANGELOG.md", "README.md"):
        source = PROJECT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "site"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    recipes = (tmp_path / "site/recipes.html").read_text()
    assert "k400_aim_b16_8f" in recipes
    assert "83.9" in recipes
    parameters = (tmp_path / "site/parameters.html").read_text()
    assert "bottleneck_ratio" in parameters
    assert "NoneType" not in parameters
