"""HTTP for streams: the original HTM interfaces, and ours."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Path, Query, Request, Response

from production.clock import moment_of, padded
from production.lanes import Batch
from production.replies import json_reply
from production.streams import MULTI, SINGLE, VALUE, StreamSettings
from production.strict import RequestError, as_object, checked_id, read_json

router = APIRouter()

Name = Annotated[str, Path(description="1 to 64 of A-Z a-z 0-9 . _ -", examples=["boiler-7"])]
Kind = Annotated[
    str | None, Query(description="single or multi, where both exist", examples=["single"])
]

_SINGLE_EXAMPLE = {"timestamp": "2016-12-1 0:00:10", "actualValue": 3855.0}
_MULTI_EXAMPLE = {"A": _SINGLE_EXAMPLE, "B": _SINGLE_EXAMPLE, "C": _SINGLE_EXAMPLE}


def _body(example: Any, media_type: str = "application/json", *more: str) -> dict[str, Any]:
    kind = {"type": "string"} if isinstance(example, str) else {"type": "object"}
    content = {media_type: {"schema": kind, "example": example}}
    for other in more:
        content[other] = {
            "schema": {"type": "object", "properties": {"streamData": {"type": "string"}}},
            "example": {"streamData": json.dumps(example)},
        }
    return {"requestBody": {"required": True, "content": content}}


_FORM = "application/x-www-form-urlencoded"


# --- drop-in: the original HTM interfaces


@router.post(
    "/api/HTM/v1.0/anomalyDetection/{name}",
    tags=["HTM, as the original"],
    summary="Score one value of a stream",
    openapi_extra=_body(_SINGLE_EXAMPLE, "application/json", _FORM),
)
async def anomaly_detection(request: Request, name: Name) -> Response:
    """One record in, one score out; the stream begins with its first record."""
    given = as_object(await _stream_data(request), "streamData")
    record = (_stamp(given), {VALUE: _actual(given, "streamData")})
    [answer] = await _take(request, SINGLE, name, [record])
    _refuse(answer)
    return json_reply(
        {
            "actualValue": answer["value"],
            "anomalyScore": _original_score(answer, answer["score"]),
            "predictValue": answer["prediction"],
            "timestamp": answer["timestamp"],
        }
    )


@router.post(
    "/api/HTM/v1.0/multiAnomalyDetection/{name}",
    tags=["HTM, as the original"],
    summary="Score one record of several fields",
    openapi_extra=_body(_MULTI_EXAMPLE, "application/json", _FORM),
)
async def multi_anomaly_detection(request: Request, name: Name) -> Response:
    """Any field names; they stay the same for the life of the stream."""
    given = as_object(await _stream_data(request), "streamData")
    record = _multi_record(given, request.app.state.settings.bounds.fields)
    [answer] = await _take(request, MULTI, name, [record])
    _refuse(answer)
    stamp = padded(moment_of(answer["timestamp"]))
    return json_reply(
        {
            field: {
                "actualValue": value,
                "anomalyScore": _original_score(answer, answer["scores"][field]),
                "predictValue": answer["prediction"][field],
                "timestamp": stamp,
            }
            for field, value in answer["values"].items()
        }
    )


def _multi_record(given: dict[str, Any], most: int) -> tuple[Any, dict[str, Any]]:
    if not given:
        raise RequestError(422, "streamData must hold one field or more")
    _check_fields(given, most)
    stamps = []
    values = {}
    for field, part in given.items():
        part = as_object(part, f"field {field!r}")
        stamps.append(_stamp(part))
        values[field] = _actual(part, f"field {field!r}")
    if any(stamp != stamps[0] for stamp in stamps):
        raise RequestError(422, "all fields of a record must have the same timestamp")
    return stamps[0], values


def _check_fields(given: dict[str, Any], most: int) -> None:
    if len(given) > most:
        raise RequestError(
            413, f"a record must have {most} fields at most, got {len(given)}", kind="fields"
        )
    for field in given:
        if not 1 <= len(field) <= 64:
            raise RequestError(422, f"a field's name must have 1 to 64 characters: {field[:64]!r}")


def _stamp(given: dict[str, Any]) -> Any:
    return given.get("timestamp")


def _actual(given: dict[str, Any], name: str) -> Any:
    if "actualValue" not in given:
        raise RequestError(422, f"{name} has no actualValue")
    return given["actualValue"]


def _original_score(answer: dict[str, Any], score: float) -> float:
    """Nothing could predict the first record of a stream: wholly novel, as the original says."""
    return 1.0 if answer["seq"] == 1 else score


def _refuse(answer: dict[str, Any]) -> None:
    if answer["status"] == "rejected":
        raise RequestError(409, f"timestamp: {answer['detail']}", kind=answer["reason"])


async def _stream_data(request: Request) -> Any:
    """What was posted: the form field streamData, or JSON."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        found = read_json(body)
        wrapped = isinstance(found, dict) and set(found) == {"streamData"}
        inner = found["streamData"] if wrapped else found
        return read_json(inner) if wrapped and isinstance(inner, str) else inner
    if kind == "multipart/form-data":
        return read_json(await _multipart_field(request))
    if kind and kind != _FORM:
        raise RequestError(
            415, f"send {_FORM} with the field streamData, or application/json; got {kind[:80]!r}"
        )
    try:
        fields = parse_qs(body.decode("utf-8"), max_num_fields=8, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise RequestError(400, "the body is not a form") from None
    if len(fields.get("streamData", [])) != 1:
        raise RequestError(422, "the form must have the field streamData once")
    return read_json(fields["streamData"][0])


async def _multipart_field(request: Request) -> str:
    from starlette.exceptions import HTTPException

    try:
        async with request.form(max_files=0, max_fields=8) as form:
            found = form.getlist("streamData")
    except HTTPException as error:
        raise RequestError(400, f"the form cannot be read: {error.detail}") from None
    if len(found) != 1 or not isinstance(found[0], str):
        raise RequestError(422, "the form must have the field streamData once")
    return found[0]


# --- ours


@router.post(
    "/v1/streams/{name}/records",
    tags=["streams"],
    summary="Score many records: JSON Lines in, JSON Lines out",
    openapi_extra=_body(
        '{"timestamp": "2024-05-01 13:00:00", "value": 20.5}\n'
        '{"timestamp": "2024-05-01 13:01:00", "value": 20.7}\n',
        "application/x-ndjson",
    ),
)
async def records(request: Request, name: Name) -> Response:
    """Lines with ``value``, or with ``values``, a mapping of field to number.

    A fault in the form of any line refuses all of them. Records that the stream's
    policy refuses are answered with ``"status": "rejected"``, the others are scored.
    """
    body = await request.body()
    bounds = request.app.state.settings.bounds
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not lines:
        raise RequestError(422, "the body holds no record")
    if len(lines) > bounds.rows:
        raise RequestError(
            413, f"a batch must have {bounds.rows} records at most, got {len(lines)}", kind="rows"
        )
    kind, given = _records_of(lines, bounds.fields)
    answers = await _take(request, kind, name, given, body)
    text = "\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers)
    return Response(text + "\n", media_type="application/x-ndjson")


_RECORD = frozenset({"timestamp", "value", "values", "actualValue"})


def _records_of(lines: list[bytes], most: int) -> tuple[str, list[tuple[Any, dict[str, Any]]]]:
    given, kinds = [], set()
    for i, line in enumerate(lines):
        try:
            record = as_object(read_json(line), "a record", _RECORD)
            kind, values = _values_of(record, most)
        except RequestError as error:
            raise RequestError(error.status, f"line {i + 1}: {error.detail}", error.kind) from None
        kinds.add(kind)
        given.append((record.get("timestamp"), values))
    if len(kinds) > 1:
        raise RequestError(422, "a batch must hold either value or values, not both")
    return kinds.pop(), given


def _values_of(record: dict[str, Any], most: int) -> tuple[str, dict[str, Any]]:
    named = [name for name in ("value", "values", "actualValue") if name in record]
    if len(named) != 1:
        raise RequestError(422, "a record must have value or values, one of them")
    if named[0] != "values":
        return SINGLE, {VALUE: record[named[0]]}
    values = as_object(record["values"], "values")
    if not values:
        raise RequestError(422, "values must hold one field or more")
    _check_fields(values, most)
    return MULTI, values


async def _take(
    request: Request,
    kind: str,
    name: str,
    given: list[tuple[Any, dict[str, Any]]],
    body: bytes | None = None,
) -> list[dict[str, Any]]:
    """Hand records to their stream's lane and wait until the answers are durable."""
    begin = time.perf_counter()
    state = request.app.state
    checked_id(name, "stream id")
    given = [(_arrival(state.settings.streams, stamp), values) for stamp, values in given]
    key = request.headers.get("idempotency-key", "")
    if key:
        checked_id(key, "Idempotency-Key")
    digest = hashlib.sha256(body if body is not None else await request.body()).hexdigest()
    batch = Batch(kind, name, given, key, digest, state.settings.streams)
    answers = await asyncio.wrap_future(state.lanes.take(batch))
    detector = state.settings.streams.detector or "stream"
    state.metrics.answered(detector, answers, time.perf_counter() - begin)
    return answers


def _arrival(settings: StreamSettings, stamp: Any) -> Any:
    if stamp is None and settings.no_timestamp == "arrival":
        return time.time()
    if stamp is None:
        raise RequestError(422, "a record has no timestamp")
    return stamp


@router.get("/v1/streams", tags=["streams"], summary="List streams with their newest scores")
async def streams(
    request: Request,
    after: Annotated[str, Query(max_length=80, examples=[""])] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """In the order of their ids; ``next`` is what to send as ``after`` for more."""
    lanes = request.app.state.lanes
    found = await asyncio.to_thread(lanes.overview, after, limit)
    last = found[-1] if len(found) == limit else None
    return json_reply(
        {
            "streams": found,
            "count": lanes.census.count,
            "next": None if last is None else f"{last['id']}/{last['kind']}",
        }
    )


@router.put(
    "/v1/streams/{name}",
    tags=["streams"],
    summary="Configure a stream",
    openapi_extra=_body({"detector": "tiles", "threshold": 0.5, "late": "reject"}),
)
async def configure(request: Request, name: Name, kind: Kind = None) -> Response:
    """Detector, min, max, resolution, prediction_step, threshold, parameters, and the policy.

    Once a stream has records only the policy may change.
    """
    checked_id(name, "stream id")
    settings = StreamSettings.read(read_json(await request.body()))
    wanted = _checked_kind(kind) or SINGLE
    done = await asyncio.wrap_future(request.app.state.lanes.configure(wanted, name, settings))
    return json_reply(done)


@router.get("/v1/streams/{name}", tags=["streams"], summary="Settings and counts of a stream")
async def stream(request: Request, name: Name, kind: Kind = None) -> Response:
    wanted = await _existing(request, name, kind)
    return json_reply(await asyncio.wrap_future(request.app.state.lanes.look(wanted, name)))


@router.delete("/v1/streams/{name}", tags=["streams"], summary="Forget a stream", status_code=204)
async def remove(request: Request, name: Name, kind: Kind = None) -> Response:
    """Its state, its records and its answers; a later record begins anew."""
    wanted = await _existing(request, name, kind)
    await asyncio.wrap_future(request.app.state.lanes.remove(wanted, name))
    await asyncio.to_thread(request.app.state.store.forget_stream, wanted, name)
    return Response(status_code=204)


@router.get("/v1/streams/{name}/scores", tags=["streams"], summary="Scores since a time")
async def scores(
    request: Request,
    name: Name,
    kind: Kind = None,
    since: Annotated[str, Query(max_length=64, examples=["2024-05-01 13:00:00"])] = "",
    after: Annotated[int, Query(ge=0, le=2**62, description="sequence number")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    newest: Annotated[bool, Query(description="the newest so many, not the first")] = False,
) -> Response:
    """JSON Lines, in the order in which the records came."""
    wanted = await _existing(request, name, kind)
    moment = moment_of(_number_or_text(since)).instant if since else -math.inf
    found = await asyncio.to_thread(
        request.app.state.lanes.answers,
        wanted,
        name,
        since=moment,
        after=after,
        most=limit,
        newest=newest,
    )
    text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found)
    return Response(text, media_type="application/x-ndjson")


def _number_or_text(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _checked_kind(kind: str | None) -> str | None:
    if kind not in (None, SINGLE, MULTI):
        raise RequestError(422, f"kind must be single or multi, got {str(kind)[:40]!r}")
    return kind


async def _existing(request: Request, name: str, kind: str | None) -> str:
    checked_id(name, "stream id")
    wanted = _checked_kind(kind)
    kinds = await asyncio.to_thread(request.app.state.lanes.kinds, name)
    if not kinds or wanted not in (None, *kinds):
        of_kind = f" of kind {wanted}" if wanted else ""
        raise RequestError(404, f"there is no stream {name!r}{of_kind}", kind="unknown")
    return wanted or kinds[0]
