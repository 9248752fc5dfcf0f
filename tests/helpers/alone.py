"""A host of `vidpipe serve`'s application without Ray: one replica, one item at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.tools.serving.service import Service
from vidpipe.errors import VidpipeError
from vidpipe.serving.answering import Item


class Alone:
    """`kept`: what a replica that starts later would be told."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.kept: Any = None

    async def together(self, item: Item) -> Any:
        (result,) = await asyncio.to_thread(self.service.compute, [item])
        if isinstance(result, Exception):
            raise result
        return result

    async def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        try:
            return [await asyncio.to_thread(getattr(self.service, method), *arguments)]
        except VidpipeError as error:
            return [error]

    async def keep(self, value: Any) -> None:
        self.kept = value
