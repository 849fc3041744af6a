"""The service: KPI windows, streams and exported classifiers over HTTP.

``python -m production.service`` starts it; `create_app` makes the application for
any ASGI server that runs it in one process.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError, ParameterError, require

_log = logging.getLogger("anomaly.service")


def create_app(settings: Any = None) -> Any:
    """The application.

    Parameters
    ----------
    settings : production.settings.Settings, optional

    Returns
    -------
    ASGI application
        Its routes are documented at ``/docs``.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from production import (
        api_kpi,
        api_models,
        api_pages,
        api_purchases,
        api_samples,
        api_streams,
    )
    from production.guard import Guard
    from production.metrics import Metrics
    from production.settings import Settings
    from production.store import Store

    settings = settings or Settings()
    settings.check()
    for option in ("models", "state"):
        _make_folder(option, getattr(settings, option))
    metrics = Metrics()
    app = FastAPI(
        title="anomaly",
        summary="KPI windows, streams and exported classifiers",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings, app.state.metrics = settings, metrics
    app.state.store = Store(settings.database)
    app.state.promoted = app.state.store.promoted() or None
    for part in (api_kpi, api_streams, api_samples, api_models, api_purchases, api_pages):
        app.include_router(part.router)
    app.add_exception_handler(AnomalyError, _on_fault)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    return app


@asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    import asyncio

    from anomaly.detect import Detect
    from production.api_models import Classifiers
    from production.exporter import Exporter
    from production.lanes import Lanes
    from production.purchase_store import PurchaseStore
    from production.trainer import Trainer

    settings, store = app.state.settings, app.state.store
    app.state.detect = Detect(models=settings.models)
    app.state.classifiers = Classifiers(settings.models)
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        try:
            app.state.lanes = lanes = await asyncio.to_thread(
                Lanes, settings.state, settings.limits
            )
            stack.push_async_callback(asyncio.to_thread, lanes.stop)
            app.state.purchases = await asyncio.to_thread(
                PurchaseStore, settings.state / "purchases.sqlite"
            )
        except (AnomalyError, OSError, sqlite3.Error) as error:
            app.state.fault = f"--state {settings.state}: {error}"
            raise
        stack.callback(app.state.purchases.close)
        app.state.exporter = Exporter(
            lanes, store, settings.retention_days, settings.retention_rows
        )
        app.state.trainer = Trainer(
            store, settings.models.resolve(), settings.state.resolve() / "training"
        )
        for part in (app.state.exporter, app.state.trainer):
            part.start()
            stack.push_async_callback(asyncio.to_thread, part.stop)
        yield


def _make_folder(option: str, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(
            f"--{option} {path} cannot be made a folder: {error.strerror}"
        ) from None


async def _on_fault(request: Any, fault: Any) -> Any:
    from production.replies import fault_reply
    from production.strict import RequestError

    if not isinstance(fault, RequestError):
        fault = RequestError(422, " ".join(str(fault).split())[:500])
    request.app.state.metrics.refused(fault.kind)
    return fault_reply(request.url.path, fault)


async def _on_invalid(request: Any, error: Any) -> Any:
    from production.strict import RequestError

    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return await _on_fault(request, RequestError(422, f"{place}: {first['msg']}"))


async def _on_http(request: Any, error: Any) -> Any:
    from production.replies import KPI_PATHS
    from production.strict import RequestError

    kind = {404: "unknown", 405: "method"}.get(error.status_code, "invalid")
    detail = str(error.detail)
    if error.status_code == 405:
        detail = f"{request.method} does not apply here"
        if request.url.path in KPI_PATHS:
            kind = "not_get" if request.url.path.startswith("/Download") else "not_post"
    elif error.status_code == 404:
        detail = f"there is nothing at {request.url.path[:200]}"
    reply = await _on_fault(request, RequestError(error.status_code, detail, kind))
    for name, value in (error.headers or {}).items():
        reply.headers[name] = value
    return reply


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    try:
        for module in ("fastapi", "uvicorn", "httptools", "sqlalchemy", "alembic"):
            require(module, extra="service")
        from production.settings import read_settings

        settings = read_settings(options, options.pop("config"))
        app = create_app(settings)
    except (AnomalyError, OSError) as error:
        print(f"service.py: error: {error}", file=sys.stderr)
        return 2
    return _serve(app, settings)


def _serve(app: Any, settings: Any) -> int:
    import uvicorn

    from production.guard import TimedProtocol

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    TimedProtocol.header_timeout_s = settings.bounds.header_timeout_s
    server = uvicorn.Server(
        uvicorn.Config(
            _plainly(app),
            host=settings.host,
            port=settings.port,
            http=TimedProtocol,
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=30,
            backlog=1024,
        )
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # raised again after draining
    server.run()
    return 0 if server.started else 2


def _plainly(app: Any) -> Any:
    """The application; of a start that failed it says why, where Starlette sends a traceback."""

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            fault = getattr(app.state, "fault", None)
            if message["type"] == "lifespan.startup.failed" and fault:
                message = {**message, "message": fault}
            await send(message)

        await app(scope, receive, tell if scope["type"] == "lifespan" else send)

    return plain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="service.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Detect anomalies over HTTP: KPI windows, streams, exported classifiers.",
        epilog="""\
examples:
  # on this machine only, state in the working directory
  python -m production.service

  # for others: a token is needed
  ANOMALY_TOKEN=$(openssl rand -hex 16) python -m production.service --host 0.0.0.0

  # then
  curl http://127.0.0.1:5000/api/HTM/v1.0/anomalyDetection/1 \\
      -d streamData='{"timestamp":"2016-12-1 0:00:10","actualValue":3855.0}'

Tokens come from the environment: ANOMALY_TOKEN may do everything,
ANOMALY_TOKEN_READ, ANOMALY_TOKEN_WRITE and ANOMALY_TOKEN_TRAIN what they say.
""",
    )
    parser.add_argument("--host", help="address to bind (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (default 5000)")
    parser.add_argument("--database", metavar="URL", help="SQLAlchemy URL (default SQLite here)")
    parser.add_argument(
        "--models", metavar="DIR", help="trained and exported models (default models)"
    )
    parser.add_argument("--state", metavar="DIR", help="streams' state (default anomaly-state)")
    parser.add_argument("--config", metavar="FILE.toml", help="settings, limits, stream defaults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
