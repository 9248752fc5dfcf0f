"""The page of `vidpipe demo`, a real process, in a real browser that has no internet."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clips import moving
from demo_browser import MARKS, WAIT_S, browser, offer, page, upload, wait_for
from small_models import backbone_file, save_tiny_adapter
from videos import write_video

pytestmark = MARKS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, Path]]:
    """Port, process and the folder for temporary files of a page with two models."""
    root = tmp_path_factory.mktemp("demo")
    weights = backbone_file(root / "vit.safetensors")
    one = save_tiny_adapter(root / "one", weights, "zeroi2v", ("left", "right", "up"))
    two = save_tiny_adapter(root / "two", weights, "linear_probe", ("<b>here</b>", "there"))
    models = ("--model", str(one), "--model", str(two))
    with page(root, "--max-mb", "1", *models, "--timeout", "60") as found:
        yield found


@pytest.fixture(scope="module")
def driver(
    served: tuple[int, int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    with browser(served[0], tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


def pictures(driver: Any, count: int) -> None:
    """Waits until so many rows of frames and attention are shown."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(d: Any) -> bool:
        images = d.find_elements(By.CSS_SELECTOR, "#frames img, #spatial img, #temporal img")
        wide = [i for i in images if d.execute_script("return arguments[0].naturalWidth > 0", i)]
        return len([image for image in wide if image.is_displayed()]) == count

    WebDriverWait(driver, WAIT_S).until(shown)


def film(driver: Any) -> None:
    """Waits until the video and its timeline are shown."""
    from selenium.webdriver.support.ui import WebDriverWait

    loaded = "return (document.querySelector('#film video') || {}).readyState >= 2"
    bands = "return document.querySelectorAll('#film .film-band').length"
    WebDriverWait(driver, WAIT_S).until(
        lambda d: d.execute_script(loaded) and d.execute_script(bands)
    )


def test_a_clip_gets_its_classes_frames_and_attention(
    driver: Any, served: tuple[int, int, Path], tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    clip = write_video(tmp_path / "a clip.mp4", np.roll(moving(30), 9, 2))
    upload(driver, clip)
    assert "1.2 s, 4 frames" in wait_for(driver, "a clip.mp4")
    pictures(driver, 3)
    top = driver.find_element(By.ID, "top").text
    assert {"left", "right", "up"} <= set(top.split())
    shares = [int(share) for share in re.findall(r"(\d+)%", top)]
    assert len(shares) == 3
    assert 98 <= sum(shares) <= 102
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 1280, "nothing is cut off at the side"
    film(driver)
    kept = [path.name for path in served[2].rglob("*.mp4")]
    assert all(re.fullmatch(r"film-\w+\.mp4", name) for name in kept), "the upload is deleted"


def test_another_model_says_it_of_the_same_clip(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    upload(driver, write_video(tmp_path / "again.mp4", moving(40)))
    wait_for(driver, "again.mp4: 1.6 s")
    field = driver.find_element(By.CSS_SELECTOR, "#model input")
    field.click()
    field.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    WebDriverWait(driver, WAIT_S).until(lambda d: "there" in d.find_element(By.ID, "top").text)
    pictures(driver, 2)  # a linear probe has nothing that looks over time
    assert "<b>here</b>" in driver.find_element(By.ID, "top").text


@pytest.mark.parametrize("kind", ["text", "cut", "empty"])
def test_an_upload_that_is_no_video_is_a_line_with_its_name(
    driver: Any, tmp_path: Path, kind: str
) -> None:
    path = write_video(tmp_path / f"{kind}.mp4", moving(30))
    whole = path.read_bytes()
    path.write_bytes({"text": b"not a video", "cut": whole[:-700], "empty": b""}[kind])
    upload(driver, path)
    reason = "truncated" if kind == "cut" else "undecodable"
    line = wait_for(driver, f"{kind}.mp4 cannot be used: {reason}")
    assert "\n" not in line
    pictures(driver, 0)


def test_an_upload_over_the_limit_is_refused(driver: Any, served: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    (tmp_path / "large.mp4").write_bytes(bytes(2 * 2**20))
    offer(driver, tmp_path / "large.mp4")
    WebDriverWait(driver, WAIT_S).until(
        lambda d: "exceed the maximum allowed size" in d.find_element(By.TAG_NAME, "body").text
    )
    driver.refresh()
    # The server's own word, too: a browser may be told anything.
    edge = b"--edge\r\nContent-Disposition: form-data; name=files; filename=large.mp4\r\n\r\n"
    status = answer_of(
        f"http://127.0.0.1:{served[0]}/gradio_api/upload",
        edge + bytes(2 * 2**20) + b"\r\n--edge--\r\n",
        {"Content-Type": "multipart/form-data; boundary=edge"},
    )
    assert status == 413
    assert not list(served[2].rglob("large*"))


def test_the_page_gives_no_files_of_this_machine(served: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    at = f"http://127.0.0.1:{served[0]}"
    assert answer_of(f"{at}/") == 200
    assert answer_of(f"{at}/gradio_api/file={tmp_path / 'secret.txt'}") == 403


def answer_of(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    """The HTTP status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {})) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_is_for_this_machine_only_and_asks_nobody(
    driver: Any, served: tuple[int, int, Path]
) -> None:
    """After the tests above: every request of the browser, every socket of the process."""
    port, pid, _ = served
    listening = [
        c.laddr for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN
    ]
    assert {(a.ip, a.port) for a in listening} == {("127.0.0.1", port)}
    others = {
        a.address
        for addresses in psutil.net_if_addrs().values()
        for a in addresses
        if a.family == socket.AF_INET and not a.address.startswith("127.")
    }
    for other in others:
        with socket.socket() as attempt:
            attempt.settimeout(2)
            assert attempt.connect_ex((other, port)) != 0, other
    asked = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in driver.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert len(asked) > 10
    foreign = [
        url
        for url in asked
        if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:", "chrome"))
    ]
    assert not foreign
