"""A video that a stranger sends to a model, as bytes, URL or path: what is let in, and its frames.

One place for whatever serves models: which paths and URLs are read, within which limits, and which
answer of HTTP a refusal is. Decoding runs in processes of its own (`video.guard`). No torch.
"""

from __future__ import annotations

import base64
import binascii
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from vidpipe.errors import VidpipeError
from vidpipe.inference.fetch import PrivateAddressError
from vidpipe.inference.key_frames import Keys, key_segments
from vidpipe.inference.segments import Request, Segment, segments
from vidpipe.text import printable
from vidpipe.video.guard import Guards
from vidpipe.video.quarantine import QuarantineError

KINDS = ("bytes", "url", "path")
LONGEST = 4096
"""Characters of a path or URL."""
STATUS = {"too_large": 413, "no_video_stream": 415}
"""Of HTTP, by the reason why a video is not used; of all other reasons 400."""


class Refused(VidpipeError):
    """A request that is not answered: `status` of HTTP, `reason` for programs, one line for people."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return Refused, (self.status, self.reason, str(self))  # survives the trip between processes


@dataclass(frozen=True)
class Rules:
    """What of a stranger's request is read.

    Args:
        root: the folder below which paths are read; None: no path is.
        urls: whether http and https are fetched.
        private_urls: also from addresses of this machine and its network.
        max_mb: of one video.
        max_frames: of one video.
        timeout_s: seconds that a decoder may be silent.
    """

    root: Path | None = None
    urls: bool = False
    private_urls: bool = False
    max_mb: float = 64
    max_frames: int = 10_000
    timeout_s: float = 60

    @property
    def limits(self) -> dict[str, Any]:
        """As fields of ExtractConfig."""
        return {
            "max_mb": self.max_mb,
            "max_frames": self.max_frames,
            "timeout_s": self.timeout_s,
        }

    def path(self, text: Any, *, folder: bool = False) -> Path:
        """The file (or folder) below `root` that `text` names, relative to it or absolute.

        Links are followed before the place is looked at. Raises Refused: 403 for a place outside of the
        root or without one, whatever lies there; 404 for nothing there; 422 for no path.
        """
        if self.root is None:
            raise Refused(
                403, "no_root", "path: no path is read here, since no root folder is named"
            )
        root, named = self.root.resolve(), _text("path", text)
        try:
            found = (root / named).resolve()
        except (OSError, RuntimeError, ValueError):  # too long a name, links in a circle, a NUL
            raise Refused(422, "bad_parameter", f"path: {_shown(named)} is no path") from None
        if found != root and root not in found.parents:
            raise Refused(403, "outside_root", f"path: {_shown(named)} lies outside of the root")
        kind = stat.S_ISDIR if folder else stat.S_ISREG
        try:
            there = kind(found.stat().st_mode)
        except (OSError, ValueError):
            there = False
        if not there:
            what = "folder" if folder else "file"
            raise Refused(404, "missing_file", f"path: no {what} {_shown(named)} below the root")
        return found

    def url(self, text: Any) -> str:
        """An address that may be fetched: where it leads is seen when it is.

        Raises Refused: 403 where URLs are not fetched, 422 for what is none of http or https.
        """
        if not self.urls:
            raise Refused(403, "no_urls", "url: no URL is fetched here; it was not allowed")
        given = _text("url", text)
        try:
            parts = urlsplit(given)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number, half an IPv6 address
            good = False
        # `::` would be a chain of file systems to fsspec.
        if not good or "::" in given or not given.isprintable():
            raise Refused(
                422, "bad_parameter", f"url: {_shown(given)}: expected http:// or https://"
            )
        return given

    def content(self, given: Any) -> bytes:
        """Bytes as they are, or base64. Raises Refused: 413 beyond `max_mb`, 422 for what is neither."""
        if isinstance(given, bytes):
            if len(given) > self.max_mb * 2**20:
                raise self.too_large()
            return given
        if not isinstance(given, str):
            raise Refused(422, "bad_parameter", "bytes: expected a text of base64")
        if len(given) > self.max_mb * 2**20 * 4 / 3 + 4:
            raise self.too_large()
        try:
            return base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(422, "bad_parameter", "bytes: not base64") from None

    def too_large(self) -> Refused:
        return Refused(413, "too_large", f"the video has more than {self.max_mb:g} MB")


def rules_of(config: Mapping[str, Any]) -> Rules:
    """From plain values, as an operator writes them into a file of settings: fields of Rules by name.

    Raises VidpipeError for a field that is unknown or has no such value, and for a root that is no
    folder; its path is absolute, since a server seldom runs in a folder of its operator's choice.
    """
    unknown = sorted(config.keys() - {field.name for field in fields(Rules)})
    if unknown:
        listed = ", ".join(field.name for field in fields(Rules))
        raise VidpipeError(f"{unknown[0]}: unknown; expected one of {listed}")
    root = config.get("root")
    if root is not None and not (isinstance(root, str) and Path(root).is_absolute()):
        raise VidpipeError(f"root {root!r}: expected the absolute path of a folder, or null")
    if root is not None and not Path(root).is_dir():
        raise VidpipeError(f"root {root}: no such folder")
    for key in ("urls", "private_urls"):
        if not isinstance(config.get(key, False), bool):
            raise VidpipeError(f"{key} {config[key]!r}: expected true or false")
    for key in ("max_mb", "max_frames", "timeout_s"):
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise VidpipeError(f"{key} {value!r}: expected a number above 0")
    return Rules(**{**config, "root": None if root is None else Path(root)})


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > LONGEST:
        raise Refused(422, "bad_parameter", f"{key}: expected a text of 1 to {LONGEST} characters")
    return value


def _shown(text: str) -> str:
    return printable(text)[:200]


@contextmanager
def source_of(given: Mapping[str, Any], rules: Rules, scratch: Path | None) -> Iterator[str]:
    """The path or URL of a video that is `{"bytes": ...}`, `{"url": ...}` or `{"path": ...}`.

    Bytes, as they are or base64, lie in a file in `scratch` meanwhile. Raises Refused.
    """
    named = [key for key in KINDS if given.get(key) is not None]
    if len(named) != 1:
        got = " and ".join(named) or "none"
        raise Refused(
            422, "bad_parameter", f"a video: expected one of {', '.join(KINDS)}, got {got}"
        )
    (key,) = named
    if key == "url":
        yield rules.url(given["url"])
    elif key == "path":
        yield str(rules.path(given["path"]))
    else:
        content = rules.content(given["bytes"])
        with tempfile.NamedTemporaryFile(dir=scratch) as file:
            file.write(content)
            file.flush()
            yield file.name


class Wanted(NamedTuple):
    """A video and what is wanted of it."""

    source: str
    request: Request
    keys: Keys | None = None
    """Of people in boxes: the seconds."""


def wanted_segments(wanted: Wanted) -> Iterator[Segment]:
    """What the decoding process does."""
    if wanted.keys is None:
        return segments(wanted.source, wanted.request)
    return key_segments(wanted.source, wanted.request, wanted.keys)


def given_decoder(timeout_s: float) -> Guards[Wanted, Segment]:
    """One process that decodes one video after another, of any model."""
    return Guards(wanted_segments, timeout_s)


def decoded(wanted: Wanted, decoder: Guards[Wanted, Segment]) -> Iterator[Segment]:
    """The segments as they come. Raises Refused where the video cannot be used."""
    for event in decoder.run([wanted]):
        if isinstance(event.result, QuarantineError):
            raise refusal(event.result)
        if event.result is not None:
            yield event.result


def refusal(error: QuarantineError) -> Refused:
    """Why a video is not used, as an answer."""
    detail = printable(" ".join(error.detail.split()))[:300]
    if isinstance(error, PrivateAddressError):
        return Refused(403, "private_address", f"url: {detail}")
    status = STATUS.get(error.reason, 400)
    return Refused(status, error.reason, f"the video cannot be used: {error.reason} ({detail})")
