"""The HTTP API of `vidpipe serve`, over real models and decoders, without Ray."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alone import Alone
from people import people, small_detector
from prometheus_client.parser import text_string_to_metric_families
from small_models import two_models_and_a_package
from starlette.testclient import TestClient
from videos import good_and_bad_videos

import vidpipe
from pipeline.tools.serving.run import hosts_of, is_loopback, refuse_names
from pipeline.tools.serving.service import Service, Settings
from pipeline.tools.serving.web import application
from vidpipe.errors import VidpipeError
from vidpipe.inference.given import Rules
from vidpipe.inference.segments import Request, segments
from vidpipe.serving.answering import Item
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.predictor import predict_extract
from vidpipe.video.guard import Guards

VIDEO = {"Content-Type": "video/mp4"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, videos, and a detector of people's actions, below one folder."""
    root = tmp_path_factory.mktemp("served")
    two_models_and_a_package(root)
    (root / "videos").mkdir()
    good_and_bad_videos(root / "videos")
    people(root / "people", train=1, val=1)
    (root / "weights").mkdir()
    save_adapter(root / "boxes", small_detector(root / "weights"), {})
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> Settings:
    models = (("one", root / "one" / "adapter"), ("two", root / "two"), ("boxes", root / "boxes"))
    return Settings(models, Rules(root, urls=True, max_mb=1, timeout_s=60), max_queue=3, decoders=1)


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[Service]:
    service = Service(settings)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(application(service, Alone(service)))


def under(service: Service, **options: Any) -> Service:
    """The same models and decoders under other settings."""
    other = copy.copy(service)
    other.settings = replace(service.settings, **options)
    return other


def with_settings(service: Service, **options: Any) -> TestClient:
    other = under(service, **options)
    return TestClient(application(other, Alone(other)))


def refused(answer: Any) -> tuple[int, str]:
    """Status and reason of a refusal, which is one line of JSON."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.text.endswith("\n")
    assert answer.text.count("\n") == 1
    said = json.loads(answer.text)
    assert said.keys() == {"error", "reason"}
    return answer.status_code, said["reason"]


def video(root: Path, name: str = "good0") -> bytes:
    return (root / "videos" / f"{name}.mp4").read_bytes()


# -- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "two"])
def test_labels_are_the_classifiers(client: TestClient, root: Path, name: str) -> None:
    """Sent in each of the ways, which all lead to the same frames."""
    file = root / "videos" / "good1.mp4"
    folder = root / "one" / "adapter" if name == "one" else root / name
    with vidpipe.load(folder, device="cpu") as classifier:
        expected = classifier.predict(file, top=2)
    form = {"video": ("clip.mp4", file.read_bytes(), "video/mp4")}
    for answer in (
        client.post(f"/predict/{name}?top=2", content=file.read_bytes(), headers=VIDEO),
        client.post(f"/predict?model={name}&top=2", content=file.read_bytes()),
        client.post(f"/predict/{name}", files=form, data={"top": "2"}),
        client.post(f"/predict/{name}", json={"path": "videos/good1.mp4", "top": 2}),
        client.post("/predict", json={"path": str(file), "top": 2, "model": name}),
    ):
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert (said["model"], said["answer"]) == (name, "labels")
        assert [each["label"] for each in said["labels"]] == [guess.label for guess in expected]
        scores = [each["score"] for each in said["labels"]]
        assert scores == pytest.approx([guess.probability for guess in expected], abs=1e-5)
        assert said["seconds"] == pytest.approx(37 / 25, abs=1e-3)


def test_a_timeline_is_that_of_predict(client: TestClient, root: Path, tmp_path: Path) -> None:
    from pipeline.tools import predict_timeline
    from pipeline.tools.predict import Job

    out = tmp_path / "rows.json"
    job = Job(folders=(root / "two",), workers=1, window_s=0.4, step_s=0.1)
    how = predict_timeline.Timeline(3, 0.2, 0.1)
    predict_timeline.run(job, [str(root / "videos" / "good1.mp4")], how, out=out)
    expected = [(r["start"], r["end"], r["label"]) for r in json.loads(out.read_text())]
    asked = "answer=timeline&window=0.4&step=0.1&smooth=3&threshold=0.2&min_length=0.1"
    said = client.post(f"/predict/two?{asked}", content=video(root, "good1"), headers=VIDEO).json()
    assert [(r["start"], r["end"], r["label"]) for r in said["timeline"]] == expected
    assert len(expected) > 1


def test_boxes_are_those_of_predict(client: TestClient, root: Path, tmp_path: Path) -> None:
    from pipeline.tools import predict_people
    from pipeline.tools.predict import Job

    boxes = [[1, 0.1, 0.2, 0.3, 0.8], [2, 0.5, 0.1, 0.9, 0.9], [1, 0.6, 0.2, 0.8, 0.7]]
    file = root / "people" / "val_0.mp4"
    body = {"path": "people/val_0.mp4", "boxes": boxes, "top": 3}
    said = client.post("/predict/boxes", json=body).json()
    assert said["answer"] == "boxes"
    found = [(row["second"], *row["box"]) for row in said["boxes"]]
    assert found == [pytest.approx(boxes[i]) for i in (0, 2, 1)]
    asked = {"boxes": json.dumps(boxes), "top": 3}
    again = client.post("/predict/boxes", params=asked, content=file.read_bytes(), headers=VIDEO)
    assert again.json()["boxes"] == said["boxes"]
    csv, out = tmp_path / "proposals.csv", tmp_path / "rows.jsonl"
    csv.write_text("".join(f"val_0,{','.join(map(str, box))},0.9\n" for box in boxes))
    job = Job(folders=(root / "boxes",), workers=1)
    predict_people.run(job, [str(file)], predict_people.Who(csv), top=3, out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3
    for row, own in zip(rows, said["boxes"], strict=True):
        assert row["box"] == pytest.approx(own["box"])
        assert row["labels"] == [each["label"] for each in own["labels"]]
        scores = [each["score"] for each in own["labels"]]
        assert row["probabilities"] == pytest.approx(scores, abs=1e-5)
    late = {**body, "boxes": [[9, 0, 0, 1, 1]]}
    assert refused(client.post("/predict/boxes", json=late)) == (422, "too_short")


def test_without_a_detector_boxes_have_to_be_given(client: TestClient, root: Path) -> None:
    answer = client.post("/predict/boxes", json={"path": "people/val_0.mp4"})
    assert refused(answer) == (422, "bad_parameter")


def test_the_default_number_of_labels_is_the_servers(service: Service, root: Path) -> None:
    answer = with_settings(service, top=1).post("/predict/one", content=video(root))
    assert len(answer.json()["labels"]) == 1


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "headers", "expected"),
    [
        ("/predict/one", b"not a video", VIDEO, (400, "undecodable")),
        ("/predict/one", b"", VIDEO, (400, "empty")),
        ("/predict/one", bytes(2**20 + 1), VIDEO, (413, "too_large")),
        ("/predict/one", b"a", {"Content-Type": "text/html"}, (415, "wrong_kind")),
        ("/predict/one", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"},
         (415, "wrong_kind")),
        ("/predict/three", b"a", VIDEO, (404, "unknown_model")),
        ("/predict/..%2fone", b"a", VIDEO, (404, "no_route")),
        ("/predict?model=%00", b"a", VIDEO, (404, "unknown_model")),
        ("/predict", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?top=0", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?top=x", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?tpo=3", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?window=nan", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?answer=timeline", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?answer=timeline&window=1&step=2", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?answer=boxes", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one?boxes=[[1,0,0,1,1]]", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/boxes?answer=labels", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/boxes?boxes=[[1,1,0,0,1]]", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/boxes?boxes=[[", b"a", VIDEO, (422, "bad_parameter")),
        ("/predict/one", b"{", {"Content-Type": "application/json"}, (400, "bad_json")),
        ("/predict/one", b"[" * 9999, {"Content-Type": "application/json"}, (400, "bad_json")),
        ("/predict/one", b"[]", {"Content-Type": "application/json"}, (422, "bad_parameter")),
        ("/predict/one", bytes(2**21), {"Content-Type": "application/json"}, (413, "too_large")),
        ("/predict/one", b"--x", {"Content-Type": "multipart/form-data"}, (400, "bad_form")),
        ("/predict/one", b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"},
         (422, "bad_parameter")),
        ("/nothing", b"", {}, (404, "no_route")),
        ("/models", b"", {}, (405, "wrong_method")),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_status(
    client: TestClient, path: str, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    assert refused(client.post(path, content=body, headers=headers)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"path": "../x"}, (403, "outside_root")),
        ({"path": "/etc/passwd"}, (403, "outside_root")),
        ({"path": "link.mp4"}, (403, "outside_root")),
        ({"path": "absent.mp4"}, (404, "missing_file")),
        ({"path": 3}, (422, "bad_parameter")),
        ({"path": "videos/cut.mp4"}, (400, "truncated")),
        ({"url": "file:///etc/passwd"}, (422, "bad_parameter")),
        ({"url": "http://127.0.0.1:9/a.mp4"}, (403, "private_address")),
        ({"url": "http://localhost:9/a.mp4"}, (403, "private_address")),
        ({"url": "http://169.254.169.254/latest"}, (403, "private_address")),
        ({"url": "http://nothing.invalid/a"}, (400, "missing_file")),
        ({"bytes": "AAAA"}, (422, "bad_parameter")),
        ({}, (422, "bad_parameter")),
    ],
)
def test_paths_and_urls_are_those_that_the_rules_have(
    client: TestClient, root: Path, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    link = root / "link.mp4"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    assert refused(client.post("/predict/one", json=body)) == expected


def test_without_root_and_urls_there_are_bytes_only(service: Service, root: Path) -> None:
    bare = with_settings(service, rules=Rules())
    for body in ({"path": "videos/good0.mp4"}, {"url": "http://host/a.mp4"}):
        assert refused(bare.post("/predict/one", json=body))[0] == 403
    assert bare.post("/predict/one", content=video(root)).status_code == 200


def test_a_form_is_limited_however_it_is_cut(client: TestClient, root: Path) -> None:
    def form(*sizes: int) -> Any:
        files = [("video", ("a.mp4", bytes(size), "video/mp4")) for size in sizes]
        return client.post("/predict/one", files=files)

    assert refused(form(2**20 + 1)) == (413, "too_large")
    assert refused(form(5 * 2**20)) == (413, "too_large")
    assert refused(form(10, 10))[0] in (400, 422)
    assert refused(form(0)) == (400, "empty")


def test_a_body_of_unknown_length_is_limited_as_it_comes(service: Service) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield bytes(2**16)

    client = with_settings(service)
    assert refused(client.post("/predict/one", content=chunks(), headers=VIDEO)) == (
        413,
        "too_large",
    )


def test_nothing_stays_on_disk(client: TestClient, service: Service, root: Path) -> None:
    for body in (video(root), b"not a video", bytes(2**20 + 1)):
        client.post("/predict/one", content=body, headers=VIDEO)
        client.post("/predict/one", files={"video": ("a", body, "video/mp4")})
    assert not list(service.scratch.iterdir())


def test_a_fault_of_ours_is_one_line_too(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.shelf.models["one"].predictor, "models", None)
    client = with_settings(service)
    answer = client.post("/predict/one", content=video(root))
    assert refused(answer) == (500, "internal")
    assert "NoneType" not in answer.text
    assert client.post("/predict/two", content=video(root)).status_code == 200


def test_a_batch_is_not_spoiled_by_one_of_its_models(
    service: Service, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = []
    for name in ("one", "two", "one"):
        model = service.shelf.models[name]
        wanted = Request(predict_extract(model.frames), model.predictor.samplings)
        items.append(Item(model, next(segments(str(root / "videos/good0.mp4"), wanted)), "a"))
    good = service.compute(items)
    assert torch.allclose(good[0][2], good[2][2])
    monkeypatch.setattr(service.shelf.models["one"].predictor, "models", None)
    found = service.compute(items)
    assert [isinstance(each, Exception) for each in found] == [True, False, True]
    np.testing.assert_allclose(found[1][2], good[1][2], atol=1e-6)


# -- a bounded queue ------------------------------------------------------------------------------


def test_who_comes_when_it_is_full_is_sent_away(service: Service, root: Path) -> None:
    """Three are let in and wait for a decoder that does not move; others get a 429 at once."""
    import httpx

    client = with_settings(service)
    go = asyncio.Event()

    async def asked() -> list[Any]:
        other = client.app
        transport = httpx.ASGITransport(other)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as http:
            read = asyncio.Event()

            async def slow() -> Any:
                yield video(root)[:100]
                read.set()
                await go.wait()
                yield video(root)[100:]

            first = [
                asyncio.create_task(http.post("/predict/one", content=slow(), headers=VIDEO))
                for _ in range(3)
            ]
            await read.wait()
            while service.measures.in_flight < 3:
                await asyncio.sleep(0.01)
            full = [await http.post("/predict/one", content=video(root)) for _ in range(2)]
            health = await http.get("/health")
            assert health.json() == {"status": "ok", "in_flight": 3}
            go.set()
            return [*full, *await asyncio.gather(*first)]

    answers = asyncio.run(asked())
    for answer in answers[:2]:
        assert refused(answer) == (429, "full")
        assert answer.headers["retry-after"] == "1"
    assert [answer.status_code for answer in answers[2:]] == [200] * 3
    assert service.measures.in_flight == 0


def test_an_answer_that_takes_too_long_is_given_up(service: Service, root: Path) -> None:
    hasty = under(service, rules=replace(service.settings.rules, timeout_s=0.05))
    client = TestClient(application(hasty, Alone(hasty)))

    async def never(item: Any) -> Any:
        await asyncio.sleep(0.5)
        raise AssertionError("nobody waits for it")

    host = Alone(hasty)
    host.together = never  # type: ignore[method-assign]
    client = TestClient(application(hasty, host))
    answer = client.post("/predict/one", content=video(root))
    assert refused(answer) == (503, "slow")
    assert answer.headers["retry-after"] == "1"
    assert service.measures.in_flight == 0


# -- models that come and go ----------------------------------------------------------------------


def test_a_model_is_loaded_used_and_unloaded(settings: Settings, root: Path) -> None:
    service = Service(replace(settings, models=settings.models[:1]))
    host = Alone(service)
    client = TestClient(application(service, host))
    assert client.post("/predict", content=video(root)).json()["model"] == "one"
    before = client.get("/models").json()
    assert before["memory_mb"]["shared"] == 0

    answer = client.post("/admin/models", json={"path": "two"})
    assert answer.status_code == 201, answer.text
    assert answer.json()["name"] == "two"
    now = client.get("/models").json()
    assert [model["name"] for model in now["models"]] == ["one", "two"]
    assert now["memory_mb"]["shared"] > 0.8 * before["memory_mb"]["total"]
    assert now["memory_mb"]["total"] < 1.3 * before["memory_mb"]["total"]
    assert [name for name, _ in host.kept] == ["one", "two"]
    assert client.post("/predict/two", content=video(root)).status_code == 200

    named = client.post("/admin/models", json={"path": "one/package", "name": "whole"})
    assert named.status_code == 201
    for name in ("two", "whole"):
        assert client.delete(f"/admin/models/{name}").json() == {"unloaded": name}
    assert refused(client.delete("/admin/models/two")) == (404, "unknown_model")
    assert refused(client.post("/predict/two", content=video(root))) == (404, "unknown_model")
    assert client.get("/models").json() == before
    assert [name for name, _ in host.kept] == ["one"]
    # A replica that starts later has what was kept.
    assert list(Service(settings, host.kept).shelf.models) == ["one"]
    service.close()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"path": "../x"}, (403, "outside_root")),
        ({"path": "absent"}, (404, "missing_file")),
        ({"path": "videos"}, (422, "no_model")),
        ({"path": "videos/good0.mp4"}, (404, "missing_file")),
        ({"path": "two", "name": "../a"}, (422, "bad_parameter")),
        ({"path": "two", "name": 3}, (422, "bad_parameter")),
        ({"path": "two", "weights": "x"}, (422, "bad_parameter")),
        ({}, (422, "bad_parameter")),
    ],
)
def test_what_is_no_model_below_the_root_is_not_loaded(
    client: TestClient, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refused(client.post("/admin/models", json=body)) == expected
    assert len(client.get("/models").json()["models"]) == 3


def test_models_are_changed_by_who_may(service: Service, root: Path) -> None:
    body = {"path": "two"}
    for options in ({"admin": False}, {"rules": Rules()}):
        closed = with_settings(service, **options)
        assert refused(closed.post("/admin/models", json=body)) == (403, "no_admin")
        assert refused(closed.delete("/admin/models/one")) == (403, "no_admin")
    guarded = with_settings(service, token="secret")
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
        assert refused(guarded.post("/admin/models", json=body, headers=headers)) == (
            401,
            "no_token",
        )
    shown = {"Authorization": "Bearer secret"}
    assert guarded.post("/admin/models", json=body, headers=shown).status_code == 201
    plain = guarded.post("/admin/models", content=json.dumps(body), headers=shown)
    assert refused(plain) == (415, "wrong_kind"), "a form of another site's page"


def test_another_sites_page_is_not_answered(service: Service) -> None:
    own = with_settings(service, hosts=hosts_of("127.0.0.1", 8000))
    for headers, status in (
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "rebound.example:8000"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    ):
        assert own.get("/models", headers=headers).status_code == status
    assert hosts_of("0.0.0.0", 8000) is None
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_names_are_told_apart() -> None:
    refuse_names(["a", "b-1.c"])
    with pytest.raises(VidpipeError, match="a: two models have this name; call one NAME=FOLDER"):
        refuse_names(["a", "b", "a"])
    with pytest.raises(VidpipeError, match=r"a/b: no name of a model"):
        refuse_names(["a/b"])


# -- numbers --------------------------------------------------------------------------------------


def test_metrics_are_prometheus_text_that_adds_up(settings: Settings, root: Path) -> None:
    service = Service(replace(settings, models=settings.models[:2]))
    client = TestClient(application(service, Alone(service)))
    for body in (video(root), video(root, "good1"), b"not a video"):
        client.post("/predict/one", content=body, headers=VIDEO)
    client.post("/predict/none", content=b"a")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "replica"}
            found[sample.name, *labels.values()] = sample.value
    assert found["vidpipe_requests_total", "predict", "200"] == 2
    assert found["vidpipe_requests_total", "predict", "400"] == 1
    assert found["vidpipe_requests_total", "predict", "404"] == 1
    assert found["vidpipe_predict_seconds_count",] == 2
    assert found["vidpipe_predict_seconds_bucket", "+Inf"] == 2
    assert found["vidpipe_items_total",] == 2
    assert found["vidpipe_models",] == 2
    assert found["vidpipe_in_flight",] == 0
    assert 0 < found["vidpipe_shared_mb",] < found["vidpipe_model_mb",]
    service.close()


def test_a_decoder_that_died_is_replaced(service: Service, client: TestClient, root: Path) -> None:
    assert client.post("/predict/one", content=video(root)).status_code == 200
    (guards,) = service._decoders
    assert isinstance(guards, Guards)
    for decoder in guards._decoders:
        decoder.process.kill()
        decoder.process.join()
    assert refused(client.post("/predict/one", content=video(root))) == (400, "crashed")
    assert client.post("/predict/one", content=video(root)).status_code == 200


def test_a_model_whose_files_are_gone_still_answers(settings: Settings, root: Path) -> None:
    """It is in memory; what is on disk is read when it is loaded, not later."""
    folder = root / "gone"
    shutil.copytree(root / "two", folder)
    service = Service(replace(settings, models=(("gone", folder),)))
    shutil.rmtree(folder)
    client = TestClient(application(service, Alone(service)))
    assert client.post("/predict", content=video(root)).status_code == 200
    service.close()
