"""The HTTP API of `vidpipe serve`: an ASGI app over a `Service`. An error is one line of JSON."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from contextlib import suppress
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.infra.own_page import OwnPage
from pipeline.tools.serving.bodies import read_json, video_of
from pipeline.tools.serving.measures import prometheus
from pipeline.tools.serving.service import Service
from vidpipe.inference.given import Refused
from vidpipe.serving.answering import Item
from vidpipe.serving.queries import read_query
from vidpipe.text import json_line

LOG = logging.getLogger("ray.serve")
DROPPED_BYTES, DROPPED_S = 2**28, 5
"""Of a body that nobody reads: at most."""
RETRY_S = 1
"""Seconds after which a client that was sent away may ask again."""


class Host(Protocol):
    """Who runs the service, as one of several replicas or alone."""

    async def together(self, item: Item) -> Any:
        """`Service.compute` of the item, with others that wait at the time."""

    async def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Results of that method of every replica's service; a Refused among them is a result."""

    async def keep(self, models: Any) -> None:
        """What a replica that starts later is to load."""


def application(service: Service, host: Host) -> Starlette:
    """The routes, over `service`; `Api` says what each does."""
    api = Api(service, host)
    routes = [
        Route("/health", api.health),
        Route("/models", api.models),
        Route("/metrics", api.metrics),
        Route("/predict", api.predict, methods=["POST"]),
        Route("/predict/{model}", api.predict, methods=["POST"]),
        Route("/admin/models", api.load, methods=["POST"]),
        Route("/admin/models/{model}", api.unload, methods=["DELETE"]),
    ]
    hosts = service.settings.hosts
    own = [] if hosts is None else [Middleware(OwnPage, hosts=hosts, refusal=_elsewhere())]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Counted, service=service), *own],
        exception_handlers={Refused: _refused, HTTPException: _http},
    )


class Api:
    """What each route does."""

    def __init__(self, service: Service, host: Host) -> None:
        self.service, self.host = service, host
        self._changing = asyncio.Lock()

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok", "in_flight": self.service.measures.in_flight})

    async def models(self, request: Request) -> Response:
        return _json(self.service.report())

    async def metrics(self, request: Request) -> Response:
        text = prometheus(await self.host.everywhere("snapshot"))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def predict(self, request: Request) -> Response:
        """Of a bounded number at a time: who comes when it is reached is sent away before the body is
        read, so that neither memory nor the disk grow with what comes."""
        service, settings = self.service, self.service.settings
        measures = service.measures
        if measures.in_flight >= settings.max_queue:
            raise Refused(
                429, "full", f"{settings.max_queue} requests are being worked on; try later"
            )
        measures.begin()
        try:
            async with asyncio.timeout(settings.deadline_s):
                return await self._predicted(request)
        except TimeoutError:
            raise Refused(503, "slow", f"no answer within {settings.deadline_s:g} s") from None
        finally:
            measures.end()

    async def _predicted(self, request: Request) -> Response:
        service = self.service
        given = dict(request.query_params)
        # What can be refused is refused before the body is read.
        name = request.path_params.get("model") or given.pop("model", None)
        if name is not None:
            service.model(name)
        read_query(given)
        async with video_of(request, service.settings.rules, service.scratch) as (source, more):
            wanted = {"top": service.settings.top, **more, **given}
            model = service.model(name or wanted.pop("model", None))
            query = read_query({key: wanted[key] for key in wanted if key != "model"})
            return _json(await service.answer(model, source, query, self.host.together))

    # -- changing the models --------------------------------------------------------------------

    async def load(self, request: Request) -> Response:
        """`{"path": folder below the root, "name": ...}`."""
        self._refuse_strangers(request)
        given = await read_json(request)
        if unknown := given.keys() - {"path", "name"}:
            raise Refused(
                422, "bad_parameter", f"{sorted(unknown)[0][:80]}: expected path and name"
            )
        path, name = given.get("path"), given.get("name")
        if name is None and isinstance(path, str):
            name = path.rstrip("/").rpartition("/")[2]
        async with self._changing:
            before = {each for each, _ in self.service.listed()}
            results = await self.host.everywhere("load", path, name)
            refused = next((each for each in results if isinstance(each, Exception)), None)
            if refused is not None:
                if len(results) > 1 and name not in before:  # some may have it
                    await self.host.everywhere("unload", name)
                raise refused
            await self.host.keep(self.service.listed())
        return _json(results[0], 201)

    async def unload(self, request: Request) -> Response:
        self._refuse_strangers(request)
        async with self._changing:
            results = await self.host.everywhere("unload", request.path_params["model"])
            if all(isinstance(each, Exception) for each in results):
                raise results[0]
            await self.host.keep(self.service.listed())
        return _json({"unloaded": request.path_params["model"]})

    def _refuse_strangers(self, request: Request) -> None:
        """Another site's page cannot send JSON or DELETE here without asking first, which is not
        answered; anyone else shows the token, where there is one."""
        settings = self.service.settings
        if not settings.admin or settings.rules.root is None:
            raise Refused(
                403,
                "no_admin",
                "models are not changed here: start with --root FOLDER, and on other addresses than "
                "this machine's with VIDPIPE_ADMIN_TOKEN",
            )
        if settings.token is not None:
            shown = request.headers.get("authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Bearer {settings.token}".encode()):
                raise Refused(401, "no_token", "Authorization: expected Bearer and the token")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise Refused(415, "wrong_kind", "Content-Type: expected application/json")


class Counted:
    """ASGI middleware: counts every answer with its route, status and duration, and answers for what
    nobody foresaw, which the log has.

    What is left of a refused request's body is read and dropped, for a while: whoever is still sending
    would find the connection closed, and never see the answer.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.measures = app, service.measures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 499  # of a client that went away
        more = True

        async def receiving() -> Any:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drop() -> None:
            size = 0
            while more and size < DROPPED_BYTES:
                size += len((await receiving()).get("body", b""))

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and more:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(drop(), DROPPED_S)
            await send(message)

        first = scope["path"].strip("/").partition("/")[0]
        known = ("predict", "models", "health", "metrics", "admin")
        try:
            await self.app(scope, receiving, sending)
        except Exception:
            LOG.exception("%s %s", scope["method"], scope["path"])
            if status != 499:  # half an answer is sent
                raise
            await _error(500, "internal", "internal error; the server's log has it")(
                scope, receiving, sending
            )
        finally:
            route = first if first in known else "other"
            self.measures.answered(route, status, time.perf_counter() - begun)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_line(value) + "\n", status, headers, "application/json")


def _error(status: int, reason: str, message: str) -> Response:
    headers = {"Retry-After": str(RETRY_S)} if status in (429, 503) else None
    return _json({"error": " ".join(message.split()), "reason": reason}, status, headers)


def _elsewhere() -> Response:
    return _error(403, "other_site", "this server answers under its own address only")


async def _refused(request: Request, error: Any) -> Response:
    return _error(error.status, error.reason, str(error))


async def _http(request: Request, error: Any) -> Response:
    reasons = {404: "no_route", 405: "wrong_method"}
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return _error(error.status_code, reasons.get(error.status_code, "http"), message)
