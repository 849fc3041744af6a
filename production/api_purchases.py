"""HTTP for purchase networks."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from production.purchase_store import NetworkSettings
from production.replies import json_reply
from production.strict import checked_id, read_json

router = APIRouter(prefix="/v1/purchases", tags=["purchases"])

Name = Annotated[str, Path(description="1 to 64 of A-Z a-z 0-9 . _ -", examples=["shop"])]

_EVENTS = (
    '{"event_type": "befriend", "timestamp": "2026-03-01 09:00:00", "id1": "ann", "id2": "bob"}\n'
    '{"event_type": "purchase", "timestamp": "2026-03-01 09:05:00", "id": "ann", '
    '"amount": "12.50"}\n'
)


def _extra(media_type: str, example: Any) -> dict[str, Any]:
    kind = {"type": "string"} if isinstance(example, str) else {"type": "object"}
    content = {media_type: {"schema": kind, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


@router.get("", summary="List purchase networks")
async def networks(request: Request) -> Response:
    return json_reply({"networks": await asyncio.to_thread(request.app.state.purchases.names)})


@router.put(
    "/{name}",
    summary="Make a purchase network",
    openapi_extra=_extra("application/json", {"degree": 2, "window_size": 50, "sigma": 3}),
)
async def create(request: Request, name: Name) -> Response:
    """Settings stay for the life of the network; the same ones again change nothing."""
    checked_id(name, "network id")
    settings = NetworkSettings.read(read_json(await request.body()))
    return json_reply(await asyncio.to_thread(request.app.state.purchases.create, name, settings))


@router.get("/{name}", summary="Settings and counts of a purchase network")
async def look(request: Request, name: Name) -> Response:
    checked_id(name, "network id")
    return json_reply(await asyncio.to_thread(request.app.state.purchases.look, name))


@router.delete("/{name}", summary="Forget a purchase network", status_code=204)
async def remove(request: Request, name: Name) -> Response:
    checked_id(name, "network id")
    await asyncio.to_thread(request.app.state.purchases.remove, name)
    return Response(status_code=204)


@router.post(
    "/{name}",
    summary="Judge and apply events: JSON Lines in, JSON Lines out",
    openapi_extra=_extra("application/x-ndjson", _EVENTS),
)
async def events(
    request: Request,
    name: Name,
    judge: Annotated[bool, Query(description="false: a history, applied unjudged")] = True,
) -> Response:
    """One answer per event, in order, once all of them are on disk.

    A fault in any line refuses all of them. With an ``Idempotency-Key`` a batch
    that is sent again gets its first answers and is not applied twice.
    """
    checked_id(name, "network id")
    key = request.headers.get("idempotency-key", "")
    if key:
        checked_id(key, "Idempotency-Key")
    state = request.app.state
    answers = await asyncio.to_thread(
        state.purchases.take,
        name,
        await request.body(),
        judge=judge,
        key=key,
        most=state.settings.bounds.rows,
    )
    text = "".join(json.dumps(answer) + "\n" for answer in answers)
    return Response(text, media_type="application/x-ndjson")
