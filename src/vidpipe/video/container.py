"""Is the whole file there? FFmpeg plays what it finds; containers say how long they should be.

Only outermost structures are read: boxes of ISO media (MP4, MOV, 3GP), the EBML segment of Matroska
and WebM, the RIFF chunk of AVI, the 188-byte packets of MPEG-TS, the pages of Ogg. Everything else is
not judged.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

TS_PACKET = 188
# A cut in any other box (padding, tags) loses nothing that is decoded.
VITAL_BOXES = {b"moov", b"mdat", b"moof"}
# How the first packet of a stream of pictures starts: Theora, VP8, Dirac, and Ogg's own wrapping of AVI.
OGG_VIDEO = (b"\x80theora", b"OVP80", b"BBCD\0", b"\x01video")
OGG_STARTS, OGG_ENDS = 2, 4
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def cut_short(path: Path) -> str | None:
    """What is missing of the file by its own account, in words.

    Empty where nothing is missing, None where the kind of file does not say.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
            return _iso(file, size)
        if head.startswith(EBML):
            return _matroska(file, size)
        if head.startswith(b"OggS"):
            return _ogg(file, size)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            declared = struct.unpack("<I", head[4:8])[0] + 8
            # Recorders write 0 or the maximum until they close the file.
            if not 8 < declared < 2**32 - 1:
                return None
            short = f"{size} of the {declared} bytes that its RIFF header declares"
            return short if declared > size else ""
        if head[:1] == b"G" and head[:4] != b"GIF8" and size % TS_PACKET:
            file.seek(0)
            starts = file.read(TS_PACKET * 3)[::TS_PACKET]
            if len(starts) > 1 and starts == b"G" * len(starts):
                return f"its last transport packet has {size % TS_PACKET} of {TS_PACKET} bytes"
    return None


def _iso(file: BinaryIO, size: int) -> str:
    position, found = 0, set()
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            wide = file.read(8)
            length = struct.unpack(">Q", wide)[0] if len(wide) == 8 else 16
        elif length == 0:  # to the end of the file
            length = size - position
        if length < 8 or not kind.isalnum():
            break  # not a box: trailing rubbish, which players skip too
        found.add(kind)
        if position + length > size and kind in VITAL_BOXES:
            return f"{size - position} of the {length} bytes of its {kind.decode()} box"
        position += length
    if b"mdat" in found and not found & {b"moov", b"moof"}:
        return "it has media data but no index (moov box)"
    return ""


def _matroska(file: BinaryIO, size: int) -> str | None:
    file.seek(4)
    header = _vint(file)
    if header is None:
        return f"its EBML header ends after {size} bytes"
    file.seek(header, 1)
    if file.read(4) != SEGMENT:
        return "" if file.tell() < size else f"it ends within its header ({size} bytes)"
    length = _vint(file)
    if length is None:
        return None  # unknown on purpose: a live recording
    end = file.tell() + length
    return f"{size} of the {end} bytes that its segment declares" if end > size else ""


def _ogg(file: BinaryIO, size: int) -> str | None:
    """Each stream of pictures starts on a page that says so and ends on one that says so."""
    position, open_streams, found = 0, set(), False
    while position + 27 <= size:
        file.seek(position)
        header = file.read(27)
        if header[:4] != b"OggS":
            return None  # damage, not a cut: for the demuxer to say
        flags, serial = header[5], header[14:18]
        body = sum(file.read(header[26]))
        if flags & OGG_STARTS and file.read(8).startswith(OGG_VIDEO):
            found = True
            open_streams.add(serial)
        position += 27 + header[26] + body
        if position > size:
            return f"its last page has {size - position + body} of {body} bytes"
        if flags & OGG_ENDS:
            open_streams.discard(serial)
    if not found:
        return None
    return "no page says that its video stream ends" if open_streams else ""


def _vint(file: BinaryIO) -> int | None:
    """An EBML variable-length integer; None where it means `unknown` or is not there."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) != width - 1:
        return None
    value = int.from_bytes(bytes([first[0] & (0xFF >> width)]) + rest, "big")
    return None if value == 2 ** (7 * width) - 1 else value
