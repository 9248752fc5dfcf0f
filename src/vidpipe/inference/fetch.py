"""A video from a URL as a local file for a while: FFmpeg is never given an address."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError

SCHEMES = frozenset({"http", "https", "s3", "gs", "az"})
"""Others reach into this machine (file, local, memory) or into archives (zip::)."""
CHUNK = 2**20


def is_url(source: str) -> bool:
    return "://" in source


@contextmanager
def local_copy(url: str, folder: Path | None, config: ExtractConfig) -> Iterator[Path]:
    """A temporary file in `folder`, removed afterwards. At most `config.max_mb`, `timeout_s`.

    Raises QuarantineError: `missing_file` where it cannot be fetched, `too_large`, `timeout`.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES or "::" in url:
        listed = ", ".join(sorted(SCHEMES))
        raise QuarantineError("missing_file", f"cannot fetch {scheme}://; expected {listed}")
    suffix = Path(urlsplit(url).path).suffix[:8]
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=folder) as file:
        try:
            _copy(url, file, config)
        except QuarantineError:
            raise
        except Exception as error:  # each kind of store has exceptions of its own
            line = (str(error).splitlines() or [""])[0]
            detail = f"cannot be fetched: {type(error).__name__} {line}".strip()
            raise QuarantineError("missing_file", detail) from None
        file.flush()
        yield Path(file.name)


def _copy(url: str, file: object, config: ExtractConfig) -> None:
    deadline = time.monotonic() + config.timeout_s
    limit, size = config.max_mb * 2**20, 0
    # Over HTTP a plain stream: servers need not know ranges, nor say the length.
    stream = {"block_size": 0} if url.startswith("http") else {}
    with fsspec.open(url, "rb", **stream) as source:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise QuarantineError("too_large", f"more than {config.max_mb:g} MB")
            if time.monotonic() > deadline:
                raise QuarantineError("timeout", f"fetching took over {config.timeout_s:g} s")
            file.write(chunk)  # type: ignore[attr-defined]
