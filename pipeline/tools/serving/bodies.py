"""The body of a request: a video's bytes, a form with a file, or JSON that names a URL or a path.

Bytes go to a file as they come, so memory does not grow with them; more than the limit is refused when
the limit is reached, whatever the request says of its length.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from vidpipe.inference.given import Refused, Rules, source_of

MOST_JSON = 2**20
"""Bytes of a JSON body: a URL or path, and boxes."""
AROUND = 2**16
"""Bytes of a form beside its file."""
BINARY = ("video/", "image/", "application/octet-stream", "application/mp4", "application/ogg")


@asynccontextmanager
async def video_of(
    request: Request, rules: Rules, scratch: Path
) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    """The path or URL of the request's video, and what its JSON or form says beside it.

    A file made of it is removed afterwards. Raises Refused: 415 for another kind of body, 413 for one
    that is too long, 400 for one that is damaged or empty.
    """
    kind = request.headers.get("content-type", "application/octet-stream")
    kind = kind.partition(";")[0].strip().lower()
    if kind == "application/json":
        given = dict(await read_json(request))
        video: dict[str, Any] = {key: given.pop(key) for key in ("url", "path") if key in given}
        if "bytes" in given:
            raise Refused(422, "bad_parameter", "bytes: send a video's bytes as the body itself")
        with source_of(video, rules, scratch) as source:
            yield source, given
        return
    if kind != "multipart/form-data" and not kind.startswith(BINARY):
        raise Refused(
            415,
            "wrong_kind",
            f"Content-Type {kind[:80]!r}: expected video/*, application/octet-stream, "
            "multipart/form-data or application/json",
        )
    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        limit = int(rules.max_mb * 2**20)
        if kind == "multipart/form-data":
            more = await _form(request, file, rules, limit)
        else:
            more = {}
            async for chunk in _limited(request, limit, rules.too_large()):
                file.write(chunk)
        file.flush()
        if file.tell() == 0:
            raise Refused(400, "empty", "the request has no video: its body is empty")
        yield file.name, more


async def read_json(request: Request) -> Mapping[str, Any]:
    """The body as an object. Raises Refused."""
    too_long = Refused(413, "too_large", f"JSON of more than {MOST_JSON >> 20} MB")
    body = b"".join([chunk async for chunk in _limited(request, MOST_JSON, too_long)])
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "bad_json", "the body is no JSON") from None
    if not isinstance(given, dict):
        raise Refused(
            422, "bad_parameter", 'the body: expected an object such as {"path": "a.mp4"}'
        )
    return given


async def _limited(request: Request, limit: int, refusal: Refused) -> AsyncIterator[bytes]:
    """The body's chunks. Raises `refusal` beyond `limit` bytes, by what is said or by what comes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise refusal
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise refusal
            yield chunk
    except ClientDisconnect:
        raise Refused(400, "disconnected", "the request broke off") from None


async def _form(request: Request, file: Any, rules: Rules, limit: int) -> dict[str, Any]:
    """Write the form's file to `file`; its other fields. Raises Refused."""
    refusal = rules.too_large()
    chunks = _limited(request, limit + AROUND, refusal)

    async def receive() -> dict[str, Any]:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": chunk, "more_body": True}

    limited = Request(request.scope, receive)
    try:
        async with limited.form(max_files=1, max_fields=20, max_part_size=AROUND) as form:
            uploads = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(uploads) != 1:
                raise Refused(422, "bad_parameter", f"form: expected one file, got {len(uploads)}")
            shutil.copyfileobj(uploads[0].file, file)
            if file.tell() > limit:
                raise refusal
            return {key: value for key, value in form.items() if isinstance(value, str)}
    except HTTPException as error:
        raise Refused(400, "bad_form", f"the form is damaged: {error.detail}"[:300]) from None
