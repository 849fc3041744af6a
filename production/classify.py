"""Classify records with an exported classifier: one, a file, or an endless stream."""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import itertools
import json
import logging
import os
import re
import signal
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

if __package__ in (None, ""):  # run as a script: the folder above holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from anomaly.errors import AnomalyError, ClassifierFileError, DataError, ParameterError
from anomaly.exported import Contents, ExportedClassifier, unpack, verify
from anomaly.files import write_aside
from anomaly.value import ValueDetector
from production.judges import (
    Judge,
    Verdicts,
    cell_reader,
    judge_from,
    judge_of,
)
from production.parts import MAX_LINE, separator_of

__all__ = ["classify_rows", "inspect", "load", "main"]

MAX_BYTES = 1 << 30
_MODELS = (ExportedClassifier, ValueDetector)


# ---- the file


def load(
    path: str | os.PathLike[str],
    key: str | bytes | None = None,
    *,
    skew: str = "refuse",
    trusted: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
) -> ExportedClassifier:
    """Load an exported classifier after its trailer has been verified.

    The file is read once. Its SHA-256 and signature are checked before a byte is
    unpickled, then its sixteen probe records must get the answers they got when
    it was exported.

    Parameters
    ----------
    path : str or PathLike
    key : str or bytes, optional
        Of a signed file; by default the environment variable ``ANOMALY_KEY``.
        Only a signature tells who made a file; a SHA-256 alone finds damage.
    skew : {"refuse", "accept"}, default="refuse"
        What to do if scikit-learn, or the classifier's own library, has another
        version here than where the file was made.
    trusted : collection of str, optional
        Further types that a skops file may hold.
    max_bytes : int, default=2**30
        Larger files are refused.

    Returns
    -------
    ExportedClassifier
        A function of one record; ``header`` holds what the file says of itself.

    Raises
    ------
    ClassifierFileError
        One sentence that names the file and why it is refused.
    OSError
        The file cannot be read.
    """
    with _named(path):
        return unpack(_read(path, key, True, max_bytes), skew=skew, trusted=trusted)


def inspect(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Header of an exported classifier; nothing is unpickled, no key is needed.

    The SHA-256 is checked, a signature is not: ``signed`` only says there is one.
    """
    with _named(path):
        contents = _read(path, None, False, max_bytes)
    return {**contents.header, "signed": contents.signed}


def _read(
    path: str | os.PathLike[str], key: str | bytes | None, check_signature: bool, max_bytes: int
) -> Contents:
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ClassifierFileError(f"larger than {max_bytes} bytes")
    return verify(data, key, check_signature=check_signature)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except ClassifierFileError as error:
        raise ClassifierFileError(f"{os.fspath(path)}: {error}") from error


# ---- the stream


@dataclass
class Tally:
    """What went by: records read, found malicious, and refused."""

    records: int = 0
    malicious: int = 0
    bad: int = 0


@dataclass
class _Chunk:
    """Lines of one block, and what is wrong with those that are refused."""

    lines: list[int] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)


def classify_rows(
    model: ExportedClassifier | ValueDetector | Judge,
    lines: Iterable[str],
    *,
    separator: str | None = None,
    decimal: str = ".",
    bad: str = "stop",
    chunk_size: int = 4096,
    columns: Sequence[str] | None = None,
    lines_before: int = 0,
    tally: Tally | None = None,
    report: Any = None,
) -> Iterator[list[str]]:
    """Classify CSV text as it comes, in constant memory.

    Parameters
    ----------
    model : ExportedClassifier, ValueDetector or Judge
    lines : iterable of str
        A header, then one record each. Columns may be in any order; those that
        the model does not need are carried along.
    separator : str, optional
        Found in the header by default: comma, semicolon or tab.
    decimal : {".", ","}, default="."
        Not looked at for a Judge, which has its own.
    bad : {"stop", "skip", "mark"}, default="stop"
        A record that cannot be classified raises, is left out, or is kept with
        an empty label and its fault in a further column ``problem``.
    chunk_size : int, default=4096
        Records classified together. 1 answers each record as it arrives.
    columns : sequence of str, optional
        The columns to carry along, in this order; all of them by default.
    lines_before : int, default=0
        Lines of the file that were left out after the header, for messages.
    tally : Tally, optional
        Counts as records go by.
    report : callable, optional
        Gets one line of text for each bad record that does not raise.

    Yields
    ------
    list of str
        The header with ``malicious`` added, then each record with 1 or 0. For
        windows ``anomaly``, 1 or 0, and ``score``, above 0 for an anomaly.

    Raises
    ------
    DataError
        With the line number.
    """
    tally = Tally() if tally is None else tally
    judge = judge_of(model, decimal) if isinstance(model, _MODELS) else model
    reader, header = _open_csv(lines, separator)
    places = _places(judge.columns, header)
    kept = None if columns is None else _places(columns, header, asked=True)
    shown = header if kept is None else [header[i] for i in kept]
    yield [*shown, *judge.answers, *(["problem"] if bad == "mark" else [])]
    for chunk in _chunks(reader, len(header), chunk_size, lines_before):
        verdicts = _judge_chunk(judge, chunk, places)
        for i, (line, row) in enumerate(zip(chunk.lines, chunk.rows, strict=True)):
            tally.records += 1
            fault = verdicts.faults.get(i)
            if fault is not None:
                tally.bad += 1
                if bad == "stop":
                    raise DataError(f"line {line}: {fault}")
                if report is not None:
                    report(f"line {line}: {fault}")
                if bad == "skip":
                    continue
                row = (row + [""] * len(header))[: len(header)]
            else:
                tally.malicious += bool(verdicts.flags[i])
            cells = row if kept is None else [row[place] for place in kept]
            yield [*cells, *verdicts.cells(i), *([fault or ""] if bad == "mark" else [])]


def _open_csv(lines: Iterable[str], separator: str | None) -> tuple[Any, list[str]]:
    stream = iter(lines)
    first = next(stream, "").removeprefix("\ufeff")
    if not first.strip():
        raise DataError("line 1: a header with the names of the columns is needed")
    reader = csv.reader(
        itertools.chain([first], stream), delimiter=separator or separator_of(first), strict=True
    )
    return reader, [name.strip() for name in _next_row(reader)]


def _next_row(reader: Any, lines_before: int = 0) -> list[str]:
    try:
        return list(next(reader))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num + lines_before}: {error}") from error


def _places(needed: Sequence[str], header: list[str], asked: bool = False) -> list[int]:
    absent = [name for name in needed if name not in header]
    twice = [name for name in needed if header.count(name) > 1]
    for fault, names in (("has no", absent), ("repeats", twice)):
        if names:
            raise DataError(
                f"line 1: the header {fault} {', '.join(names)}; "
                f"{'asked for' if asked else 'needed'} are {', '.join(needed)}, "
                f"it has {', '.join(header)}"
            )
    return [header.index(name) for name in needed]


def _chunks(reader: Any, width: int, chunk_size: int, lines_before: int) -> Iterator[_Chunk]:
    chunk = _Chunk()
    while True:
        try:
            row = _next_row(reader, lines_before)
        except StopIteration:
            break
        if not row:  # an empty line
            continue
        if len(row) != width:
            chunk.faults[len(chunk.rows)] = f"{len(row)} cells, but the header has {width}"
        chunk.lines.append(reader.line_num + lines_before)
        chunk.rows.append(row)
        if len(chunk.rows) >= chunk_size:
            yield chunk
            chunk = _Chunk()
    if chunk.rows:
        yield chunk


def _judge_chunk(judge: Judge, chunk: _Chunk, places: list[int]) -> Verdicts:
    """Answers to a chunk; rows of a wrong width are not shown to the judge."""
    sound = [i for i in range(len(chunk.rows)) if i not in chunk.faults]
    n, some = len(chunk.rows), bool(judge.answers[1:])
    whole = Verdicts(np.zeros(n, dtype=bool), np.zeros(n) if some else None, chunk.faults)
    if not sound:
        return whole
    rows = [chunk.rows[i] for i in sound] if chunk.faults else chunk.rows
    found = judge.judge([[row[place] for row in rows] for place in places])
    if len(sound) == n:
        return found
    whole.flags[sound] = found.flags
    if whole.scores is not None:
        whole.scores[sound] = found.scores
    whole.faults.update((sound[i], fault) for i, fault in found.faults.items())
    return whole


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == ["inspect"]:
            return _inspect_command(_inspect_parser().parse_args(arguments[1:]))
        return _classify_command(_parser().parse_args(arguments))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (AnomalyError, OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        print(f"classify.py: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="classify.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Classify records with a classifier that Detector.export wrote, or windows "
        "with a model of anomaly.value.",
        epilog="""\
examples:
  # one record, its values in the order of the fields
  python production/classify.py anomaly_classifier.clf car 4500 1800

  # a CSV file; the answers go to labels.csv, which appears when it is whole
  python production/classify.py anomaly_classifier.clf --csv records.csv --out labels.csv

  # a stream, each record answered as it comes; bad records are kept and marked
  tail -f records.csv | python production/classify.py anomaly_classifier.clf \\
      --csv - --chunk 1 --bad mark

  # many or large tables, part by part, on every core; the same command again goes on
  # where it was killed, and scores what is new or has changed
  python production/classify.py anomaly_classifier.clf --csv 'data/*.csv' --out scored/

  # the same on a Dask cluster, from bucket to bucket (export ANOMALY_KEY on the workers)
  python production/classify.py anomaly_classifier.clf --parquet s3://bucket/data \\
      --out s3://bucket/scored --backend dask --scheduler tcp://host:8786

  # windows of a metric: columns data_c, data_b, data_a
  python production/classify.py models/logins --windows 'windows/*.csv' --out scored/

  # what a file says of itself, without running anything in it
  python production/classify.py inspect anomaly_classifier.clf

The file is verified before it is opened, on every machine that uses it; the key of a
signed file is taken from the environment variable ANOMALY_KEY. Output is the record
with a column `malicious` (1 or 0); for windows `anomaly` (1 or 0) and `score`, above 0
for an anomaly. Exit code 2 means that something was refused, and says what.
""",
    )
    parser.add_argument("file", metavar="MODEL", help="exported classifier, or value model")
    parser.add_argument("value", nargs="*", help="values of one record, in the order of fields")
    parser.add_argument(
        "--csv",
        "--parquet",
        "--windows",
        dest="tables",
        nargs="+",
        metavar="TABLE",
        help="CSV files (.gz too) or Parquet files to classify, a quoted pattern, a folder, "
        "or addresses such as s3://bucket/data; - is stdin. The three names mean the same",
    )
    parser.add_argument(
        "--out", metavar="PLACE", help="file, or for several tables folder, to write to"
    )
    parser.add_argument("--separator", help="of cells (default: found in the header)")
    parser.add_argument("--decimal", choices=[".", ","], default=".", help="decimal mark")
    parser.add_argument(
        "--bad",
        choices=["stop", "skip", "mark"],
        default="stop",
        help="a record that cannot be classified stops the run (default), is left out, "
        "or is kept and marked in a column `problem`",
    )
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help="columns to carry along (default: all)"
    )
    parser.add_argument(
        "--chunk",
        type=_positive,
        default=4096,
        metavar="N",
        help="records classified together (default 4096); 1 answers each at once",
    )
    parser.add_argument(
        "--accept-skew",
        action="store_true",
        help="load a file made with other library versions, if its probes still agree",
    )
    _add_folder_arguments(parser)
    return parser


def _add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "many or large tables", "Any of these, or --out with a folder, scores part by part."
    )
    group.add_argument(
        "--backend",
        choices=["loky", "dask", "serial"],
        help="processes of this machine (loky, the default), a Dask cluster, or this process",
    )
    group.add_argument(
        "--n-jobs", type=int, metavar="N", help="processes of loky (default: one for each core)"
    )
    group.add_argument("--scheduler", metavar="ADDRESS", help="of Dask, such as tcp://host:8786")
    group.add_argument(
        "--workers", type=_positive, metavar="N", help="start a Dask cluster of N here"
    )
    group.add_argument(
        "--format",
        choices=["csv", "csv.gz", "parquet"],
        help="of the output (default: Parquet for Parquet, CSV for CSV)",
    )
    group.add_argument(
        "--part-size",
        type=_bytes,
        metavar="SIZE",
        help="larger files are cut into parts of about this many bytes (default 128MB)",
    )
    group.add_argument(
        "--start-over",
        action="store_true",
        help="remove the parts that an earlier run left in the folder, and score anew",
    )


def _inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="classify.py inspect",
        description="Print the header of an exported classifier as JSON. The SHA-256 is "
        "checked; nothing in the file is run.",
        epilog="example: python -m production.classify inspect anomaly_classifier.clf",
    )
    parser.add_argument("file", help="exported classifier (.clf)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _bytes(text: str) -> int:
    """A size such as 64MB; of units K, M and G, with or without a B."""
    found = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip().upper())
    size = int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"a size such as 128MB is needed, got {text}")
    return size


def _inspect_command(options: argparse.Namespace) -> int:
    print(json.dumps(inspect(options.file), indent=2, ensure_ascii=False))
    return 0


def _classify_command(options: argparse.Namespace) -> int:
    if bool(options.value) == (options.tables is not None):
        _parser().error("give either the values of one record, or --csv TABLE")
    if options.value:
        classifier = load(options.file, skew=_skew(options))
        print(["normal", "malicious"][_classify_values(classifier, options)])
        return 0
    return _score_folder(options) if _is_for_folder(options) else _score_stream(options)


def _skew(options: argparse.Namespace) -> str:
    return "accept" if options.accept_skew else "refuse"


def _model_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ClassifierFileError(f"{path}: larger than {MAX_BYTES} bytes")
    return data


def _score_stream(options: argparse.Namespace) -> int:
    """One table, read once from its beginning to its end, to a file or to stdout."""
    with _named(options.file):
        judge = judge_from(
            _model_bytes(options.file), decimal=options.decimal, skew=_skew(options)
        )
    tally = Tally()
    with _input(options.tables[0]) as lines, _output(options.out) as out:
        first = next(lines, "")
        separator = options.separator or separator_of(first)
        rows = classify_rows(
            judge,
            itertools.chain([first], lines),
            separator=separator,
            bad=options.bad,
            chunk_size=options.chunk,
            columns=options.columns,
            tally=tally,
            report=_say,
        )
        writer = csv.writer(out, delimiter=separator, lineterminator="\n")
        for row in rows:
            writer.writerow(row)
            if options.chunk == 1:
                out.flush()
    flag = judge.answers[0]
    print(f"{tally.records} records: {tally.malicious} {flag}, {tally.bad} bad", file=sys.stderr)
    return 0


def _say(text: str) -> None:
    print(f"classify.py: {text}", file=sys.stderr)


# ---- many or large tables

_FOLDER_OPTIONS = ("backend", "n_jobs", "scheduler", "workers", "format", "part_size")


def _is_for_folder(options: argparse.Namespace) -> bool:
    """Whether tables are scored part by part into a folder."""
    if options.start_over or any(getattr(options, n) is not None for n in _FOLDER_OPTIONS):
        return True
    if options.out is not None and (options.out.endswith("/") or os.path.isdir(options.out)):
        return True
    table = options.tables[0]
    if len(options.tables) > 1 or "://" in table or os.path.isdir(table):
        return True
    if table.lower().endswith((".parquet", ".pq")):
        return True
    return any(sign in table for sign in "*?[") and not os.path.exists(table)


def _score_folder(options: argparse.Namespace) -> int:
    from production.batch import Options, score_tables
    from production.meters import Bar, Lines

    _check_folder_options(options)
    asked = Options(
        inputs=tuple(options.tables),
        out=options.out,
        format=options.format,
        part_size=options.part_size or Options.part_size,
        separator=options.separator,
        decimal=options.decimal,
        bad=options.bad,
        columns=None if options.columns is None else tuple(options.columns),
        chunk_size=options.chunk,
        skew=_skew(options),
        start_over=options.start_over,
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _named(options.file):
            run = score_tables(
                _model_bytes(options.file),
                asked,
                lambda model: _workers(model, options),
                tell=_say,
                meter=Bar() if sys.stderr.isatty() else Lines(_say),
            )
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    print(run.summary())
    if run.failed:
        _say(f"error: {len(run.failed)} parts failed; run the same command again to go on")
        return 2
    return 0


def _check_folder_options(options: argparse.Namespace) -> None:
    if options.out is None:
        raise ParameterError("--out FOLDER is needed for these tables")
    if os.path.isfile(options.out):
        raise ParameterError(f"--out: a folder is needed for these tables, got {options.out}")
    if "-" in options.tables:
        raise ParameterError("stdin cannot be scored part by part; leave these options out")
    dask = options.backend == "dask"
    if (options.scheduler or options.workers) and not dask:
        raise ParameterError("--scheduler and --workers are for --backend dask")
    if options.scheduler and options.workers:
        raise ParameterError("give either --scheduler ADDRESS or --workers N")
    n_jobs = options.n_jobs
    if n_jobs is not None and (options.backend not in (None, "loky") or not _are_jobs(n_jobs)):
        raise ParameterError("--n-jobs: -1, or a number of processes of --backend loky")


def _are_jobs(n_jobs: int) -> bool:
    return n_jobs == -1 or 1 <= n_jobs <= 1024


def _workers(model: bytes, options: argparse.Namespace) -> Any:
    from production.workers import Cluster, Here, Processes

    if options.backend == "serial":
        return Here(model)
    if options.backend != "dask":
        return Processes(model, -1 if options.n_jobs is None else options.n_jobs)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # we say what goes wrong
    cluster = Cluster(model, options.scheduler, options.workers)
    where = f"; dashboard: {cluster.dashboard}" if cluster.dashboard else ""
    _say(f"worker threads: {cluster.n_threads}{where}")
    if not cluster.n_threads:
        _say(f"no workers at {options.scheduler} yet; waiting for the first")
    return cluster


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _classify_values(classifier: ExportedClassifier, options: argparse.Namespace) -> bool:
    if len(options.value) != len(classifier.columns):
        raise DataError(
            f"expected the {len(classifier.columns)} values {', '.join(classifier.columns)}, "
            f"got {len(options.value)}"
        )
    readers = [cell_reader(field, options.decimal) for field in classifier.schema]
    values = [read(text) for read, text in zip(readers, options.value, strict=True)]
    return bool(classifier(*values))


@contextlib.contextmanager
def _input(source: str) -> Iterator[Iterator[str]]:
    """Lines of a file, a .gz file or stdin; UTF-8, with or without a byte order mark."""
    how: dict[str, Any] = {"encoding": "utf-8-sig", "newline": ""}
    if source == "-":
        with io.TextIOWrapper(sys.stdin.buffer, **how) as file:
            yield lines_of(file)
    elif source.endswith(".gz"):
        with gzip.open(source, "rt", **how) as file:
            yield lines_of(file)
    else:
        with open(source, **how) as file:
            yield lines_of(file)


def lines_of(file: IO[str], before: int = 0) -> Iterator[str]:
    """Lines of text of a bounded length; ``before`` are the lines that came before.

    Raises
    ------
    DataError
        With the number of a line that is longer than `MAX_LINE` characters.
    """
    for number in itertools.count(before + 1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            raise DataError(f"line {number}: longer than {MAX_LINE} characters")
        yield line


@contextlib.contextmanager
def _output(target: str | None) -> Iterator[IO[str]]:
    if target is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    with write_aside(target) as file:
        yield file


if __name__ == "__main__":
    sys.exit(main())
