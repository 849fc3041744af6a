"""Score one part of a table, in whatever process and on whatever machine it is handed to."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import platform
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import anomaly
from anomaly.errors import AnomalyError, ClassifierFileError, DataError, require
from production.classify import Tally, classify_rows, lines_of
from production.judges import Judge, Verdicts, judge_from
from production.parts import Part, Span, Stretch, Survey, look_over, separator_of
from production.places import tree_of

__all__ = ["Scored", "Settings", "score_part", "survey_stretch"]

_MOST_PROBLEMS = 20
_ROWS_OF_A_GROUP = 1 << 16


@dataclass(frozen=True)
class Settings:
    """How parts are scored; the same for all parts of a run.

    Attributes
    ----------
    out : str
        Address of the output folder.
    sha256 : str
        Of the model file.
    separator, decimal, bad, columns
        See `production.classify.classify_rows`.
    chunk_size : int
        Records classified together.
    skew : {"refuse", "accept"}
    version : str
        Of this package, which workers must have too.
    """

    out: str
    sha256: str
    separator: str | None = None
    decimal: str = "."
    bad: str = "stop"
    columns: tuple[str, ...] | None = None
    chunk_size: int = 4096
    skew: str = "refuse"
    version: str = anomaly.__version__


@dataclass
class Scored:
    """What came of a part."""

    records: int
    malicious: int
    bad: int
    seconds: float
    size: int
    host: str
    problems: list[str] = field(default_factory=list)


def score_part(model: bytes, settings: Settings, part: Part) -> Scored:
    """Score a part and write its output, whole or not at all.

    Parameters
    ----------
    model : bytes
        The model file. It is verified here, with ``ANOMALY_KEY`` of this process's
        environment, before anything in it is run.
    settings : Settings
    part : Part

    Raises
    ------
    DataError
        With the file, and the line where one is at fault.
    ClassifierFileError
        The model cannot be used here.
    """
    begun = time.perf_counter()
    judge = _judge(model, settings)
    tally, problems = Tally(), _Problems()
    target = f"{settings.out}/{part.name}"
    with _named(part.source.address):
        _check_unchanged(part)
        with tree_of(target).write_aside(target) as file:
            if part.format == "parquet":
                _score_parquet(judge, settings, part, file, tally, problems)
            else:
                _score_csv(judge, settings, part, file, tally, problems)
            _check_unchanged(part)
            file.seek(0, io.SEEK_END)
            size = file.tell()
    seconds = time.perf_counter() - begun
    return Scored(
        *(tally.records, tally.malicious, tally.bad, seconds, size, platform.node()),
        problems.texts(),
    )


def survey_stretch(model: bytes, settings: Settings, stretch: Stretch) -> Survey:
    """Look over a stretch of a CSV file; needs no model."""
    _check_version(settings)
    with _named(stretch.source.address):
        return look_over(stretch)


class _Problems:
    """The first few bad records of a part, and how many there were."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.more = 0

    def add(self, text: str) -> None:
        if len(self.first) < _MOST_PROBLEMS:
            self.first.append(text)
        else:
            self.more += 1

    def texts(self) -> list[str]:
        return [*self.first, *([f"{self.more} more bad records"] if self.more else [])]


@contextlib.contextmanager
def _named(address: str) -> Iterator[None]:
    """Name the file in every error, and give them one type."""
    try:
        yield
    except ClassifierFileError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename or address}: no such file on {platform.node()}; every worker "
            "must see the same paths, or be given addresses such as s3://"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{address}: the text is not UTF-8: {error}") from error
    except (AnomalyError, OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise DataError(f"{address}: {error}") from error


def _check_version(settings: Settings) -> None:
    if anomaly.__version__ != settings.version:
        raise ClassifierFileError(
            f"{platform.node()} has anomaly {anomaly.__version__}, "
            f"but the run was started with {settings.version}"
        )


def _check_unchanged(part: Part) -> None:
    now = tree_of(part.source.address).look(part.source.address)
    if (now.size, now.mark) != (part.source.size, part.source.mark):
        raise DataError("the file was changed during the run; run the same command again")


# ---- the model, once for each process

_lock = threading.Lock()
_judges: dict[tuple[str, str, str], Judge] = {}


def _judge(model: bytes, settings: Settings) -> Judge:
    """The judge of a model file, verified and opened once."""
    _check_version(settings)
    wanted = settings.sha256, settings.decimal, settings.skew
    with _lock:
        if wanted not in _judges:
            if hashlib.sha256(model).hexdigest() != settings.sha256:
                raise ClassifierFileError(f"the model was altered on its way to {platform.node()}")
            try:
                judge = judge_from(model, decimal=settings.decimal, skew=settings.skew)
            except ClassifierFileError as error:
                raise ClassifierFileError(f"on {platform.node()}: {error}") from error
            _judges.clear()
            _judges[wanted] = judge
        return _judges[wanted]


# ---- CSV


def _score_csv(
    judge: Judge,
    settings: Settings,
    part: Part,
    out: IO[bytes],
    tally: Tally,
    problems: _Problems,
) -> None:
    address = part.source.address
    with tree_of(address).open(address) as file, _lines_of_part(file, part) as lines:
        first = next(lines, "")
        separator = settings.separator or separator_of(first)
        rows = classify_rows(
            judge,
            itertools.chain([first], lines),
            separator=separator,
            bad=settings.bad,
            chunk_size=settings.chunk_size,
            columns=settings.columns,
            lines_before=part.before,
            tally=tally,
            report=problems.add,
        )
        if part.name.endswith(".parquet"):
            _rows_to_parquet(rows, judge, out)
        else:
            with _text_to(out, part.name) as text:
                csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)


@contextlib.contextmanager
def _lines_of_part(file: IO[bytes], part: Part) -> Iterator[Iterator[str]]:
    """The header, then the lines of the part; the file stays open."""
    binary: Any = file
    if part.start is None or part.stop is None:
        if part.format == "csv.gz":
            binary = gzip.GzipFile(fileobj=file)
        header, encoding, before = [], "utf-8-sig", 0
    else:
        header, before = [file.readline().decode("utf-8-sig")], part.before + 1
        # Not utf-8-sig: what looks like a byte order mark here is a character.
        encoding = "utf-8"
        binary = io.BufferedReader(Span(file, part.start, part.stop), 1 << 20)
    text = io.TextIOWrapper(binary, encoding=encoding, newline="")
    try:
        yield itertools.chain(header, lines_of(text, before))
    finally:
        text.detach()


@contextlib.contextmanager
def _text_to(out: IO[bytes], name: str) -> Iterator[IO[str]]:
    """Text into a binary file that stays open, packed if its name says so."""
    how: dict[str, Any] = {"encoding": "utf-8", "newline": "", "write_through": False}
    if name.endswith(".gz"):
        # Neither name nor time: the same records give the same bytes.
        with (
            gzip.GzipFile("", "wb", 6, fileobj=out, mtime=0) as packed,
            io.TextIOWrapper(packed, **how) as text,
        ):
            yield text
        return
    binary: Any = out
    text = io.TextIOWrapper(binary, **how)
    try:
        yield text
    finally:
        text.detach()  # which flushes


def _rows_to_parquet(rows: Iterator[list[str]], judge: Judge, out: IO[bytes]) -> None:
    """CSV text as Parquet: the cells carried along are text, the answers are numbers."""
    pa, parquet = _arrow()
    header = next(rows)
    _check_distinct(header)
    types = _answer_types(judge)
    schema = pa.schema([(name, types.get(name, pa.string())) for name in header])
    readers = [_READERS.get(str(kind)) for kind in schema.types]
    with parquet.ParquetWriter(out, schema) as writer:
        while block := list(itertools.islice(rows, _ROWS_OF_A_GROUP)):
            arrays = [
                pa.array(cells if read is None else [read(cell) for cell in cells], kind)
                for cells, read, kind in zip(
                    zip(*block, strict=True), readers, schema.types, strict=True
                )
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


_READERS = {
    "int8": lambda cell: int(cell) if cell else None,
    "double": lambda cell: float(cell) if cell else None,
}


def _answer_types(judge: Judge) -> dict[str, Any]:
    pa, _ = _arrow()
    return dict(zip(judge.answers, (pa.int8(), pa.float64()), strict=False))


def _check_distinct(header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"Parquet wants every column once; repeated is {', '.join(twice)}")


def _arrow() -> tuple[Any, Any]:
    return require("pyarrow", extra="dask"), require("pyarrow.parquet", extra="dask")


# ---- Parquet


def _score_parquet(
    judge: Judge,
    settings: Settings,
    part: Part,
    out: IO[bytes],
    tally: Tally,
    problems: _Problems,
) -> None:
    _, parquet = _arrow()
    with tree_of(part.source.address).open(part.source.address) as file:
        table = parquet.ParquetFile(file)
        names = list(table.schema_arrow.names)
        kept = list(settings.columns) if settings.columns is not None else names
        _check_columns(names, judge.columns, kept)
        groups = None if part.start is None or part.stop is None else range(part.start, part.stop)
        batches = table.iter_batches(
            settings.chunk_size, groups, columns=sorted({*kept, *judge.columns}, key=names.index)
        )
        blocks = _judged(judge, settings, part, batches, kept, tally, problems)
        empty = table.schema_arrow.empty_table().select(kept)
        blocks = itertools.chain([_answered(empty, judge, None, settings.bad)], blocks)
        if part.name.endswith(".parquet"):
            _blocks_to_parquet(blocks, out)
        else:
            with _text_to(out, part.name) as text:
                _blocks_to_csv(blocks, text, settings.separator or ",")


def _check_columns(names: list[str], needed: Iterable[str], kept: Iterable[str]) -> None:
    for word, wanted in (("needed", needed), ("asked for", kept)):
        absent = [name for name in wanted if name not in names]
        if absent:
            raise DataError(
                f"the table has no column {', '.join(absent)}; {word} are {', '.join(wanted)}, "
                f"it has {', '.join(names)}"
            )
    _check_distinct(names)


def _judged(
    judge: Judge,
    settings: Settings,
    part: Part,
    batches: Iterable[Any],
    kept: list[str],
    tally: Tally,
    problems: _Problems,
) -> Iterator[Any]:
    """Arrow tables of the columns kept, the answers and, for ``mark``, the faults."""
    pa, _ = _arrow()
    row = part.before + 1
    for batch in batches:
        verdicts = judge.judge([batch.column(name).to_pylist() for name in judge.columns])
        for i, fault in sorted(verdicts.faults.items()):
            if settings.bad == "stop":
                raise DataError(f"row {row + i}: {fault}")
            problems.add(f"row {row + i}: {fault}")
        n = batch.num_rows
        tally.records += n
        tally.bad += len(verdicts.faults)
        tally.malicious += sum(
            bool(flag) for i, flag in enumerate(verdicts.flags) if i not in verdicts.faults
        )
        row += n
        table = _answered(
            pa.Table.from_batches([batch]).select(kept), judge, verdicts, settings.bad
        )
        if settings.bad == "skip" and verdicts.faults:
            table = table.take([i for i in range(n) if i not in verdicts.faults])
        yield table


def _answered(table: Any, judge: Judge, verdicts: Verdicts | None, bad: str) -> Any:
    """A table with the answers beside it."""
    pa, _ = _arrow()
    n = table.num_rows
    faults = {} if verdicts is None else verdicts.faults
    values: list[list[Any]] = [[], []]
    if verdicts is not None:
        values[0] = [None if i in faults else int(verdicts.flags[i]) for i in range(n)]
        if verdicts.scores is not None:
            values[1] = [None if i in faults else float(verdicts.scores[i]) for i in range(n)]
    for (name, kind), cells in zip(_answer_types(judge).items(), values, strict=False):
        table = table.append_column(pa.field(name, kind), pa.array(cells, kind))
    if bad == "mark":
        texts = [faults.get(i) for i in range(n)]
        table = table.append_column("problem", pa.array(texts, pa.string()))
    return table


def _blocks_to_parquet(blocks: Iterator[Any], out: IO[bytes]) -> None:
    pa, parquet = _arrow()
    first = next(blocks)
    _check_distinct(first.schema.names)
    waiting, rows = [first], 0
    with parquet.ParquetWriter(out, first.schema) as writer:
        for block in blocks:
            waiting.append(block)
            rows += block.num_rows
            if rows >= _ROWS_OF_A_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting, rows = [], 0
        if rows:
            writer.write_table(pa.concat_tables(waiting))


def _blocks_to_csv(blocks: Iterator[Any], text: IO[str], separator: str) -> None:
    first = next(blocks)
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(first.schema.names)
    for block in blocks:
        columns = [column.to_pylist() for column in block.columns]
        writer.writerows(
            ["" if value is None else value for value in row] for row in zip(*columns, strict=True)
        )
