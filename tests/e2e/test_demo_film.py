"""What the page of `vidpipe demo` draws over and under a video, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from clips import moving
from demo_browser import MARKS, WAIT_S, browser, page, picture_of, upload, wait_for
from people import people, small_detector
from small_models import backbone_file, save_tiny_package
from videos import write_video

from pipeline.tools import predict_people, predict_timeline
from pipeline.tools.predict import Job
from vidpipe.trained.adapter import save_adapter

pytestmark = MARKS
CLASSES = ("<b>here</b>", "${1 + 1} {{x}}", "up")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("package")
    weights = backbone_file(root / "vit.safetensors")
    return save_tiny_package(root / "one", weights, "zeroi2v", CLASSES)


def until(driver: Any, script: str, *arguments: Any) -> Any:
    """What JavaScript returns, once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    def found(d: Any) -> Any:
        return d.execute_script(f"return {script}", *arguments)

    return WebDriverWait(driver, WAIT_S, poll_frequency=0.1).until(found)


BANDS = """[...document.querySelectorAll('#film .film-band')].map((band) => band.title)"""
VIDEO = "document.querySelector('#film video')"


def shown(title: str) -> tuple[str, float, float, int]:
    """Label, start, end and percent of a band."""
    found = re.fullmatch(r"(.*): ([\d.]+) to ([\d.]+) s, (\d+)%", title)
    assert found, title
    return found[1], float(found[2]), float(found[3]), int(found[4])


def test_a_timeline_is_that_of_predict_and_a_click_plays_a_segment(
    package: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    clip = write_video(tmp_path / "long.mp4", np.roll(moving(150), 9, 2))
    job = Job((package,), window_s=1.0, workers=1)
    predict_timeline.run(job, [str(clip)], predict_timeline.Timeline(2), out=tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())
    assert len(rows) > 2
    words = ("--model", str(package), "--window", "1", "--smooth", "2")
    with page(tmp_path, *words) as (port, _, _), browser(port, tmp_path / "profile") as driver:
        upload(driver, clip)
        wait_for(driver, "long.mp4: 6.0 s")
        until(driver, "document.querySelector('.film-note').textContent.includes('22 windows')")
        found = sorted(shown(title) for title in until(driver, BANDS))
        expected = sorted((r["label"], r["start"], r["end"], r["score"]) for r in rows)
        assert [label for label, *_ in found] == [label for label, *_ in expected]
        for (_, *seen), (_, *own) in zip(found, expected, strict=True):
            assert seen == pytest.approx([own[0], own[1], 100 * own[2]], abs=0.51)
            assert seen[:2] == pytest.approx(own[:2], abs=0.051)
        assert until(driver, f"{VIDEO}.readyState >= 2")
        assert driver.execute_script(f"return {VIDEO}.duration") == pytest.approx(6, abs=0.05)
        picture_of(driver, "timeline")
        buttons = driver.find_elements(By.CSS_SELECTOR, "#film .film-band")
        band = max(buttons, key=lambda b: float(shown(b.get_attribute("title"))[1]))
        _, start, end, _ = shown(band.get_attribute("title"))
        assert start > 1
        band.click()
        until(driver, f"!{VIDEO}.paused && {VIDEO}.currentTime > {start}")
        until(driver, f"{VIDEO}.paused")
        stopped = driver.execute_script(f"return {VIDEO}.currentTime")
        assert stopped == pytest.approx(end, abs=0.3)
        head = driver.execute_script("return document.querySelector('.film-head').style.left")
        assert float(head.rstrip("%")) == pytest.approx(100 * stopped / 6, abs=2)
        other = driver.find_elements(By.CSS_SELECTOR, "#film .film-item")[0]
        _, start, end, _ = shown(other.text)
        other.click()
        until(driver, f"{VIDEO}.currentTime < {end} + 0.3")
        upload(driver, write_video(tmp_path / "next.mp4", moving(40)))
        wait_for(driver, "next.mp4: 1.6 s")
        until(driver, f"Math.abs({VIDEO}.duration - 1.6) < 0.05")
        (tmp_path / "none.mp4").write_text("no video")
        upload(driver, tmp_path / "none.mp4")
        wait_for(driver, "none.mp4 cannot be used")
        until(driver, "document.querySelector('#film .film').style.display === 'none'")


@pytest.fixture
def boxes(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of people's videos, and a model of what they do."""
    model = small_detector(tmp_path)
    save_adapter(tmp_path / "boxes", model, {})
    return people(tmp_path / "people", train=1, val=1), tmp_path / "boxes"


def test_people_have_boxes_with_what_they_do(boxes: tuple[Path, Path], tmp_path: Path) -> None:
    root, model = boxes
    who = predict_people.Who(root / "val_proposals.csv")
    out = tmp_path / "rows.parquet"
    predict_people.run(Job((model,), workers=1), [str(root / "val_0.mp4")], who, out=out)
    rows = [row for row in pq.read_table(out).to_pylist() if row["start_s"] == 1]
    assert len(rows) == 2
    words = ("--model", str(model), "--proposals", str(root / "val_proposals.csv"))
    with page(tmp_path, *words) as (port, _, _), browser(port, tmp_path / "profile") as driver:
        upload(driver, root / "val_0.mp4")
        wait_for(driver, "val_0.mp4: 3.0 s")
        until(
            driver,
            "document.querySelector('.film-note').textContent === '4 people in 2 key frames'",
        )
        until(driver, f"{VIDEO}.readyState >= 2")
        driver.execute_script(f"{VIDEO}.currentTime = 1.0")
        found = until(
            driver,
            """(() => {
              const all = document.querySelector('.film-picture').getBoundingClientRect();
              const boxes = [...document.querySelectorAll('.film-box')].map((box) => {
                const at = box.getBoundingClientRect();
                return [(at.left - all.left) / all.width, (at.top - all.top) / all.height,
                  (at.right - all.left) / all.width, (at.bottom - all.top) / all.height,
                  box.textContent];
              });
              return boxes.length ? boxes : null;
            })()""",
        )
        picture_of(driver, "people")
        assert len(found) == 2
        for seen, row in zip(sorted(found), sorted(rows, key=lambda r: r["box"]), strict=True):
            assert seen[:4] == pytest.approx(row["box"], abs=0.005)
            best = max(row["all_probabilities"])
            assert seen[4].startswith(f"{row['labels'][0]} {best:.0%}")
        bands = {shown(title)[0] for title in until(driver, BANDS)}
        assert bands >= {row["labels"][0] for row in rows}
        driver.execute_script(f"{VIDEO}.currentTime = 2.8")
        until(driver, "document.querySelectorAll('.film-box').length === 0")
