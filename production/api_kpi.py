"""HTTP for KPI windows, as the original has it."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from production.replies import kpi_reply
from production.strict import RequestError, read_json

router = APIRouter(tags=["KPI windows, as the original"])

_TIME = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2}) (\d{1,2}):(\d{1,2}):(\d{1,2})", re.ASCII)
_NAMES = ("viewId", "viewName", "attrId", "attrName")
_LONG = 1000  # points of a window from which its test leaves the event loop

EXAMPLE = {
    "viewId": "2012",
    "viewName": "logins",
    "attrId": "19201",
    "attrName": "login requests",
    "window": 10,
    "time": "2018-10-17 17:28:00",
    "dataC": ",".join(["9", "10", "12"] * 7),
    "dataB": ",".join(["9", "10", "12"] * 7),
    "dataA": "9,10,12,9,10,12,9,10,12,9,458",
}

_EXTRA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}, "example": EXAMPLE}},
    }
}


@router.post("/PredictValue", summary="Test the newest value of a KPI", openapi_extra=_EXTRA)
async def predict_value(request: Request) -> Response:
    """``ret`` 0 is anomalous, 1 normal; ``p`` below 0.15, the probability of normal, is 0."""
    return await _predict(request, "value")


@router.post("/PredictRate", summary="Test the newest rate of a KPI", openapi_extra=_EXTRA)
async def predict_rate(request: Request) -> Response:
    """``ret`` 0 is anomalous, 1 normal; ``p`` is the probability of normal."""
    return await _predict(request, "rate")


async def _predict(request: Request, kind: str) -> Response:
    begin = time.perf_counter()
    state = request.app.state
    given = read_json(await request.body())
    fault = check_window(given, state.settings.bounds.window)
    if fault:
        state.metrics.refused("window")
        return kpi_reply(1002, None, fault)
    test = state.detect.value_predict if kind == "value" else state.detect.rate_predict
    asked = given if given.get("taskId") else {**given, "taskId": state.promoted}
    if int(given["window"]) > _LONG:
        code, answer = await asyncio.to_thread(test, asked)
    else:
        code, answer = test(asked)
    if code != 0:
        state.metrics.refused("window")
        return kpi_reply(code, None, str(answer))
    if answer["ret"] == 0:
        await asyncio.to_thread(state.store.add_kpi_anomaly, kind, given, answer["p"])
    state.metrics.tested(kind, answer["ret"] == 0, time.perf_counter() - begin)
    return kpi_reply(0, {"ret": answer["ret"], "p": answer["p"]})


def check_window(given: Any, longest: int) -> str:
    """What is at fault in a request, naming the field; empty where nothing is.

    Examples
    --------
    >>> from production.api_kpi import EXAMPLE, check_window
    >>> check_window(EXAMPLE, 10_080), check_window({**EXAMPLE, "window": 5}, 10_080)
    ('', 'window must be 10 to 10080')
    """
    if not isinstance(given, dict):
        raise RequestError(400, "the body must be a JSON object")
    for name in _NAMES:
        text = given.get(name)
        if text is None:
            return f"{name} is missing"
        if isinstance(text, bool) or not isinstance(text, str | int):
            return f"{name} must be a text"
        if not str(text).strip():
            return f"{name} can not be empty"
        if len(str(text)) > 255:
            return f"{name} must have 255 characters at most"
    for name in ("window", "time", "dataC", "dataB", "dataA"):
        if given.get(name) is None:
            return f"{name} is missing"
    task = given.get("taskId")
    if task is not None and not isinstance(task, str):
        return "taskId must be a text"
    return _check_length(given["window"], longest) or _check_time(given["time"])


def _check_length(window: Any, longest: int) -> str:
    text = str(window)
    if isinstance(window, bool) or not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return "window must be a whole number"
    return "" if 10 <= int(text) <= longest else f"window must be 10 to {longest}"


def _check_time(text: Any) -> str:
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    try:
        if found is None:
            raise ValueError
        datetime(*(int(n) for n in found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return "time must be yyyy-MM-dd HH:mm:ss"
    return ""
