"""What of a stranger's video is let in: paths below a root, URLs, bytes; and why the rest is not."""

from __future__ import annotations

import base64
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from videos import good_and_bad_videos

from vidpipe.data.config import SamplingConfig
from vidpipe.inference.fetch import PrivateAddressError
from vidpipe.inference.given import (
    Refused,
    Rules,
    Wanted,
    decoded,
    given_decoder,
    refusal,
    source_of,
)
from vidpipe.inference.segments import Request
from vidpipe.trained.predictor import predict_extract
from vidpipe.video.quarantine import REASONS, QuarantineError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root/videos`, and beside it what must not be read; links that lead there."""
    top = tmp_path_factory.mktemp("given")
    (top / "secret.mp4").write_bytes(b"secret")
    (top / "rootless").mkdir()  # its name begins as the root's does
    (top / "rootless" / "a.mp4").write_bytes(b"secret")
    root = top / "root"
    (root / "videos").mkdir(parents=True)
    good_and_bad_videos(root / "videos")
    (root / "link.mp4").symlink_to(top / "secret.mp4")
    (root / "up").symlink_to(top)
    (root / "inside.mp4").symlink_to(root / "videos" / "good0.mp4")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe.mp4")
    return root


def status_of(call: Any, *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value.status, caught.value.reason


def test_files_below_the_root_are_read(root: Path) -> None:
    rules = Rules(root)
    wanted = (root / "videos" / "good0.mp4").resolve()
    for text in ("videos/good0.mp4", "videos/../videos/good0.mp4", str(wanted), "inside.mp4"):
        assert rules.path(text) == wanted
    assert rules.path("videos", folder=True) == wanted.parent


@pytest.mark.parametrize(
    "text",
    [
        "../secret.mp4",
        "videos/../../secret.mp4",
        "/etc/passwd",
        "link.mp4",
        "up/secret.mp4",
        "../rootless/a.mp4",
        "../root/../secret.mp4",
        "../nothing-is-here.mp4",
        "/proc/self/environ",
    ],
)
def test_nothing_else_is_whatever_lies_there(root: Path, text: str) -> None:
    assert status_of(Rules(root).path, text) == (403, "outside_root")


@pytest.mark.parametrize("text", ["absent.mp4", "videos", "pipe.mp4", "videos/good0.mp4/a"])
def test_what_is_no_file_is_not_found(root: Path, text: str) -> None:
    assert status_of(Rules(root).path, text) == (404, "missing_file")


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800", "x" * 5000, "loop", 3, None, ["a"]])
def test_what_is_no_path_is_a_bad_parameter(root: Path, text: Any) -> None:
    assert status_of(Rules(root).path, text) in [(422, "bad_parameter"), (404, "missing_file")]


def test_without_a_root_no_path_is_read(root: Path) -> None:
    file = str(root / "videos" / "good0.mp4")
    assert status_of(Rules().path, file) == (403, "no_root")


@examples(text=st.text(st.sampled_from("./\\ab~\0\u202e%2e"), min_size=1, max_size=40))
def test_no_path_of_any_make_leads_out(text: str) -> None:
    rules = Rules(Path(__file__).parent)
    with suppress(Refused):
        assert Path(__file__).parent.resolve() in rules.path(text).parents


@pytest.mark.parametrize("url", ["http://host/a.mp4", "https://host:8443/a?b=c"])
def test_urls_are_fetched_only_where_that_is_allowed(url: str) -> None:
    assert Rules(urls=True).url(url) == url
    assert status_of(Rules().url, url) == (403, "no_urls")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/a",
        "s3://bucket/a",
        "gs://bucket/a",
        "zip::http://host/a.zip",
        "local://x",
        "memory://x",
        "http://",
        "http:///a",
        "http://host:port/",
        "http://[::1/",
        "http://[::1]/a",
        "http://host/a.zip::b",
        "http://host/\r\nHost: other",
        "//host/a",
        "a.mp4",
        7,
    ],
)
def test_other_urls_are_no_addresses(url: Any) -> None:
    assert status_of(Rules(urls=True).url, url) == (422, "bad_parameter")


def test_bytes_lie_in_a_file_for_a_while(tmp_path: Path) -> None:
    given = {"bytes": base64.b64encode(b"a video").decode()}
    with source_of(given, Rules(), tmp_path) as source:
        assert Path(source).read_bytes() == b"a video"
        assert Path(source).parent == tmp_path
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), source_of(given, Rules(), tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"bytes": "a*b="}, 422),
        ({"bytes": 3}, 422),
        ({"bytes": base64.b64encode(bytes(2**20)).decode()}, 413),
        ({}, 422),
        ({"path": "a", "url": "http://host/a"}, 422),
        ({"file": "a"}, 422),
    ],
)
def test_what_is_no_video_is_refused(given: dict[str, Any], status: int, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught, source_of(given, Rules(max_mb=0.5), tmp_path):
        pass
    assert caught.value.status == status


def request(rules: Rules) -> Request:
    extract = predict_extract({"short_side": 32, "fps": None}, **rules.limits)
    sampling = SamplingConfig(strategy="uniform", num_frames=4)
    return Request(extract, (sampling,), only_public=not rules.private_urls)


def test_one_decoder_takes_good_and_bad_videos(root: Path) -> None:
    rules = Rules(root, urls=True, timeout_s=30)
    videos = root / "videos"
    with given_decoder(rules.timeout_s) as decoder:

        def status(source: str, wanted: Rules = rules) -> int:
            try:
                (found,) = decoded(Wanted(source, request(wanted)), decoder)
            except Refused as error:
                return error.status
            assert found.frames.shape[1] == 32
            return 200

        files = ("good0.mp4", "cut.mp4", "text.mp4", "deep/empty.mp4", "good1.mp4")
        assert [status(str(videos / name)) for name in files] == [200, 400, 400, 400, 200]
        assert status(str(videos / "good0.mp4"), Rules(max_frames=5, timeout_s=30)) == 413
        assert status(str(videos / "good0.mp4"), Rules(max_mb=1e-4, timeout_s=30)) == 413
        assert status("http://127.0.0.1:9/a.mp4") == 403
        assert status("http://127.0.0.1:9/a.mp4", Rules(private_urls=True, timeout_s=30)) == 400
        assert status(str(videos / "good2.mp4")) == 200


def test_every_reason_has_a_status() -> None:
    found = {reason: refusal(QuarantineError(reason, "so")).status for reason in REASONS}  # type: ignore[arg-type]
    assert {reason for reason, status in found.items() if status == 413} == {"too_large"}
    assert {reason for reason, status in found.items() if status == 415} == {"no_video_stream"}
    assert set(found.values()) == {400, 413, 415}
    assert refusal(PrivateAddressError("10.0.0.1")).status == 403


def test_a_refusal_travels_between_processes() -> None:
    again = pickle.loads(pickle.dumps(Refused(413, "too_large", "more than 64 MB")))
    assert (again.status, again.reason, str(again)) == (413, "too_large", "more than 64 MB")
