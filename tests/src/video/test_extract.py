"""Extraction as a whole: killed anywhere it goes on, a bad decoder costs one video, limits hold."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import moving
from extraction import SMALL, digest, hang_or_crash
from videos import write_video

from pipeline.stages import extract
from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import list_items
from vidpipe.errors import VidpipeError
from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import Extracted, extract_one, quarantined
from vidpipe.video.store import FrameStore, read_manifest
from vidpipe.video.writer import StoreWriter

N = 14


# -- the writer, killed before every single thing it does to the disk -----------------------------


def clip(index: int) -> Extracted:
    if index in (3, 4, 13):
        return quarantined("truncated", "made up", f"sha {index}", 10)
    row = {"status": "ok", "reason": "", "detail": "", "frames": 5, "fps": 25.0, "width": 4}
    sha = "sha 2" if index == 9 else f"sha {index}"  # 9 is a copy of 2
    row |= {"height": 4, "sha256": sha, "source_bytes": 10}
    return Extracted(row, np.random.default_rng(index).bytes(100 + 17 * index))


def write(out: Path, log: Path | None = None) -> None:
    listed = [{"id": f"c{i}", "path": f"c{i}.mp4", "label": "a", "split": "val"} for i in range(N)]
    stats = [(10, i) for i in range(N)]
    writer = StoreWriter(out, "key", listed, stats, shard_bytes=700, timeout_s=1)
    if writer.finished:
        return writer.close()
    order = writer.pending()
    random.Random(7).shuffle(order)
    for index in order:
        writer.add(index, clip(index))
        if log is not None:
            with log.open("a") as file:
                file.write(f"{index}\n")
    writer.finish(("a", "b"), "compact")
    writer.close()


def killed_at(number: int, root: Path, work: Callable[[], None]) -> bool:
    """Run `work` in a child that dies before its `number`-th change below `root`; did it die?"""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
            if (writes or changes) and str(root) in str(args[0]) and "log" not in str(args[0]):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_kill_before_any_change_of_the_disk_changes_nothing_in_the_end(tmp_path: Path) -> None:
    write(tmp_path / "whole" / "store")
    expected = digest(tmp_path / "whole" / "store")
    number = 0
    while True:
        number += 1
        root = tmp_path / f"k{number}"
        root.mkdir()
        out, log = root / "store", root / "log"
        died = killed_at(number, root, lambda: write(out, log))  # noqa: B023
        # Once more, somewhere else, while it goes on; then to the end.
        if died and killed_at(1 + 5 * number % 23, root, lambda: write(out, log)):  # noqa: B023
            write(out, log)
        assert digest(out) == expected, number
        left = {path.name for path in root.iterdir()}
        assert left == {"store", "log"}, number
        added = log.read_text().split()
        assert len(added) == len(set(added)), "a clip that was kept is not made again"
        if not died:
            break
    assert number > 60


def test_the_writer_packs_in_order_and_refuses_copies(tmp_path: Path) -> None:
    write(tmp_path / "store")
    rows = read_manifest(tmp_path / "store").rows
    assert rows.path.tolist() == sorted(f"c{i}.mp4" for i in range(N))
    rows = rows.set_index("path", drop=False)
    assert rows.reason["c9.mp4"] == "duplicate"
    assert "same bytes as c2.mp4" in rows.detail["c9.mp4"]
    assert rows.shard.max() >= 2
    for row in rows[rows.status == "ok"].to_dict("records"):
        shard = (tmp_path / "store" / f"shard-{row['shard']:05d}.bin").read_bytes()
        data = clip(int(row["id"][1:])).data
        assert shard[row["offset"] : row["offset"] + row["nbytes"]] == data


def test_a_changed_source_or_a_torn_part_is_made_again(tmp_path: Path) -> None:
    listed = [{"id": c, "path": c, "label": "a", "split": "val"} for c in "abcdef"]
    stats = [(10, i) for i in range(6)]

    def writer(stats: list[tuple[int, int]], timeout_s: float = 1) -> StoreWriter:
        return StoreWriter(
            tmp_path / "store", "k", listed, stats, shard_bytes=250, timeout_s=timeout_s
        )

    first = writer(stats)
    for i in (0, 1, 2, 5):
        first.add(i, quarantined("timeout", "slow") if i == 5 else clip(i))
    first.close()
    again = writer(stats)
    assert again.pending() == [3, 4]
    with pytest.raises(VidpipeError, match="another extraction is writing here"):
        writer(stats)
    again.close()
    part = next(iter((again.work / "parts").glob("2")))
    part.write_bytes(part.read_bytes()[:-3])
    torn = writer(stats)
    assert torn.pending() == [2, 3, 4]
    torn.close()
    kinder = writer(stats, timeout_s=9)
    assert kinder.pending() == [2, 3, 4, 5]
    kinder.close()
    touched = writer([(10, 99), *stats[1:]])
    assert touched.pending()[0] == 0
    touched.close()


# -- real videos, real processes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """12 good clips of two classes, a copy of one, a cut one and a text."""
    root = tmp_path_factory.mktemp("videos")
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(6):
            frames = np.roll(moving(30 + i), 5 * i + (label == "b"), 2)
            write_video(root / label / f"{i}.mp4", frames)
    (root / "b" / "copy.mp4").write_bytes((root / "a" / "0.mp4").read_bytes())
    (root / "b" / "cut.mp4").write_bytes((root / "b" / "1.mp4").read_bytes()[:-700])
    (root / "a" / "text.mp4").write_text("not a video")
    return DataConfig(root=str(root), val_fraction=0.4)


@pytest.mark.parametrize("where", ["here", pytest.param("ray", marks=pytest.mark.long)])
@pytest.mark.slow
def test_a_hanging_and_a_crashing_decoder_cost_one_video_each(
    videos: DataConfig, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    if where == "ray":
        request.getfixturevalue("one_ray")
    config = SMALL.model_copy(
        update={"timeout_s": 8.0, "ray_address": "local" if where == "ray" else None}
    )
    counts = extract.run(videos, config, tmp_path / "store", work=hang_or_crash)
    assert counts["clips"] == 10
    reasons = {k: v for k, v in counts.items() if k.startswith("quarantined_")}
    assert reasons == {
        f"quarantined_{r}": 1
        for r in ("crashed", "duplicate", "timeout", "truncated", "undecodable")
    }
    rows = read_manifest(tmp_path / "store").rows.set_index("path")
    assert rows.reason["a/2.mp4"] == "timeout"
    assert rows.reason["b/3.mp4"] == "crashed"
    store = FrameStore(tmp_path / "store")
    for i in range(len(store)):
        assert store.read(i, [0]).shape[0] == 1


def test_too_many_bad_files_are_counted_by_reason_and_nothing_is_decoded_again(
    videos: DataConfig, tmp_path: Path
) -> None:
    strict = SMALL.model_copy(update={"max_bad_fraction": 0.1})
    message = "3 of 15 videos are bad .*undecodable 1.*max_bad_fraction 0.1; raise it"
    with pytest.raises(VidpipeError, match=message):
        extract.run(videos, strict, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    counts = extract.run(videos, SMALL, tmp_path / "store", work=hang_or_crash)  # not called
    assert counts["clips"] == 12


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: EFBIG, where a full disk says ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def decode_in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Without the seconds that processes take to start; the indices decoded, as they come."""
    decoded: list[int] = []

    def here(tasks: Any, config: ExtractConfig, *_: object) -> Iterator[tuple[int, Extracted]]:
        for index, source in tasks:
            decoded.append(index)
            yield index, extract_one(source, config)

    monkeypatch.setattr(extract, "decode_here", here)
    return decoded


@pytest.mark.parametrize("limit", [100, 8_000])
def test_a_full_disk_is_one_line_and_what_was_done_is_kept(
    videos: DataConfig, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first clip's own file, and at a shard; then there is room again."""
    decoded = decode_in_this_process(monkeypatch)
    out = tmp_path / "out" / "store"
    with full_disk(limit), pytest.raises(VidpipeError, match="File too large; make") as caught:
        extract.run(videos, SMALL, out)
    assert str(out.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    extract.run(videos, SMALL, out)
    assert len(decoded) == len(set(decoded)) + (limit == 100), "only what was not written, again"
    whole = tmp_path / "whole" / "store"
    extract.run(videos, SMALL, whole)
    assert digest(out) == digest(whole)


def test_a_place_that_cannot_be_written_is_named_in_one_line(
    videos: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VidpipeError, match=r"file/store: Not a directory; make it writable"):
        extract.run(videos, SMALL, tmp_path / "file" / "store" / "frames")


def test_a_link_to_itself_is_no_video_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder it is none, as a link that leads nowhere; in a table it is a missing file."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(2):
            write_video(tmp_path / label / f"{i}.mp4", np.roll(moving(8), 5 * i + ord(label), 2))
    (tmp_path / "a" / "loop.mp4").symlink_to("loop.mp4")
    data = DataConfig(root=str(tmp_path), val_fraction=0.5)
    assert len(list_items(data).items) == 4
    lines = [f"{label}/{name}.mp4,{label}" for label in "ab" for name in (0, 1)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, "a/loop.mp4,a"]))
    table = data.model_copy(update={"annotations": "t.csv", "max_missing_fraction": 0.5})
    decode_in_this_process(monkeypatch)
    counts = extract.run(table, SMALL, tmp_path / "store")
    assert (counts["clips"], counts["quarantined_missing_file"]) == (4, 1)


SCRIPT = """
import json, sys
from pathlib import Path
from pipeline.stages import extract
from vidpipe.data.config import DataConfig
from vidpipe.video.config import ExtractConfig
if __name__ == "__main__":
    data, config, out = sys.argv[1:]
    extract.run(DataConfig(**json.loads(data)), ExtractConfig(**json.loads(config)), Path(out))
"""


@pytest.mark.long
def test_kill_9_at_random_moments(videos: DataConfig, tmp_path: Path) -> None:
    """VIDPIPE_KILLS sets how many; the whole process group dies, decoders too."""
    kills = int(os.environ.get("VIDPIPE_KILLS", "3"))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(out: Path) -> subprocess.Popen[bytes]:
        config = SMALL.model_dump(mode="json") | {"num_workers": 1}
        parts = [videos.model_dump_json(), json.dumps(config), str(out)]
        return subprocess.Popen(
            [sys.executable, str(script), *parts],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    begun = time.monotonic()
    assert start(tmp_path / "whole" / "store").wait() == 0
    duration = time.monotonic() - begun
    expected = digest(tmp_path / "whole" / "store")
    moments = random.Random(0)
    for kill in range(kills):
        out = tmp_path / f"k{kill}" / "store"
        process = start(out)
        time.sleep(moments.uniform(0.3, 1.0) * duration)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert start(out).wait() == 0
        assert digest(out) == expected
