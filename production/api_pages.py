"""Pages and probes: health, metrics, the list of calls."""

from __future__ import annotations

import asyncio
import html
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from production.replies import json_reply

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Whether the process lives")
async def healthz() -> Response:
    return json_reply({"status": "ok"})


@router.get("/readyz", summary="Whether requests can be served")
async def readyz(request: Request) -> Response:
    """503 while a part is missing; ``faults`` names it."""
    state = request.app.state
    faults = [] if state.lanes.is_alive() else ["a lane has stopped"]
    lost = await asyncio.to_thread(state.store.fault)
    if lost:
        faults.append("the database does not answer")
    status = 503 if faults else 200
    return json_reply({"status": "ready" if not faults else "not ready", "faults": faults}, status)


@router.get("/metrics", summary="Counters and latencies for Prometheus")
async def metrics(request: Request) -> Response:
    state = request.app.state
    state.metrics.streams.set(state.lanes.census.count)
    state.metrics.store_lag.set(await asyncio.to_thread(state.exporter.lag))
    state.metrics.waiting.set(sum(lane.waiting.qsize() for lane in state.lanes.lanes))
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


_PAGES = Path(__file__).parent / "pages"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


@router.get("/", include_in_schema=False)
async def dashboard() -> Response:
    """The page that a person keeps open."""
    return _page("dashboard.html")


@router.get("/pages/dashboard.js", include_in_schema=False)
async def script() -> Response:
    return _page("dashboard.js")


@router.get("/pages/dashboard.css", include_in_schema=False)
async def style() -> Response:
    return _page("dashboard.css")


def _page(name: str) -> Response:
    kind = _TYPES[Path(name).suffix]
    return Response((_PAGES / name).read_bytes(), media_type=f"{kind}; charset=utf-8")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Every call with an example, as a page that needs nothing from outside."""
    return Response(docs_page(request.app.openapi()), media_type="text/html; charset=utf-8")


def docs_page(schema: dict[str, Any]) -> str:
    """The OpenAPI description as one HTML page."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, call in methods.items():
            parts.append(_call(path, method, call))
    title = html.escape(schema["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: calls</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<h1>{title}</h1><p><a href="openapi.json">openapi.json</a></p>{"".join(parts)}</html>'
    )


def _call(path: str, method: str, call: dict[str, Any]) -> str:
    text = html.escape(" ".join(str(call.get("description", "")).split()))
    curl = html.escape(_curl(path, method, call))
    return (
        f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
        f"<p>{html.escape(call.get('summary', ''))}. {text}</p><pre>{curl}</pre></section>"
    )


def _curl(path: str, method: str, call: dict[str, Any]) -> str:
    line = f"curl -X {method.upper()} http://127.0.0.1:5000{path.replace('{name}', 'boiler-7')}"
    for media_type, body in call.get("requestBody", {}).get("content", {}).items():
        example = body.get("example")
        if example is not None:
            text = example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)
            return f"{line} \\\n  -H 'Content-Type: {media_type}' \\\n  --data-binary '{text}'"
    return line
