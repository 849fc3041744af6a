"""HTTP for anomalies, samples and training, as the original has it; promotion, as ours."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Query, Request, Response

from anomaly.errors import AnomalyError
from anomaly.value import ValueDetector, model_path
from production.replies import json_reply, kpi_reply
from production.store import NEGATIVE, POSITIVE, TRUE_ALARM, UNMARKED, Store
from production.strict import (
    RequestError,
    as_number,
    as_object,
    as_text,
    as_whole,
    checked_id,
    read_json,
)

router = APIRouter(tags=["anomalies, samples and training, as the original"])

COLUMNS = (
    "view_name",
    "view_id",
    "attr_name",
    "attr_id",
    "source",
    "train_or_test",
    "positive_or_negative",
    "window",
    "data_c",
    "data_b",
    "data_a",
    "data_time",
)
_LATEST = 253_402_300_799
_SETS = ("train", "test")
LEAST_SAMPLES = 10


def _example(example: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"sample_file": {"type": "string", "format": "binary"}},
                },
                "example": {"sample_file": "@samples.csv"},
            }
        },
    }
}


async def _form(request: Request) -> dict[str, Any]:
    return as_object(read_json(await request.body()), "the body")


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _page(
    request: Request,
    form: dict[str, Any],
    table: str,
    conditions: list[Any],
    *,
    newest: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of the page that the form asks for, and what the reply says of it."""
    page = as_whole(form.get("requestPage", 1), "requestPage", 1, 10**6)
    size = as_whole(form.get("itemPerPage", 10), "itemPerPage", 1, 500)
    rows, total = await asyncio.to_thread(
        _store(request).page, table, conditions, page, size, "id", newest=newest
    )
    return rows, {"currentPage": page, "totalCount": total}


def _given(form: dict[str, Any], name: str) -> Any:
    """A field that counts: the original sends "" for one that does not."""
    value = form.get(name)
    return None if value in ("", None, []) else value


def _seconds(form: dict[str, Any], name: str) -> float | None:
    value = _given(form, name)
    if isinstance(value, str):
        return float(as_whole(value, name, 0, _LATEST))
    return None if value is None else as_number(value, name)


def _words(form: dict[str, Any], name: str, allowed: Sequence[str] = ()) -> list[str]:
    """One text or a list of them."""
    value = _given(form, name)
    words = [] if value is None else value if isinstance(value, list) else [value]
    if len(words) > 100:
        raise RequestError(422, f"{name} must name 100 at most")
    for word in words:
        as_text(word, name)
        if allowed and word not in allowed:
            raise RequestError(
                422, f"{name} must be one of {', '.join(allowed)}, got {word[:40]!r}"
            )
    return words


def _named(table: sa.Table, form: dict[str, Any]) -> list[Any]:
    """Conditions on attribute and view: the id, or part of the name."""
    conditions: list[Any] = []
    for name, column in (("attrId", "attr"), ("viewId", "view")):
        text = _given(form, name)
        if text is not None:
            text = as_text(text if isinstance(text, str) else str(text), name)
            conditions.append(
                sa.or_(
                    table.c[f"{column}_id"] == text,
                    table.c[f"{column}_name"].contains(text, autoescape=True),
                )
            )
    return conditions


def _between(column: Any, form: dict[str, Any]) -> list[Any]:
    begin, end = _seconds(form, "beginTime"), _seconds(form, "endTime")
    conditions = [] if begin is None else [column >= begin]
    return conditions if end is None else [*conditions, column <= end]


# --- anomalies


@router.post(
    "/SearchAnomaly",
    summary="Anomalies by id, time span, attribute; paged",
    openapi_extra=_example(
        {"requestPage": 1, "itemPerPage": 10, "beginTime": 0, "endTime": 2000000000, "attrId": ""}
    ),
)
async def search_anomaly(request: Request) -> Response:
    """Times in seconds since 1970. ``markFlag``: 0 unmarked, 1 false alarm, 2 true alarm."""
    form = await _form(request)
    table = _store(request).tables["anomalies"]
    conditions = _named(table, form) + _between(table.c.time, form)
    if _given(form, "id") is not None:
        conditions.append(table.c.id == as_whole(form["id"], "id", 1, 2**31 - 1))
    if _given(form, "markFlag") is not None:
        conditions.append(table.c.mark == as_whole(form["markFlag"], "markFlag", 0, 2))
    if _given(form, "kind") is not None:
        conditions.append(table.c.kind == as_text(form["kind"], "kind", 16))
    rows, page = await _page(request, form, "anomalies", conditions, newest=True)
    return kpi_reply(0, {"anomalyList": [_anomaly(row) for row in rows], **page})


def _anomaly(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "kind": row["kind"],
        "viewId": row["view_id"],
        "viewName": row["view_name"],
        "attrId": row["attr_id"],
        "attrName": row["attr_name"],
        "taskId": row["task_id"],
        "time": row["time"],
        "dataC": row["data_c"].split(",") if row["data_c"] else [],
        "dataB": row["data_b"].split(",") if row["data_b"] else [],
        "dataA": row["data_a"].split(",") if row["data_a"] else [],
        "p": f"{row['p']:.9g}",
        "seq": row["seq"],
        "explanation": row["explanation"],
        "markFlag": row["mark"],
    }


@router.post(
    "/UpdateAnomaly",
    summary="Mark an anomaly as a false (1) or true (2) alarm, or as neither (0)",
    openapi_extra=_example({"id": 1, "markFlag": 2}),
)
async def update_anomaly(request: Request) -> Response:
    """A marked KPI window becomes a training sample; unmarking takes it back."""
    form = await _form(request)
    number = as_whole(form.get("id"), "id", 1, 2**31 - 1)
    mark = as_whole(form.get("markFlag"), "markFlag", UNMARKED, TRUE_ALARM)
    changed = await asyncio.to_thread(_store(request).mark_anomaly, number, mark)
    if not changed:
        return kpi_reply(1002, None, f"id: there is no anomaly {number}")
    return kpi_reply(0, changed)


# --- samples


@router.post("/ImportSample", summary="Import samples from CSV", openapi_extra=_UPLOAD)
async def import_sample(request: Request) -> Response:
    """Multipart field ``sample_file``; the columns are those of ``/DownloadSample``.

    A fault in any line refuses the file, with code 1003 and the line's number.
    """
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    try:
        async with request.form(max_files=1, max_fields=4) as form:
            upload = form.get("sample_file")
            content = await upload.read() if isinstance(upload, UploadFile) else None
    except (HTTPException, AssertionError) as error:
        raise RequestError(400, f"the upload cannot be read: {error}", "file") from None
    if content is None:
        return kpi_reply(1003, None, "the field sample_file with a CSV file is missing")
    bounds = request.app.state.settings.bounds
    rows = await asyncio.to_thread(read_samples, content, bounds.rows, bounds.window)
    with_samples = _store(request).tables["samples"]

    def insert() -> None:
        with _store(request).transaction() as connection:
            connection.execute(with_samples.insert(), rows)

    await asyncio.to_thread(insert)
    positive = sum(row["positive_or_negative"] == POSITIVE for row in rows)
    return kpi_reply(
        0,
        {
            "positiveCount": positive,
            "negativeCount": len(rows) - positive,
            "totalCount": len(rows),
        },
    )


def read_samples(content: bytes, most: int, longest: int) -> list[dict[str, Any]]:
    """Rows of a CSV file of samples.

    Raises
    ------
    RequestError
        Of kind ``file``, with the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(422, f"not UTF-8 at byte {error.start}", "file") from None
    rows: list[dict[str, Any]] = []
    lines = csv.reader(io.StringIO(text), strict=True)
    csv.field_size_limit(1 << 24)
    try:
        for cells in lines:
            if lines.line_num == 1 or not cells:
                continue
            if len(rows) >= most:
                raise RequestError(413, f"a file must have {most} samples at most", "file")
            rows.append(_sample(cells, longest))
    except (csv.Error, RequestError) as error:
        raise RequestError(
            getattr(error, "status", 422), f"line {lines.line_num}: {error}", "file"
        ) from None
    if not rows:
        raise RequestError(422, "the file holds no sample", "file")
    return rows


def _sample(cells: list[str], longest: int) -> dict[str, Any]:
    if len(cells) != len(COLUMNS):
        raise RequestError(422, f"{len(cells)} cells, needed are {len(COLUMNS)}")
    row: dict[str, Any] = dict(zip(COLUMNS, cells, strict=True))
    for name in COLUMNS[:5]:
        as_text(row[name], name)
    _check_choices(row)
    row["window"] = as_whole(row["window"], "window", 10, longest)
    row["data_time"] = as_whole(row["data_time"], "data_time", 0, _LATEST)
    for name, n in (("data_c", 2), ("data_b", 2), ("data_a", 1)):
        _check_numbers(name, row[name], n * row["window"] + 1)
    return row | {"update_time": row["data_time"], "anomaly_id": None}


def _check_choices(row: dict[str, Any]) -> None:
    for name, allowed in (
        ("train_or_test", _SETS),
        ("positive_or_negative", (POSITIVE, NEGATIVE)),
    ):
        if name in row and row[name] not in allowed:
            raise RequestError(422, f"{name} must be one of {', '.join(allowed)}")


def _check_numbers(name: str, text: str, wanted: int) -> None:
    parts = text.split(",")
    if len(parts) != wanted:
        raise RequestError(422, f"{name} must hold {wanted} numbers, got {len(parts)}")
    try:
        if not all(abs(float(part)) < 1e150 for part in parts):
            raise ValueError
    except ValueError:
        raise RequestError(422, f"{name} contains illegal numbers") from None


def _sample_conditions(table: sa.Table, form: dict[str, Any]) -> list[Any]:
    conditions = _named(table, form) + _between(table.c.data_time, form)
    for name, column, allowed in (
        ("trainOrTest", "train_or_test", _SETS),
        ("positiveOrNegative", "positive_or_negative", (POSITIVE, NEGATIVE)),
        ("source", "source", ()),
    ):
        words = _words(form, name, allowed)
        if words:
            conditions.append(table.c[column].in_(words))
    if _given(form, "window") is not None:
        conditions.append(table.c.window == as_whole(form["window"], "window", 1, 10**6))
    return conditions


@router.post(
    "/QuerySample",
    summary="Samples by time span, attribute, class, source, window; paged",
    openapi_extra=_example({"requestPage": 1, "itemPerPage": 10, "positiveOrNegative": ""}),
)
async def query_sample(request: Request) -> Response:
    """``positive`` is normal, ``negative`` anomalous: the original's words."""
    form = await _form(request)
    conditions = _sample_conditions(_store(request).tables["samples"], form)
    rows, page = await _page(request, form, "samples", conditions)
    found = [
        {
            "id": row["id"],
            "viewId": row["view_id"],
            "viewName": row["view_name"],
            "attrId": row["attr_id"],
            "attrName": row["attr_name"],
            "time": row["data_time"],
            "dataC": row["data_c"],
            "dataB": row["data_b"],
            "dataA": row["data_a"],
            "positiveOrNegative": row["positive_or_negative"],
            "source": row["source"],
            "trainOrTest": row["train_or_test"],
            "window": row["window"],
        }
        for row in rows
    ]
    return kpi_reply(0, {"sampleList": found, **page, "totalTotal": page["totalCount"]})


_CHANGEABLE = {
    "viewId": "view_id",
    "viewName": "view_name",
    "attrId": "attr_id",
    "attrName": "attr_name",
    "source": "source",
    "trainOrTest": "train_or_test",
    "positiveOrNegative": "positive_or_negative",
    "dataTime": "data_time",
    "updateTime": "update_time",
}


@router.post(
    "/UpdateSample",
    summary="Change samples",
    openapi_extra=_example({"idList": [1, 2], "data": {"positiveOrNegative": "negative"}}),
)
async def update_sample(request: Request) -> Response:
    """Every field but the numbers themselves can change."""
    form = await _form(request)
    given = as_object(form.get("data"), "data", frozenset({*_CHANGEABLE, "window"}))
    row: dict[str, Any] = {"update_time": int(time.time())}
    for name, column in _CHANGEABLE.items():
        value = _given(given, name)
        if value is None:
            continue
        number = column.endswith("_time")
        row[column] = as_whole(value, name, 0, _LATEST) if number else as_text(value, name)
    _check_choices(row)
    changed = await _change(request, form.get("idList"), row)
    return kpi_reply(0, {"count": changed})


async def _change(request: Request, given: Any, row: dict[str, Any] | None) -> int:
    """Update samples by their numbers, or delete them."""
    if not isinstance(given, list) or not 1 <= len(given) <= 1000:
        raise RequestError(422, "idList must be a list of 1 to 1000 numbers")
    numbers = [as_whole(n, "id", 1, 2**31 - 1) for n in given]
    samples = _store(request).tables["samples"]
    chosen = samples.c.id.in_(numbers)

    def work() -> int:
        with _store(request).transaction() as connection:
            statement = samples.delete() if row is None else samples.update().values(row)
            return int(connection.execute(statement.where(chosen)).rowcount)

    return await asyncio.to_thread(work)


@router.post("/DeleteSample", summary="Delete a sample", openapi_extra=_example({"id": 1}))
async def delete_sample(request: Request) -> Response:
    form = await _form(request)
    return kpi_reply(0, {"count": await _change(request, [form.get("id")], None)})


@router.post(
    "/CountSample",
    summary="Count samples of each class",
    openapi_extra=_example({"trainOrTest": ["train"], "source": [], "window": 180}),
)
async def count_sample(request: Request) -> Response:
    form = await _form(request)
    chosen = await asyncio.to_thread(_chosen, _store(request), form)
    positive = sum(label == POSITIVE for _, label, _ in chosen)
    found = {
        "total_count": len(chosen),
        "positive_count": positive,
        "negative_count": len(chosen) - positive,
    }
    return kpi_reply(0, {"count": [found]})


def _chosen(store: Store, form: dict[str, Any]) -> list[tuple[int, str, int]]:
    """Number, class and window of the samples that a form selects."""
    samples = store.tables["samples"]
    wanted = sa.select(samples.c.id, samples.c.positive_or_negative, samples.c.window)
    wanted = wanted.where(*_sample_conditions(samples, form)).order_by(samples.c.id)
    with store.transaction() as connection:
        return [(int(n), str(label), int(w)) for n, label, w in connection.execute(wanted)]


@router.post("/QueryTrainSource", summary="List the sources", openapi_extra=_example({}))
async def query_train_source(request: Request) -> Response:
    samples = _store(request).tables["samples"]

    def work() -> list[str]:
        with _store(request).transaction() as connection:
            found = sa.select(samples.c.source).distinct().order_by(samples.c.source)
            return [str(source) for source in connection.execute(found).scalars()]

    return kpi_reply(0, {"source": await asyncio.to_thread(work)})


@router.get("/DownloadSample", summary="Samples as CSV")
@router.get("/DownloadSample/", include_in_schema=False)
async def download_sample(
    request: Request,
    id: Annotated[str, Query(max_length=8000, description="comma-joined", examples=["1,2"])],
) -> Response:
    """The file that ``/ImportSample`` reads."""
    numbers = [as_whole(part, "id", 1, 2**31 - 1) for part in id.split(",")]
    rows = await asyncio.to_thread(_store(request).samples, numbers)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([row[name] for name in COLUMNS] for row in rows)
    reply = Response(text.getvalue().encode("utf-8-sig"), media_type="text/csv; charset=utf-8")
    reply.headers["Content-Disposition"] = 'attachment; filename="samples.csv"'
    return reply


# --- training


@router.post(
    "/Train",
    summary="Train a model on selected samples",
    openapi_extra=_example({"trainOrTest": ["train"], "source": [], "window": 180}),
)
async def train(request: Request) -> Response:
    """Needs both classes and one window length; answers with the task's id at once."""
    form = await _form(request)
    store = _store(request)
    chosen = await asyncio.to_thread(_chosen, store, form)
    fault = _selection_fault(chosen)
    if fault:
        return kpi_reply(2004 if "sample" in fault else 1002, None, fault)
    task_id = str(time.time_ns() // 1_000_000)
    positive = sum(label == POSITIVE for _, label, _ in chosen)
    row = {
        "id": task_id,
        "status": "queued",
        "progress": 0.0,
        "detail": "waiting",
        "source": ",".join(_words(form, "source"))[:500],
        "window": chosen[0][2],
        "selection": json.dumps([number for number, _, _ in chosen]),
        "positive": positive,
        "negative": len(chosen) - positive,
        "begin_time": int(time.time()),
        "end_time": 0,
    }
    await asyncio.to_thread(store.add_task, row)
    request.app.state.trainer.submit(task_id)
    return kpi_reply(0, {"taskId": task_id})


def _selection_fault(chosen: list[tuple[int, str, int]]) -> str:
    if len(chosen) < LEAST_SAMPLES:
        return f"{len(chosen)} samples are selected, needed are {LEAST_SAMPLES}"
    if len(chosen) > 50_000:
        return "more than 50000 windows are selected"
    if len({label for _, label, _ in chosen}) < 2:
        return f"all samples are {chosen[0][1]}; both classes are needed"
    windows = sorted({window for _, _, window in chosen})
    if len(windows) > 1:
        return f"window: the selection mixes {windows[0]} and {windows[-1]}; name one"
    return ""


@router.post(
    "/QueryTrain",
    summary="Training tasks, the newest first; paged",
    openapi_extra=_example({"requestPage": 1, "itemPerPage": 10, "taskId": ""}),
)
async def query_train(request: Request) -> Response:
    form = await _form(request)
    tasks = _store(request).tables["tasks"]
    conditions = _between(tasks.c.begin_time, form)
    if _given(form, "taskId") is not None:
        conditions.append(tasks.c.id == as_text(form["taskId"], "taskId", 64))
    if _given(form, "taskStatus") is not None:
        conditions.append(tasks.c.status == as_text(form["taskStatus"], "taskStatus", 16))
    rows, page = await _page(request, form, "tasks", conditions, newest=True)
    found = [
        {
            "taskId": row["id"],
            "status": row["status"],
            "progress": row["progress"],
            "detail": row["detail"],
            "source": row["source"],
            "window": row["window"],
            "sampleNum": row["positive"] + row["negative"],
            "positiveSampleNum": row["positive"],
            "negativeSampleNum": row["negative"],
            "startTime": row["begin_time"],
            "endTime": row["end_time"],
            "promoted": row["id"] == request.app.state.promoted,
        }
        for row in rows
    ]
    return kpi_reply(0, {"taskList": found, **page})


@router.post(
    "/DeleteTrain",
    summary="Delete a task and its model",
    openapi_extra=_example({"taskId": "1530608070706"}),
)
async def delete_train(request: Request) -> Response:
    """A task at work is stopped; the promoted one cannot be deleted."""
    form = await _form(request)
    task_id = checked_id(form.get("taskId"), "taskId")
    if task_id == request.app.state.promoted:
        return kpi_reply(1002, None, f"taskId: {task_id} is promoted; promote another first")
    count = await asyncio.to_thread(_store(request).delete_task, task_id)
    if not count:
        return kpi_reply(1002, None, f"taskId: there is no task {task_id}")
    request.app.state.trainer.cancel(task_id)
    model_path(task_id, request.app.state.settings.models).unlink(missing_ok=True)
    return kpi_reply(0, {"count": count})


# --- promotion: ours


@router.get("/v1/promotion", tags=["models"], summary="Which model all use, and which did")
async def promotion(request: Request) -> Response:
    """An empty ``taskId`` is the model that was shipped."""
    rows = await asyncio.to_thread(_store(request).promotions)
    history = [{"taskId": row["task_id"], "time": row["time"]} for row in rows]
    return json_reply({"taskId": request.app.state.promoted or "", "history": history})


@router.post(
    "/v1/promotion",
    tags=["models"],
    summary="Let all use a task's model, or roll back to the one before",
    openapi_extra=_example({"taskId": "1530608070706"}),
)
async def promote(request: Request) -> Response:
    """``{"taskId": …}``, empty for the shipped model; or ``{"rollback": true}``."""
    form = as_object(await _form(request), "the body", frozenset({"taskId", "rollback"}))
    store = _store(request)
    if form.get("rollback") is True:
        task_id = await asyncio.to_thread(_before, store)
    else:
        task_id = as_text(form.get("taskId"), "taskId", 64)
    if task_id:
        await asyncio.to_thread(_check_model, request, checked_id(task_id, "taskId"))
    await asyncio.to_thread(store.promote, task_id)
    request.app.state.promoted = task_id or None
    return await promotion(request)


def _before(store: Store) -> str:
    """The model before the present one, skipping those that rolled back."""
    stack: list[str] = [""]
    for row in reversed(store.promotions()):
        if len(stack) > 1 and row["task_id"] == stack[-2]:
            stack.pop()
        elif row["task_id"] != stack[-1]:
            stack.append(row["task_id"])
    if len(stack) < 2:
        raise RequestError(409, "there is no earlier model to go back to", "conflict")
    return stack[-2]


def _check_model(request: Request, task_id: str) -> None:
    task = _store(request).task(task_id)
    if task is None or task["status"] != "done":
        raise RequestError(422, f"taskId: there is no finished task {task_id}")
    try:
        ValueDetector.load(model_path(task_id, request.app.state.settings.models))
    except (OSError, AnomalyError) as error:
        raise RequestError(422, f"taskId: its model cannot be used: {error}") from None
