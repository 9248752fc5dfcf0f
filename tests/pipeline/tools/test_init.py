"""`vidpipe init` and `doctor`: a project that runs, a proposal that fits the videos, nothing lost."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from clips import moving
from project import PROJECT
from typer.testing import CliRunner
from videos import write_video

from pipeline.cli.app import app
from pipeline.infra.project_files import FILES
from pipeline.infra.survey import Survey, survey
from pipeline.tools import doctor
from pipeline.tools import init as tool
from vidpipe.backbones.still import WEIGHTS
from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import Listing
from vidpipe.errors import VidpipeError
from vidpipe.params import STAGES, load_params

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def one_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(file, moving(20))
    return file


@pytest.fixture
def videos(tmp_path: Path, one_video: Path) -> Callable[..., Path]:
    """A folder with that video under each of `paths`."""

    def make(*paths: str) -> Path:
        for path in paths:
            (tmp_path / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one_video, tmp_path / "videos" / path)
        return tmp_path / "videos"

    return make


PEOPLE = [f"{do}/{who}_{do}.mp4" for do in ("run", "walk") for who in ("ann", "bob", "cy", "di")]


def call(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    return str(done.stdout)


def never(file: Path, difference: str) -> bool:
    raise AssertionError(f"{file} was there already:\n{difference}")


# -- what is written ----------------------------------------------------------------------------


def test_an_empty_folder_becomes_a_project_that_dvc_reads(in_folder: Path) -> None:
    assert call("init") == "next:\n  dvc repro\n"
    assert {str(p) for p in FILES} <= {
        str(p.relative_to(in_folder)) for p in in_folder.rglob("*") if p.is_file()
    }
    assert (in_folder / "weights/vit_still.safetensors").read_bytes() == WEIGHTS.read_bytes()
    params = load_params(Path("params.yaml"))
    assert params.pipeline.methods == tool.METHODS
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert list(stages) == ["synth", "extract", "train", "evaluate", "export", "report"]
    raw = yaml.safe_load(Path("params.yaml").read_text())
    for name, stage in stages.items():
        wanted = {"methods.${item.method}" if s == "methods" else s for s in STAGES[name]}
        assert set(stage["params"]) == wanted
        assert {s.partition(".")[0] for s in stage["params"]} <= raw.keys()
    shown = subprocess.run([*DVC, "stage", "list"], capture_output=True, text=True, check=True)
    assert shown.stdout.count("train@") == len(tool.METHODS)
    assert len(Path("params.yaml").read_text().splitlines()) < 90


def test_the_stages_are_those_of_our_own_project() -> None:
    own = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    template = (PROJECT / "pipeline/infra/templates/project/pipeline.yaml").read_text()
    for name, stage in own.items():
        assert f"cmd: {stage['cmd']}\n" in template
        for dependency in stage.get("deps", []):
            assert f"- {dependency}\n" in template, name


def test_files_that_are_there_are_kept_until_one_says_otherwise(in_folder: Path) -> None:
    Path("params.yaml").write_text("mine: 1\n")
    Path(".gitignore").write_text("*.log")
    Path("README.md").write_text("# Mine\n")
    done = CliRunner().invoke(app, ["init"])
    assert done.exit_code == 0
    assert "-mine: 1" in done.stderr
    assert "params.yaml: kept as it is; --force replaces it" in done.stderr
    assert Path("params.yaml").read_text() == "mine: 1\n"
    assert Path(".gitignore").read_text().startswith("*.log\n# made by vidpipe")
    call("init", "--force")
    assert "mine" not in Path("params.yaml").read_text()
    assert Path("README.md").read_text() == "# Mine\n"
    before = Path(".gitignore").read_text()
    tool.run(Path(), None, None, None, never)  # the same again asks nothing
    assert Path(".gitignore").read_text() == before


def test_a_folder_within_a_repository_of_another(in_folder: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    call("init", "sub folder")
    assert not Path("sub folder/.git").exists()
    assert Path("sub folder/.dvc/config").exists()


# -- what is proposed ---------------------------------------------------------------------------


def test_videos_are_looked_at_and_groups_seen(in_folder: Path, videos: Callable[..., Path]) -> None:
    root = videos(*PEOPLE)
    (root / "run/ann_broken.mp4").write_bytes(b"no video")
    found = survey(root, "x")
    told = "\n".join(found.lines())
    assert "layout     folders: a folder a class" in told
    assert "classes    2, with 4 to 5 videos" in told
    assert "groups     4 by */{*}_*: ann, bob, cy, di" in told
    assert "durations  0.8 to 0.8 s" in told
    assert "damaged    1 of 9 looked at: run/ann_broken.mp4 (undecodable)" in told
    call("init", "new", "--data", str(root))
    params = load_params(Path("new/params.yaml"))
    assert (params.data.root, params.data.layout) == (str(root), "folders")
    assert params.data.group == "*/{*}_*"
    assert params.transform.flip


def test_left_and_right_are_not_flipped_and_names_of_takes_are_no_groups(
    in_folder: Path, videos: Callable[..., Path]
) -> None:
    root = videos(
        *(f"turn_{side}/take{i}_{side}{i}.mp4" for side in ("left", "right") for i in range(5))
    )
    assert survey(root, "x").has_sides
    assert not survey(videos("upright/a.mp4", "bright/b.mp4"), "x").config.group
    call("init", "--data", str(root))
    assert not load_params(Path("params.yaml")).transform.flip


def test_a_table_with_other_names_of_its_columns(
    in_folder: Path, videos: Callable[..., Path]
) -> None:
    root = videos(*(f"{i}.mp4" for i in range(8)))
    with (root / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "action", "split"])
        rows.writerows([f"{i}.mp4", "ab"[i % 2], "val" if i > 5 else "train"] for i in range(8))
    call("init", "--data", str(root))
    data = load_params(Path("params.yaml")).data
    assert (data.layout, data.annotations) == ("table", "clips.csv")
    assert (data.columns.path, data.columns.label) == ("filename", "action")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "no videos found"),
        (("train/a/1.mp4", "val/a/2.mp4"), "its folders are splits (train, val), not classes"),
        (("only/1.mp4", "only/2.mp4"), "only one class"),
    ],
)
def test_what_is_no_data_set_is_a_line_and_nothing_is_written(
    in_folder: Path, videos: Callable[..., Path], paths: tuple[str, ...], message: str
) -> None:
    root = videos(*paths)
    root.mkdir(exist_ok=True)
    with pytest.raises(VidpipeError) as error:
        tool.run(Path("new"), root, None, None, never)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("new").exists()
    with pytest.raises(VidpipeError, match="no such folder"):
        tool.run(Path("new"), in_folder / "nope", None, None, never)


def test_weights_of_ones_own(in_folder: Path, videos: Callable[..., Path]) -> None:
    shutil.copyfile(WEIGHTS, "mine.safetensors")
    words = ["--weights", "mine.safetensors", "--backbone", "vit_still_patch12_48"]
    call("init", "--data", str(videos(*PEOPLE)), *words)
    params = load_params(Path("params.yaml"))
    assert (params.backbone.weights, params.transform.size) == ("mine.safetensors", None)
    with pytest.raises(VidpipeError, match=r"no\.safetensors: no such file"):
        tool.run(Path("b"), None, Path("no.safetensors"), "vit_still_patch12_48", never)
    with pytest.raises(VidpipeError, match="give both, or neither"):
        tool.run(Path("b"), None, Path("mine.safetensors"), None, never)


@pytest.mark.parametrize(
    ("backbone", "own", "pixels", "size"),
    [
        ("vit_small_patch14_dinov2", 518, 64, 112),
        ("vit_small_patch14_dinov2", 518, 240, 224),
        ("vit_base_patch16_clip_224", 224, 96, 112),
        ("vit_base_patch16_clip_224", 224, 240, None),
        ("vit_base_patch32_clip_224", 224, 96, None),  # 112 is no multiple of 32
        ("swin_base_patch4_window12_384", 384, 240, 224),
        ("vit_still_patch12_48", 48, 64, None),
    ],
)
def test_a_cpu_gets_pictures_that_it_manages(
    backbone: str, own: int, pixels: int, size: int | None
) -> None:
    seen = Survey(
        DataConfig(root="videos", layout="folders"),
        Listing([], ()),
        sizes=Counter({(pixels, 2 * pixels): 3}),
    )
    found, reason = tool._for_a_cpu(backbone, own, seen)
    assert found == size
    assert ("no GPU" in reason) == (size is not None)
    assert (f"{pixels} px" in reason) == (size == 112)


def test_a_hub_that_answers_gives_a_real_backbone(
    in_folder: Path, videos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "_hub_answers", lambda: True)
    commands = tool.run(Path("new"), videos(*PEOPLE), None, None, never)
    name = load_params(Path("new/params.yaml")).backbone.name
    assert any(f"vidpipe fetch-weights {name} weights/{name}.safetensors" in c for c in commands)


# -- doctor -------------------------------------------------------------------------------------


def test_the_doctor_finds_what_is_missing(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("init")
    (in_folder / "mlflow.db").unlink(missing_ok=True)
    well = {check.what: check for check in doctor.run(Path("params.yaml"), Path())}
    assert {check.what for check in well.values() if check.verdict == "missing"} == set()
    assert well["weights"].detail.startswith("weights/vit_still.safetensors: 0.5 M numbers")
    assert not Path("mlflow.db").exists()  # a look leaves nothing
    Path("weights/vit_still.safetensors").unlink()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ill = {check.what: check for check in doctor.run(Path("params.yaml"), Path())}
    assert ill["weights"].verdict == ill["Ray"].verdict == "missing"
    assert "fetch-weights" in ill["weights"].detail
    assert "connection refused" in ill["MLflow"].detail
    assert "missing  Ray" in call("doctor", code=1)
    Path("params.yaml").write_text("data: 1\n")
    (first, *_) = doctor.run(Path("params.yaml"), Path())
    assert first.verdict == "missing"
