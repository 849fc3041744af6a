"""The database: anomalies, samples, training tasks, promotions, results of streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, NoSuchModuleError, SQLAlchemyError

from anomaly.errors import ParameterError, require
from production.strict import RequestError

#: How a mark is told in the original's interface.
UNMARKED, FALSE_ALARM, TRUE_ALARM = 0, 1, 2

POSITIVE, NEGATIVE = "positive", "negative"  # normal, anomalous: the original's words

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_EXTRAS = {"psycopg": "postgres", "pymysql": "mysql"}
_WAITS = {
    "postgresql": {"connect_timeout": 5},
    "mysql": {"connect_timeout": 5, "read_timeout": 60, "charset": "utf8mb4"},
    "mariadb": {"connect_timeout": 5, "read_timeout": 60, "charset": "utf8mb4"},
    "sqlite": {"timeout": 20},
}


class Store:
    """A database by its URL, its schema brought up to date.

    Parameters
    ----------
    url : str
        ``sqlite:///file``, ``postgresql://…``, ``mysql://…`` or ``mariadb://…``.

    Raises
    ------
    ParameterError
        If the URL is none or the database cannot be reached.
    MissingExtraError
        If the library that talks to it is not installed.

    Examples
    --------
    >>> from production.store import Store
    >>> store = Store("sqlite://")
    >>> store.promote("1530608070706")
    >>> store.promoted()
    '1530608070706'
    """

    def __init__(self, url: str) -> None:
        try:
            address = sa.make_url(url)
            driver = _DRIVERS.get(address.drivername, address.drivername)
            kind, _, library = driver.partition("+")
            if library in _EXTRAS:
                require(library, extra=_EXTRAS[library])
            waits = _WAITS.get(kind, {})
            self.engine = sa.create_engine(
                address.set(drivername=driver), connect_args=waits, pool_pre_ping=True
            )
            if driver == "sqlite":
                sa.event.listen(self.engine, "connect", _prepare_sqlite)
            with self.engine.begin() as connection:
                migrate(connection)
        except (SQLAlchemyError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ParameterError(f"--database: {_brief(error)}") from None
        tables = sa.MetaData()
        sa.event.listen(tables, "column_reflect", _as_float)
        tables.reflect(self.engine)
        self.tables = tables.tables

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection; committed at the end.

        Raises
        ------
        RequestError
            With status 503 if the database does not answer.
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise RequestError(
                503, f"the database does not answer: {_brief(error)}", "database", retry_after_s=5
            ) from None

    def fault(self) -> str:
        """Why the database cannot be used; empty where it can."""
        try:
            with self.engine.connect() as connection:
                connection.execute(sa.select(sa.literal(1)))
        except SQLAlchemyError as error:
            return _brief(error)
        return ""

    # --- anomalies

    def add_kpi_anomaly(self, kind: str, given: Mapping[str, Any], p: str) -> None:
        """Store a window that was found anomalous."""
        moment = datetime.strptime(given["time"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        row = {
            "kind": kind,
            "view_id": str(given["viewId"]),
            "view_name": str(given["viewName"]),
            "attr_id": str(given["attrId"]),
            "attr_name": str(given["attrName"]),
            "task_id": given.get("taskId") or "",
            "time": int(moment.timestamp()),
            "data_c": given["dataC"],
            "data_b": given["dataB"],
            "data_a": given["dataA"],
            "p": float(p),
            "explanation": "",
            "mark": UNMARKED,
        }
        with self.transaction() as connection:
            connection.execute(self.tables["anomalies"].insert(), [row])

    def mark_anomaly(self, number: int, mark: int) -> int:
        """Mark an anomaly; a marked KPI window becomes a training sample.

        Returns
        -------
        int
            How many anomalies there are of this number, 0 or 1.
        """
        anomalies, samples = self.tables["anomalies"], self.tables["samples"]
        with self.transaction() as connection:
            found = connection.execute(sa.select(anomalies).where(anomalies.c.id == number))
            row = found.mappings().first()
            if row is None:
                return 0
            changed = anomalies.update().where(anomalies.c.id == number).values(mark=mark)
            connection.execute(changed)
            connection.execute(samples.delete().where(samples.c.anomaly_id == number))
            if mark != UNMARKED and row["data_a"]:
                connection.execute(samples.insert(), [_sample_of(dict(row), mark)])
            return 1

    # --- anything, paged

    def page(
        self,
        table: str,
        conditions: Sequence[Any],
        page: int,
        size: int,
        order: str,
        *,
        newest: bool = False,
    ) -> tuple[list[dict[str, Any]], int]:
        """Rows of one page, and how many there are in all."""
        rows = self.tables[table]
        by = rows.c[order].desc() if newest else rows.c[order].asc()
        chosen = sa.select(rows).where(*conditions).order_by(by)
        with self.transaction() as connection:
            total = connection.execute(
                sa.select(sa.func.count()).select_from(rows).where(*conditions)
            ).scalar_one()
            found = connection.execute(chosen.limit(size).offset(size * (page - 1)))
            return [dict(row) for row in found.mappings()], int(total)

    # --- training

    def add_task(self, row: Mapping[str, Any]) -> None:
        with self.transaction() as connection:
            connection.execute(self.tables["tasks"].insert(), [dict(row)])

    def task(self, task_id: str) -> dict[str, Any] | None:
        rows, _ = self.page("tasks", [self.tables["tasks"].c.id == task_id], 1, 1, "id")
        return rows[0] if rows else None

    def update_task(self, task_id: str, **values: Any) -> None:
        tasks = self.tables["tasks"]
        with self.transaction() as connection:
            connection.execute(tasks.update().where(tasks.c.id == task_id).values(**values))

    def delete_task(self, task_id: str) -> int:
        tasks = self.tables["tasks"]
        with self.transaction() as connection:
            return int(connection.execute(tasks.delete().where(tasks.c.id == task_id)).rowcount)

    def samples(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Samples by their numbers, in their order."""
        samples = self.tables["samples"]
        found: list[dict[str, Any]] = []
        with self.transaction() as connection:
            for i in range(0, len(numbers), 500):
                some = sa.select(samples).where(samples.c.id.in_(numbers[i : i + 500]))
                rows = connection.execute(some.order_by(samples.c.id)).mappings()
                found += [dict(row) for row in rows]
        return found

    # --- which model all use

    def promote(self, task_id: str) -> None:
        """Let everyone use a task's model; empty means the one that was shipped."""
        row = {"task_id": task_id, "time": int(time.time())}
        with self.transaction() as connection:
            connection.execute(self.tables["promotions"].insert(), [row])

    def promotions(self) -> list[dict[str, Any]]:
        """What was promoted, the newest first."""
        return self.page("promotions", [], 1, 1000, "id", newest=True)[0]

    def promoted(self) -> str:
        """The task whose model all use; empty for the shipped one."""
        found = self.promotions()
        return found[0]["task_id"] if found else ""

    # --- results of streams

    def add_results(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store answers of streams; those that are there already are replaced."""
        results, anomalies = self.tables["results"], self.tables["anomalies"]
        odd = [_anomaly_of(row) for row in rows if row["is_anomaly"]]
        try:
            with self.engine.begin() as connection:
                connection.execute(results.insert(), [dict(row) for row in rows])
                if odd:
                    connection.execute(anomalies.insert(), odd)
            return
        except IntegrityError:
            pass  # some were stored before a crash, and not noted
        with self.engine.begin() as connection:
            self._replace(connection, rows)
            known = {
                tuple(row)
                for row in connection.execute(
                    sa.select(anomalies.c.stream_key, anomalies.c.seq).where(
                        anomalies.c.stream_key.in_({row["stream_key"] for row in odd})
                    )
                )
            }
            odd = [row for row in odd if (row["stream_key"], row["seq"]) not in known]
            if odd:
                connection.execute(anomalies.insert(), odd)

    def _replace(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        results = self.tables["results"]
        connection.execute(
            results.delete().where(
                results.c.kind == sa.bindparam("k"),
                results.c.stream == sa.bindparam("s"),
                results.c.seq == sa.bindparam("q"),
            ),
            [{"k": row["kind"], "s": row["stream"], "q": row["seq"]} for row in rows],
        )
        connection.execute(results.insert(), [dict(row) for row in rows])

    def forget_stream(self, kind: str, stream: str) -> None:
        """Delete the results and the anomalies of a stream."""
        results, anomalies = self.tables["results"], self.tables["anomalies"]
        with self.transaction() as connection:
            connection.execute(
                results.delete().where(results.c.kind == kind, results.c.stream == stream)
            )
            connection.execute(
                anomalies.delete().where(anomalies.c.stream_key == f"{kind}/{stream}")
            )

    def retain(self, days: float | None, rows: int | None) -> None:
        """Delete results that are too old, or too many."""
        results = self.tables["results"]
        with self.engine.begin() as connection:
            if days is not None:
                oldest = time.time() - 86_400 * days
                connection.execute(results.delete().where(results.c.written < oldest))
            if rows is not None:
                edge = connection.execute(
                    sa.select(results.c.written)
                    .order_by(results.c.written.desc())
                    .offset(rows)
                    .limit(1)
                ).scalar()
                if edge is not None:
                    connection.execute(results.delete().where(results.c.written <= edge))


def migrate(connection: sa.Connection) -> None:
    """Bring the schema to the newest version."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(connection=connection, version_table="anomaly_schema")
        with environment.begin_transaction():
            environment.run_migrations()


def result_row(
    kind: str, stream: str, instant: float, answer: Mapping[str, Any], written: float
) -> dict[str, Any]:
    """The row that an answer of a stream makes."""
    single = "value" in answer
    fields = None
    if not single:
        fields = json.dumps({k: answer[k] for k in ("values", "prediction", "scores")})
    return {
        "kind": kind,
        "stream": stream,
        "seq": answer["seq"],
        "timestamp": answer["timestamp"][:64],
        "instant": instant,
        "value": answer["value"] if single else None,
        "prediction": answer["prediction"] if single else None,
        "fields": fields,
        "score": answer["score"],
        "likelihood": answer["likelihood"],
        "is_anomaly": answer["is_anomaly"],
        "explanation": answer.get("explanation", "")[:500],
        "written": written,
    }


def _anomaly_of(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "stream",
        "view_id": row["kind"],
        "view_name": "stream",
        "attr_id": row["stream"],
        "attr_name": row["stream"],
        "task_id": "",
        "time": int(row["instant"]),
        "data_c": "",
        "data_b": "",
        "data_a": "",
        "p": 1.0 - row["likelihood"],
        "explanation": row["explanation"],
        "mark": UNMARKED,
        "stream_key": f"{row['kind']}/{row['stream']}",
        "seq": row["seq"],
    }


def _sample_of(row: Mapping[str, Any], mark: int) -> dict[str, Any]:
    return {
        **{name: row[name] for name in ("view_id", "view_name", "attr_id", "attr_name")},
        **{name: row[name] for name in ("data_c", "data_b", "data_a")},
        "source": "marked",
        "train_or_test": "train",
        "positive_or_negative": POSITIVE if mark == FALSE_ALARM else NEGATIVE,
        "window": row["data_a"].count(","),
        "data_time": row["time"],
        "anomaly_id": row["id"],
        "update_time": int(time.time()),
    }


def _as_float(inspector: Any, table: Any, column: dict[str, Any]) -> None:
    """Doubles are floats everywhere; one dialect would make decimals of them."""
    if getattr(column["type"], "asdecimal", False):
        column["type"] = sa.Double()


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _brief(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error)
    return " ".join(text.split())[:300]
