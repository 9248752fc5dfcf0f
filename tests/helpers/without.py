"""Python where some packages are not installed."""

from __future__ import annotations

import subprocess
import sys


def run_without(missing: str, code: str) -> subprocess.CompletedProcess[str]:
    block = f"import sys\nfor name in {missing.split()!r}: sys.modules[name] = None\n"
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True)
