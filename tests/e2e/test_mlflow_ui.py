"""The MLflow UI, served from the pipeline's store and read in a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_project import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("e2e"),  # one project for all
    pytest.mark.skipif(
        "REQUIRE_BROWSER" not in os.environ
        and not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="chromium and chromedriver are not installed",
    ),
]


def test_runs_are_shown_in_the_browser(project: Path, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{project}/mlflow.db", "--workers", "1"),
        ],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-sync"),
        *("--disable-component-update", "--window-size=1600,1200", f"--user-data-dir={tmp_path}"),
    ):
        options.add_argument(flag)
    driver = None
    try:
        _wait_for(port, server)
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        driver.get(f"http://127.0.0.1:{port}/#/experiments/1/runs")
        names = ["train-zeroi2v", "evaluate-zeroi2v", "export-linear_probe", "train-linear_probe"]
        WebDriverWait(driver, 90).until(
            lambda d: all(n in d.find_element(By.TAG_NAME, "body").text for n in names)
        )
        if target := os.environ.get("SAVE_SCREENSHOT"):
            driver.save_screenshot(target)
    finally:
        if driver is not None:
            driver.quit()
        import signal

        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "the MLflow server died"
        with socket.socket() as attempt:
            attempt.settimeout(1)
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError("the MLflow server did not start")
