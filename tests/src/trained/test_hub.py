"""Models on a hub, over loopback: what was pushed opens with the same answers, or it is a line."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
import yaml
from clips import moving
from hub_server import READER, Hub, running
from safetensors.torch import load_file, save_file
from small_models import backbone_file, save_tiny_adapter
from typer.testing import CliRunner
from videos import write_video

import vidpipe
from pipeline.cli.app import app
from pipeline.tools.hub import pull
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.errors import VidpipeError
from vidpipe.export.hub import About, push
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import Parity
from vidpipe.trained.hub import HubAddress, parse_address
from vidpipe.trained.package import open_model

REPO, T = "someone/clips", 4
CLIP = torch.randint(0, 256, (T, 3, 40, 50), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter and a package of one model, its backbone and another one."""
    root = tmp_path_factory.mktemp("made")
    state = load_file(WEIGHTS)
    save_file(state, root / "vit.safetensors")
    save_file({**state, "norm.bias": state["norm.bias"] + 1}, root / "other.safetensors")
    options = {"num_classes": 3, "num_frames": T, "weights": root / "vit.safetensors"}
    model = vidpipe.create_model("st_adapter", ARCHITECTURE, **options)
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    vidpipe.save(model, root / "adapter", classes=["left", "right", "up"])
    trained = open_model(root / "adapter")
    exported = inference_model(trained.model)
    save_package(root / "package", trained, exported, Parity(1, 0.0, 1.0, 1e-4))
    (root / "package" / "MODEL_CARD.md").write_text("# A card\n")
    (root / "package" / "model.pt2").write_bytes(b"a program")
    return root


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running(tmp_path / "cache") as server:
        yield server


def answers(source: str | Path, weights: Path | None = None) -> list[tuple[str, float]]:
    with vidpipe.load(source, weights=weights, device="cpu") as clf:
        return [tuple(guess) for guess in clf.predict(CLIP, top=3)]


def refused(source: str, weights: Path | None = None) -> str:
    with pytest.raises(VidpipeError) as error:
        vidpipe.load(source, weights=weights, device="cpu")
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 1000
    return line


# -- there and back -----------------------------------------------------------------------------


def test_a_package_comes_back_with_the_same_answers(made: Path, hub: Hub) -> None:
    address = push(made / "package", REPO)
    assert re.fullmatch(f"hf://{REPO}@[0-9a-f]{{40}}", str(address))
    held = {"README.md", "config.json", "model.safetensors", "parity.json", "MODEL_CARD.md"}
    assert set(hub.files(REPO)) == held  # and no program
    assert answers(str(address)) == answers(made / "package")


def test_an_adapter_tells_no_path_and_asks_for_its_backbone(made: Path, hub: Hub) -> None:
    address = push(made / "adapter", f"hf://{REPO}")
    held = hub.files(REPO)
    assert set(held) == {"README.md", "config.json", "adapter.safetensors"}
    assert not any(str(made).encode() in content for content in held.values())
    weights = made / "vit.safetensors"
    assert answers(str(address), weights) == answers(made / "adapter")
    assert "weights: hf://someone/clips@" in refused(str(address))
    assert "trained on weights" in refused(str(address), made / "other.safetensors")


def test_an_adapter_may_take_its_backbone_along(made: Path, hub: Hub) -> None:
    address = push(made / "adapter", REPO, backbone="include")
    assert "backbone.safetensors" in hub.files(REPO)
    assert answers(str(address)) == answers(made / "adapter")
    # Pushed once more without it, the file goes.
    push(made / "adapter", REPO)
    assert "backbone.safetensors" not in hub.files(REPO)
    assert answers(str(address)) == answers(made / "adapter")


def test_an_adapter_may_name_its_backbone_in_the_zoo(made: Path, hub: Hub, tmp_path: Path) -> None:
    tiny = save_tiny_adapter(tmp_path / "tiny", backbone_file(tmp_path / "tiny.safetensors"))
    push(tiny, REPO, backbone="hub:augreg_in21k")
    config = json.loads(hub.files(REPO)["config.json"])
    assert config["backbone"]["weights"] == "hub:augreg_in21k"
    assert (
        "base_model: timm/vit_tiny_patch16_224.augreg_in21k"
        in hub.files(REPO)["README.md"].decode()
    )
    with pytest.raises(VidpipeError, match=r"^backbone /etc/x: expected hub:TAG or include$"):
        push(made / "adapter", REPO, backbone="/etc/x")
    with pytest.raises(VidpipeError, match="a package holds its backbone"):
        push(made / "package", REPO, backbone="include")


def test_a_pinned_commit_stays_the_same_and_needs_no_hub(made: Path, hub: Hub) -> None:
    first = push(made / "package", REPO, tag="v1", branch="next")
    expected = answers(str(first))
    hub.put(REPO, {"config.json": b"{}", "model.safetensors": b""})
    assert answers(f"hf://{REPO}@v1") == expected
    assert answers(f"hf://{REPO}@next") == expected
    hub.asked.clear()
    assert answers(str(first)) == expected
    assert hub.asked == []
    with pytest.warns(UserWarning, match="no revision is named, so its main branch is taken, now "):
        assert "format None" in refused(f"hf://{REPO}")


def test_the_page_has_the_hubs_metadata(made: Path, hub: Hub) -> None:
    about = About(
        "cc-by-4.0", "Weizmann", {"top1": 0.5, "clips": 8, "top1_low": 0.1, "top1_high": 0.9}
    )
    push(made / "adapter", REPO, about=about)
    page = hub.files(REPO)["README.md"].decode()
    _, head, text = page.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "vidpipe"
    assert data["pipeline_tag"] == "video-classification"
    assert data["license"] == "cc-by-4.0"
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["name"] == "Weizmann"
    assert result["metrics"][0]["value"] == 50.0
    assert "10.0 to 90.0" in text
    assert "left, right, up" in text
    assert 'vidpipe.load("hf://someone/clips@REVISION", weights="backbone.safetensors")' in text


def test_pull_writes_a_folder_that_opens(made: Path, hub: Hub, tmp_path: Path) -> None:
    address = push(made / "adapter", REPO)
    said = pull(
        str(address).removeprefix("hf://"), tmp_path / "mine", str(made / "vit.safetensors"), False
    )
    assert said.endswith(f"mine: st_adapter on vit_still_patch12_48, 3 classes, from {address}")
    assert not any(file.is_symlink() for file in (tmp_path / "mine").iterdir())
    shutil.rmtree(tmp_path / "cache")
    assert answers(tmp_path / "mine") == answers(made / "adapter")
    with pytest.raises(VidpipeError, match="mine: exists already; name another folder, or --force"):
        pull(str(address), tmp_path / "mine", None, False)


def test_the_commands_share_a_model_and_predict_from_it(
    made: Path, hub: Hub, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", moving(20))
    pushed = call("push", str(made / "package"), REPO, "--licence", "mit").strip()
    assert pushed.startswith(f"hf://{REPO}@")
    assert "license: mit" in hub.files(REPO)["README.md"].decode()
    assert pushed in call("pull", pushed, str(tmp_path / "mine"))
    rows = [
        json.loads(call("predict", str(tmp_path / "a.mp4"), "--format", "jsonl", "--model", model))
        for model in (pushed, str(tmp_path / "mine"))
    ]
    assert rows[0]["model"] == "clips"
    assert rows[0]["probabilities"] == rows[1]["probabilities"] != []


def call(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stdout


# -- what is refused ----------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "model.pt2"}


Change = Callable[[dict[str, bytes]], Mapping[str, bytes]]


def with_weights(place: str) -> Change:
    def changed(files: dict[str, bytes]) -> Mapping[str, bytes]:
        config = json.loads(files["config.json"])
        config["backbone"]["weights"] = place
        return {**files, "config.json": json.dumps(config).encode()}

    return changed


POISON: dict[str, tuple[Change, str]] = {
    "pickle": (lambda f: {**f, "training_args.bin": b"\x80"}, "has training_args.bin, a format"),
    "pickle in a folder": (lambda f: {**f, "a/b.PKL": b"\x80"}, "has a/b.PKL, a format that can run"),
    "code": (lambda f: {**f, "modeling.py": b"import os"}, "has modeling.py, a format that can run"),
    "program": (lambda f: {**f, "model.pt2": b"PK"}, "has model.pt2, a format that can run"),
    "upwards": (lambda f: {**f, "../evil.json": b"{}"}, "has the path ../evil.json, which leads out"),
    "absolute": (lambda f: {**f, "/etc/evil.json": b"{}"}, "has the path /etc/evil.json, which"),
    "backslash": (lambda f: {**f, "..\\evil": b"{}"}, "has the path ..\\evil, which leads out"),
    "escape": (lambda f: {**f, "\x1b[2J.pkl": b""}, r"has \x1b[2J.pkl, a format"),
    "no model": (lambda f: {"README.md": b""}, "no model of vidpipe; expected config.json and"),
    "no card": (lambda f: {**f, "config.json": b"[]"}, "expected the description of a model"),
    "huge card": (lambda f: {**f, "config.json": b" " * 2**24 + b"{}"}, "config.json is larger than"),
    "no tensors": (lambda f: {**f, "adapter.safetensors": b"x"}, "not a readable safetensors file"),
    "a path of this machine": (with_weights("/etc/passwd"), "does not hold that backbone; name a file"),
    "a path upwards": (with_weights("../../x.safetensors"), "does not hold that backbone"),
    "a file that is not there": (with_weights("backbone.safetensors"), "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("harm", POISON)
def test_a_poisoned_repository_is_refused_in_a_line(
    made: Path, hub: Hub, tmp_path: Path, harm: str
) -> None:
    change, message = POISON[harm]
    commit = hub.put(REPO, change(files_of(made / "adapter")))
    weights = made / "vit.safetensors" if harm == "no tensors" else None
    assert message in refused(f"hf://{REPO}@{commit}", weights)
    before = {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in path.parents}
    with pytest.raises(VidpipeError):
        pull(f"{REPO}@{commit}", tmp_path / "mine", None, False)
    assert {
        path for path in tmp_path.rglob("*") if tmp_path / "cache" not in path.parents
    } == before


def test_bytes_that_are_not_what_the_hub_recorded_are_refused(made: Path, hub: Hub) -> None:
    commit = hub.put(REPO, files_of(made / "package"))
    content = hub.files(REPO)["model.safetensors"]
    hub.altered["model.safetensors"] = content[:-4] + b"\0\0\0\0"  # finite numbers all the same
    assert "model.safetensors is not what the hub recorded (sha256 " in refused(
        f"hf://{REPO}@{commit}"
    )
    hub.altered.clear()
    assert answers(f"hf://{REPO}@{commit}") == answers(made / "package")


def test_another_backbone_that_travels_along_is_refused(made: Path, hub: Hub) -> None:
    push(made / "adapter", REPO, backbone="include")
    held = dict(hub.files(REPO))
    held["backbone.safetensors"] = (made / "other.safetensors").read_bytes()
    commit = hub.put(REPO, held)
    assert "trained on weights" in refused(f"hf://{REPO}@{commit}")


def test_what_the_hub_does_not_give_is_a_line(
    made: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such repository, or a private one" in refused("hf://no/body@v1")
    push(made / "package", REPO)
    assert "hf://someone/clips@v9: the repository has no such revision" in refused(
        f"hf://{REPO}@v9"
    )
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "no usable answer of the hub (ConnectError: " in refused(f"hf://{REPO}@main")
    with pytest.raises(VidpipeError, match=r"^hf://someone/clips: no usable answer of the hub \("):
        push(made / "package", REPO)


def test_a_hub_that_forbids_writing_is_a_line(made: Path, tmp_path: Path) -> None:
    with running(tmp_path / "cache", READER), pytest.raises(VidpipeError) as error:
        push(made / "package", REPO)
    assert str(error.value) == (
        "hf://someone/clips: the hub refuses this (Forbidden: this token has no write access); "
        "`hf auth login` with a token that may do it"
    )


def test_a_folder_that_does_not_open_is_not_pushed(made: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match="trained on weights"):
        push(made / "adapter", REPO, weights=str(made / "other.safetensors"))
    broken = Path(shutil.copytree(made / "package", tmp_path / "broken"))
    os.truncate(broken / "model.safetensors", 500)
    with pytest.raises(VidpipeError, match="not a readable safetensors file"):
        push(broken, REPO)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", HubAddress("a", None)),
        ("a/b@v1.0", HubAddress("a/b", "v1.0")),
        ("hf://a/b@refs/pr/3", HubAddress("a/b", "refs/pr/3")),
    ],
)
def test_an_address_is_read(text: str, expected: HubAddress) -> None:
    assert parse_address(text).revision == expected.revision
    assert parse_address(text).repo == "a/b"


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/..", "hf://a/b@../x"),
        *("hf://a b/c", "hf://a/b@x y", "hf://a/b@\x1b", "hf:///etc/passwd", "hf://a/b@-\n"),
    ],
)
def test_what_is_no_address_is_a_line(text: str) -> None:
    with pytest.raises(VidpipeError, match="expected hf://OWNER/NAME") as error:
        parse_address(text)
    assert error.value.args[0].isprintable()
