"""HTTP for exported classifiers: those of the models folder, verified before they are opened."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter

from anomaly.errors import AnomalyError
from anomaly.exported import ExportedClassifier
from production.classify import inspect, load
from production.replies import json_reply
from production.strict import RequestError, as_object, checked_id, read_json

router = APIRouter(prefix="/v1", tags=["models"])

SUFFIX = ".clf"

_TOLD = ("schema", "classifier", "scores")


class Classifiers:
    """Exported classifiers of a folder; a file is read again after it has changed.

    Parameters
    ----------
    folder : Path
        With ``ANOMALY_KEY`` in the environment only signed files are opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], ExportedClassifier]] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> ExportedClassifier:
        """The classifier of a file ``<name>.clf``.

        Raises
        ------
        RequestError
            If there is none, or it is refused.
        """
        path = self.folder / f"{checked_id(name, 'model')}{SUFFIX}"
        try:
            status = path.stat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            with self._lock:
                known = self._known.get(name)
                if known is None or known[0] != state:
                    known = self._known[name] = state, load(path)
            return known[1]
        except FileNotFoundError:
            raise RequestError(404, f"there is no model {name!r}", "unknown") from None
        except (AnomalyError, OSError) as error:
            raise RequestError(409, f"the model is refused: {error}", "model_refused") from None

    def list(self) -> list[dict[str, Any]]:
        """What each file says of itself; nothing is opened."""
        found: list[dict[str, Any]] = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                header = inspect(path)
            except (AnomalyError, OSError) as error:
                found.append({"model": path.stem, "refused": str(error)})
                continue
            kept: dict[str, Any] = {k: header[k] for k in _TOLD if k in header}
            found.append({"model": path.stem, "signed": header["signed"], **kept})
        return found


@router.get("/models", summary="Exported classifiers and what they say of themselves")
async def models(request: Request) -> Response:
    """Files ``<model>.clf`` of the models folder."""
    found = await asyncio.to_thread(request.app.state.classifiers.list)
    return json_reply({"models": found})


@router.post(
    "/classify/{name}",
    summary="Classify records: JSON Lines in, JSON Lines out",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {
                    "schema": {"type": "string"},
                    "example": '{"class": "car", "length": 4500, "width": 1800}\n',
                }
            },
        }
    },
)
async def classify(
    request: Request, name: Annotated[str, PathParameter(examples=["anomaly_classifier"])]
) -> Response:
    """One object a line, with the classifier's fields; a faulty line refuses all."""
    body = await request.body()
    most = request.app.state.settings.bounds.rows
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not lines:
        raise RequestError(422, "the body holds no record")
    if len(lines) > most:
        raise RequestError(413, f"a batch must have {most} records at most", "rows")
    records = []
    for i, line in enumerate(lines):
        try:
            records.append(as_object(read_json(line), "a record"))
        except RequestError as error:
            raise RequestError(error.status, f"line {i + 1}: {error.detail}") from None
    labels = await asyncio.to_thread(_labels, request.app.state.classifiers.get, name, records)
    text = "".join('{"malicious": %s}\n' % ("true" if label else "false") for label in labels)
    return Response(text, media_type="application/x-ndjson")


def _labels(get: Any, name: str, records: list[dict[str, Any]]) -> list[bool]:
    classifier = get(name)
    faults = (AnomalyError, ValueError, TypeError, OverflowError)
    if len(records) > 16 and all(set(r) == set(classifier.columns) for r in records):
        try:
            return [bool(label) for label in classifier(pd.DataFrame(records))]
        except faults:
            pass  # found line by line
    labels = []
    for i, record in enumerate(records):
        try:
            labels.append(bool(classifier(record)))
        except faults as error:
            detail = " ".join(str(error).split())[:400]
            raise RequestError(422, f"line {i + 1}: {detail}") from None
    return labels
