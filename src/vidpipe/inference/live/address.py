"""Where live pictures come from, and what FFmpeg may do to open them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av

from vidpipe.errors import ArgumentError
from vidpipe.video.probe import FORMATS

PROTOCOLS = {
    "rtsp": "rtp,udp,tcp",
    "rtsps": "rtp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tls,tcp",
    "http": "http,tcp",
    "https": "https,http,tls,tcp",
    "tcp": "tcp",
    "udp": "udp",
    "file": "file",
}
"""Scheme -> the protocols that FFmpeg may use for it, and for whatever the other side makes it open.
Playlists (HLS, DASH) are no format of ours: they would name further addresses."""
NETWORK_FORMATS = f"{FORMATS},rtsp,rtp,sdp"
OPEN_S = 10.0
ANALYSIS_US = 2_000_000
"""Of the stream that FFmpeg reads before it says what is in it; its own 5 s would be waited for."""
_CAMERAS = {
    "linux": ("video4linux2,v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}:none"),
}


@dataclass(frozen=True)
class Address:
    """A source of live pictures.

    Example:
        >>> Address.of("rtsp://user:secret@camera/1").shown
        'rtsp://user:***@camera/1'
        >>> Address.of("webcam:0").kind
        'webcam'
    """

    kind: str
    """A scheme of PROTOCOLS, `webcam`, or `-` for standard input."""
    place: str
    """What FFmpeg opens: a URL, a path, the number of a camera."""

    @classmethod
    def of(cls, text: str) -> Address:
        """Raises ArgumentError (`live`) for what is none, and for a file or camera that is not there."""
        if text == "-":
            return cls("-", text)
        if camera := re.fullmatch(r"webcam:(\d{1,3})", text):
            return cls("webcam", camera[1])._there()
        scheme, mark, rest = text.partition("://")
        scheme = scheme.lower()
        if not mark:
            return cls("file", text)._there()
        if scheme == "file":
            return cls("file", rest)._there()
        with suppress(ValueError):  # such as a port that is no number
            parts = urlsplit(text)
            if scheme in PROTOCOLS and parts.hostname and parts.port != 0:
                return cls(scheme, text)
        raise ArgumentError(
            "live",
            f" {_masked(text)}: expected {', '.join(f'{s}://' for s in PROTOCOLS)} with a host, "
            "webcam:0, a file, or - for standard input",
        )

    @property
    def ends(self) -> bool:
        """Whether its end is the end, and no loss after which it might come back."""
        return self.kind in ("-", "file")

    @property
    def shown(self) -> str:
        """For people and logs: without a password."""
        return f"webcam:{self.place}" if self.kind == "webcam" else _masked(self.place)

    def open(self, read_s: float, stdin: Any = None) -> Any:
        """PyAV's container. `read_s`: seconds without data until a read fails. `stdin`: for `-`, a file
        object. Raises av.FFmpegError, OSError or ValueError."""
        options = {"analyzeduration": str(ANALYSIS_US)}
        more: dict[str, Any] = {"metadata_errors": "ignore", "timeout": (OPEN_S, read_s)}
        if self.kind == "-":
            return av.open(stdin, options={**options, "format_whitelist": FORMATS}, **more)
        if self.kind == "webcam":
            form, name = _camera()
            return av.open(name.format(self.place), format=form, **more)
        options |= _whitelists(self.kind)
        if self.kind.startswith("http"):
            options["max_redirects"] = (
                "0"  # the user named a host; who answers may not name another
            )
        if self.kind.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # whole pictures, and no port to open in a firewall
        return av.open(self.place, options=options, **more)

    def _there(self) -> Address:
        if self.kind == "webcam":
            form, name = _camera()
            if form not in av.formats_available:
                raise ArgumentError("live", f" {self.shown}: this PyAV has no {form}")
            path = Path(name.format(self.place))
            missing = path.is_absolute() and not path.exists()
        else:
            path = Path(self.place)
            missing = not path.exists() or path.is_dir()
        if missing:
            raise ArgumentError("live", f" {self.shown}: there is no {path}")
        return self


def _whitelists(scheme: str) -> Mapping[str, str]:
    network = scheme != "file"
    return {
        "protocol_whitelist": PROTOCOLS[scheme],
        "format_whitelist": NETWORK_FORMATS if network else FORMATS,
    }


def _camera() -> tuple[str, str]:
    if sys.platform not in _CAMERAS:
        raise ArgumentError("live", f" webcam: not known on {sys.platform}; pipe it in with -")
    return _CAMERAS[sys.platform]


def _masked(url: str) -> str:
    return re.sub(r"(://[^/@:]*):[^/]*@", r"\1:***@", url)
