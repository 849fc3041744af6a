"""Classify records with an exported classifier: one, a file, or an endless stream."""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

if __package__ in (None, ""):  # run as a script: the folder above holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from anomaly.errors import AnomalyError, ClassifierFileError, DataError
from anomaly.exported import Contents, ExportedClassifier, unpack, verify
from anomaly.files import write_aside

__all__ = ["classify_rows", "inspect", "load", "main"]

MAX_BYTES = 1 << 30
MAX_LINE = 1 << 20
MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none"})


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
    classifier: ExportedClassifier,
    lines: Iterable[str],
    *,
    separator: str | None = None,
    decimal: str = ".",
    bad: str = "stop",
    chunk_size: int = 4096,
    tally: Tally | None = None,
    report: Any = None,
) -> Iterator[list[str]]:
    """Classify CSV text as it comes, in constant memory.

    Parameters
    ----------
    classifier : ExportedClassifier
    lines : iterable of str
        A header, then one record each. Columns may be in any order; those that
        the classifier does not know are carried along.
    separator : str, optional
        Found in the header by default: comma, semicolon or tab.
    decimal : {".", ","}, default="."
    bad : {"stop", "skip", "mark"}, default="stop"
        A record that cannot be classified raises, is left out, or is kept with
        an empty label and its fault in a further column ``problem``.
    chunk_size : int, default=4096
        Records classified together. 1 answers each record as it arrives.
    tally : Tally, optional
        Counts as records go by.
    report : callable, optional
        Gets one line of text for each bad record that does not raise.

    Yields
    ------
    list of str
        The header with ``malicious`` added, then each record with 1 or 0.

    Raises
    ------
    DataError
        With the line number.
    """
    tally = Tally() if tally is None else tally
    reader, header = _open_csv(lines, separator)
    places = _places(classifier, header)
    yield [*header, "malicious", *(["problem"] if bad == "mark" else [])]
    readers = [_cell_reader(field, decimal) for field in classifier.schema]
    for chunk in _chunks(reader, len(header), chunk_size):
        labels = _classify_chunk(classifier, chunk, places, readers)
        for i, (line, row) in enumerate(zip(chunk.lines, chunk.rows, strict=True)):
            tally.records += 1
            fault = chunk.faults.get(i)
            if fault is None:
                tally.malicious += bool(labels[i])
                yield [*row, "01"[bool(labels[i])], *([""] if bad == "mark" else [])]
                continue
            tally.bad += 1
            if bad == "stop":
                raise DataError(f"line {line}: {fault}")
            if report is not None:
                report(f"line {line}: {fault}")
            if bad == "mark":
                filled = (row + [""] * len(header))[: len(header)]
                yield [*filled, "", fault]


def _open_csv(lines: Iterable[str], separator: str | None) -> tuple[Any, list[str]]:
    stream = iter(lines)
    first = next(stream, "").removeprefix("\ufeff")
    if not first.strip():
        raise DataError("line 1: a header with the names of the columns is needed")
    reader = csv.reader(
        itertools.chain([first], stream), delimiter=separator or _separator_of(first), strict=True
    )
    return reader, [name.strip() for name in _next_row(reader)]


def _separator_of(header: str) -> str:
    return max(",;\t", key=header.count)


def _next_row(reader: Any) -> list[str]:
    try:
        return list(next(reader))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: {error}") from error


def _places(classifier: ExportedClassifier, header: list[str]) -> list[int]:
    absent = [name for name in classifier.columns if name not in header]
    twice = [name for name in classifier.columns if header.count(name) > 1]
    for fault, names in (("has no", absent), ("repeats", twice)):
        if names:
            raise DataError(
                f"line 1: the header {fault} {', '.join(names)}; "
                f"needed are {', '.join(classifier.columns)}, it has {', '.join(header)}"
            )
    return [header.index(name) for name in classifier.columns]


def _chunks(reader: Any, width: int, chunk_size: int) -> Iterator[_Chunk]:
    chunk = _Chunk()
    while True:
        try:
            row = _next_row(reader)
        except StopIteration:
            break
        if not row:  # an empty line
            continue
        if len(row) != width:
            chunk.faults[len(chunk.rows)] = f"{len(row)} cells, but the header has {width}"
        chunk.lines.append(reader.line_num)
        chunk.rows.append(row)
        if len(chunk.rows) >= chunk_size:
            yield chunk
            chunk = _Chunk()
    if chunk.rows:
        yield chunk


def _classify_chunk(
    classifier: ExportedClassifier, chunk: _Chunk, places: list[int], readers: list[Any]
) -> np.ndarray[Any, Any]:
    """Labels of a chunk; whole if it is sound, else record by record to find the faults."""
    labels = np.zeros(len(chunk.rows), dtype=bool)
    sound = [i for i in range(len(chunk.rows)) if i not in chunk.faults]
    if not sound:
        return labels
    try:
        frame = pd.DataFrame(
            {
                name: [read(chunk.rows[i][place]) for i in sound]
                for name, place, read in zip(classifier.columns, places, readers, strict=True)
            }
        )
        labels[sound] = classifier(frame)
    except DataError:
        for i in sound:
            row = chunk.rows[i]
            try:
                values = [read(row[place]) for place, read in zip(places, readers, strict=True)]
                labels[i] = classifier(dict(zip(classifier.columns, values, strict=True)))
            except DataError as error:
                chunk.faults[i] = str(error)
    return labels


def _cell_reader(field: dict[str, Any], decimal: str) -> Any:
    """Function from the text of a cell to the value of a field."""
    name = field["name"]
    if field["kind"] == "category":
        values = {str(value): value for value in field["allowed"]}

        def read_category(text: str) -> Any:
            value = values.get(text)
            if value is None:
                text = text.strip()
                value = values.get(text, None if text.lower() in MISSING_WORDS else text)
            return value

        return read_category

    def read_number(text: str) -> float:
        plain = text if decimal == "." else text.replace(".", "?").replace(decimal, ".")
        try:
            number = float(plain)
        except ValueError:
            number = None
        if number is None or "_" in plain:
            if text.strip().lower() in MISSING_WORDS:
                return float("nan")
            raise DataError(f"{name}: a number is needed, got {text!r}")
        return number

    return read_number


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
        description="Classify records with a classifier that Detector.export wrote.",
        epilog="""\
examples:
  # one record, its values in the order of the fields
  python production/classify.py anomaly_classifier.clf car 4500 1800

  # a CSV file; the answers go to labels.csv, which appears when it is whole
  python production/classify.py anomaly_classifier.clf --csv records.csv --out labels.csv

  # a stream, each record answered as it comes; bad records are kept and marked
  tail -f records.csv | python production/classify.py anomaly_classifier.clf \\
      --csv - --chunk 1 --bad mark

  # what a file says of itself, without running anything in it
  python production/classify.py inspect anomaly_classifier.clf

The file is verified before it is opened; the key of a signed file is taken from
the environment variable ANOMALY_KEY. Output is the record with a column
`malicious` (1 or 0). Exit code 2 means that something was refused, and says what.
""",
    )
    parser.add_argument("file", help="exported classifier (.clf)")
    parser.add_argument("value", nargs="*", help="values of one record, in the order of fields")
    parser.add_argument(
        "--csv", metavar="RECORDS", help="CSV file to classify, .gz too; - is stdin"
    )
    parser.add_argument("--out", metavar="FILE", help="write here instead of to stdout")
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
    return parser


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


def _inspect_command(options: argparse.Namespace) -> int:
    print(json.dumps(inspect(options.file), indent=2, ensure_ascii=False))
    return 0


def _classify_command(options: argparse.Namespace) -> int:
    if bool(options.value) == (options.csv is not None):
        _parser().error("give either the values of one record, or --csv RECORDS")
    classifier = load(options.file, skew="accept" if options.accept_skew else "refuse")
    if options.value:
        print(["normal", "malicious"][_classify_values(classifier, options)])
        return 0
    tally = Tally()
    with _input(options.csv) as lines, _output(options.out) as out:
        first = next(lines, "")
        separator = options.separator or _separator_of(first)
        rows = classify_rows(
            classifier,
            itertools.chain([first], lines),
            separator=separator,
            decimal=options.decimal,
            bad=options.bad,
            chunk_size=options.chunk,
            tally=tally,
            report=lambda text: print(f"classify.py: {text}", file=sys.stderr),
        )
        writer = csv.writer(out, delimiter=separator, lineterminator="\n")
        for row in rows:
            writer.writerow(row)
            if options.chunk == 1:
                out.flush()
    print(
        f"{tally.records} records: {tally.malicious} malicious, {tally.bad} bad", file=sys.stderr
    )
    return 0


def _classify_values(classifier: ExportedClassifier, options: argparse.Namespace) -> bool:
    if len(options.value) != len(classifier.columns):
        raise DataError(
            f"expected the {len(classifier.columns)} values {', '.join(classifier.columns)}, "
            f"got {len(options.value)}"
        )
    readers = [_cell_reader(field, options.decimal) for field in classifier.schema]
    values = [read(text) for read, text in zip(readers, options.value, strict=True)]
    return bool(classifier(*values))


@contextlib.contextmanager
def _input(source: str) -> Iterator[Iterator[str]]:
    """Lines of a file, a .gz file or stdin; UTF-8, with or without a byte order mark."""
    how: dict[str, Any] = {"encoding": "utf-8-sig", "newline": ""}
    if source == "-":
        with io.TextIOWrapper(sys.stdin.buffer, **how) as file:
            yield _lines(file)
    elif source.endswith(".gz"):
        with gzip.open(source, "rt", **how) as file:
            yield _lines(file)
    else:
        with open(source, **how) as file:
            yield _lines(file)


def _lines(file: IO[str]) -> Iterator[str]:
    for number in itertools.count(1):
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
