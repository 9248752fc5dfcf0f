"""The page of `vidpipe demo` as a real process, and a real browser that has no internet."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 120
MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        "REQUIRE_BROWSER" not in os.environ
        and not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="chromium and chromedriver are not installed",
    ),
]


@contextmanager
def page(root: Path, *words: str) -> Iterator[tuple[int, int, Path]]:
    """`vidpipe demo WORDS`: its port, its process, and the folder for its temporary files."""
    pytest.importorskip("gradio")
    temporary = root / "tmp"
    temporary.mkdir()
    # What would open the page to others must not.
    hostile = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/"}
    log = (root / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.app", "demo", "--port", "0", *words],
        stderr=log,
        env=os.environ | hostile | {"TMPDIR": str(temporary)},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + WAIT_S
        while not (found := re.search(r"http://[\d.]+:(\d+)", (root / "log").read_text())):
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < deadline, "the page did not start"
            time.sleep(0.2)
        yield int(found[1]), process.pid, temporary
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not list(temporary.iterdir()), "uploads and pictures are gone with the page"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@contextmanager
def browser(port: int, profile: Path) -> Iterator[Any]:
    """A Chromium that shows the page."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", "--window-size=1280,1500", f"--user-data-dir={profile}"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        chrome.get(f"http://127.0.0.1:{port}/")
        yield chrome
    finally:
        chrome.quit()


def offer(driver: Any, path: Path) -> None:
    """Chooses a file in the page's field."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    field = WebDriverWait(driver, WAIT_S).until(
        lambda d: d.find_elements(By.CSS_SELECTOR, "#drop input[type=file]")
    )
    field[0].send_keys(str(path))


def upload(driver: Any, path: Path) -> None:
    """Offers a file until the page has sent it: a field that the page is about to replace, as it does
    after each file, sends nothing."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    sent = "return performance.getEntriesByType('resource').some((e) => e.name.includes('/upload'))"
    for _ in range(WAIT_S // 20):
        driver.execute_script("performance.clearResourceTimings()")
        offer(driver, path)
        try:
            WebDriverWait(driver, 20).until(lambda d: d.execute_script(sent))
        except TimeoutException:
            continue
        return
    raise AssertionError(f"the page did not send {path.name}")


def wait_for(driver: Any, text: str) -> str:
    """The status line, once `text` is in it."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def status(d: Any) -> str:
        value = d.find_element(By.CSS_SELECTOR, "#status textarea").get_property("value")
        return value if text in value else ""

    try:
        return str(WebDriverWait(driver, WAIT_S).until(status))
    finally:
        picture_of(driver, text)


def picture_of(driver: Any, name: str) -> None:
    """A screenshot, where SAVE_SCREENSHOT names a PNG: its name and `name`."""
    if target := os.environ.get("SAVE_SCREENSHOT"):
        time.sleep(1)
        driver.save_screenshot(target.replace(".png", f"-{name}.png"))
