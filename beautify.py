"""Turn the log of a tuning run into tables: one JSON file and CSV files.

Run ``python beautify.py --help`` for the formats and an example. Logs are only
parsed, never evaluated, so a log from a stranger can do no harm.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

DELIMITER = ";"
ENCODING = "utf-8"
LEADING_SCORES = ("id", "fold", "split")
# An entry longer than this is kept aside unread, so memory stays bounded.
MAX_ENTRY_BYTES = 1 << 20
# Class names become part of file names.
MAX_CLASS_NAME = 150
# Spools stay in memory up to this size and go to a temporary file after it.
SPOOL_BYTES = 8 << 20
SHOWN_FAULTS = 20

_CLASS_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NUMPY_SCALAR = re.compile(
    r"(np|numpy)\.(u?int(\d+|c|p)?|u?long(long)?|u?short|u?byte|float\d*|half|single|double|"
    r"longdouble|bool_?|str_|bytes_)"
)
# Values printed by address, such as <function f at 0x7f..>, are kept as text.
_ADDRESS = re.compile(r"<[^<>]*>|\b\w+\(\w*\) at 0x[0-9A-Fa-f]+")
_NAMES = {"nan": math.nan, "NaN": math.nan, "inf": math.inf, "Infinity": math.inf}
_NUMPY_NAMES = {"nan": math.nan, "inf": math.inf, "True_": True, "False_": False}

# The original tuned three families; they are told apart by their parameters in
# logs in which `estimator` holds a nested estimator and no class is named.
_FAMILIES = (
    ({"hidden_layer_sizes", "activation"}, "MLPClassifier"),
    ({"n_estimators", "learning_rate", "estimator"}, "AdaBoostClassifier"),
    ({"multi_class", "loss", "dual"}, "LinearSVC"),
)


class LogError(ValueError):
    """A log that cannot be read, or an entry of it that is malformed."""


@dataclass(frozen=True)
class Call:
    """An estimator inside a parameter, known only by the text of its constructor call.

    Examples
    --------
    >>> parse("DecisionTreeClassifier(max_depth=2,\\n                criterion='gini')")
    DecisionTreeClassifier(max_depth=2, criterion='gini')
    """

    name: str
    positional: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        parts = [repr(value) for value in self.positional]
        parts += [f"{key}={value!r}" for key, value in self.named]
        return f"{self.name}({', '.join(parts)})"


# --- values -----------------------------------------------------------------


def parse(text: str) -> Any:
    """Read one Python literal, allowing nan, inf, numpy scalars and constructor calls.

    Nothing is imported or executed: numpy scalars become plain numbers and any
    other call becomes a :class:`Call`.

    Parameters
    ----------
    text : str
        The ``repr`` of a value.

    Raises
    ------
    LogError
        If the text is not a literal, naming the part at fault.

    Examples
    --------
    >>> parse("{'alpha': np.float64(0.1), 'sizes': (3, 3), 'missing': -inf, 'seed': None}")
    {'alpha': 0.1, 'sizes': (3, 3), 'missing': -inf, 'seed': None}
    """
    try:
        return _value(_tree(text))
    except LogError:
        raise
    except SyntaxError as error:
        raise LogError(f"not a Python literal ({error.msg})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise LogError(f"not a Python literal ({error or type(error).__name__})") from None


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        if not _ADDRESS.search(text):
            raise
        quoted = _ADDRESS.sub(lambda match: repr(match[0]), text)
        return ast.parse(quoted.strip(), mode="eval").body


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if value is not Ellipsis:
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {
                _value(key): _value(value)  # type: ignore[arg-type]
                for key, value in zip(keys, values, strict=True)
            }
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr=name) if name in _NUMPY_NAMES:
            return _NUMPY_NAMES[name]
        case ast.Call():
            return _call(node)
    raise LogError(f"{_excerpt(ast.unparse(node))} is not a literal")


def _call(node: ast.Call) -> Any:
    name = ast.unparse(node.func)
    if not _CLASS_NAME.fullmatch(name):
        raise LogError(f"{_excerpt(name)} is not the name of a class")
    positional = tuple(_value(argument) for argument in node.args)
    if _NUMPY_SCALAR.fullmatch(name) and len(positional) == 1 and not node.keywords:
        return positional[0]
    if any(keyword.arg is None for keyword in node.keywords):
        raise LogError(f"{_excerpt(ast.unparse(node))} is not a literal")
    named = tuple((str(keyword.arg), _value(keyword.value)) for keyword in node.keywords)
    return Call(name, positional, named)


def json_value(value: Any) -> Any:
    """Bring a parsed value into strict JSON.

    Tuples and sets become lists, estimators their one-line call, and nan and
    the infinities the strings "nan", "inf" and "-inf", which ``float`` reads
    back: JSON has no number for them.

    Examples
    --------
    >>> json_value({"missing": math.nan, "sizes": (3, 3), "estimator": parse("SVC(C=2)")})
    {'missing': 'nan', 'sizes': [3, 3], 'estimator': 'SVC(C=2)'}
    """
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_value(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else repr(value)


def cell(value: Any) -> str:
    """Print a parsed value as one CSV cell: None is empty, strings are bare.

    Examples
    --------
    >>> [cell(value) for value in (None, "relu", 0.1, True, (3, 3), math.nan, "")]
    ['', 'relu', '0.1', 'True', '(3, 3)', 'nan', "''"]
    """
    if value is None:
        return ""
    return value if isinstance(value, str) and value else repr(value)


# --- entries of a log -------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """One set of parameters, read once however many folds repeat it."""

    values: dict[str, Any]
    json: str
    cells: dict[str, str]
    canonical: str


@dataclass(frozen=True)
class Entry:
    """One fit: the parameters, the scores and the class of the estimator."""

    params: Parameters
    scores: dict[str, Any]
    estimator: str
    number: int


@dataclass(frozen=True)
class Fault:
    """One malformed stretch of a log, with the number of its first line."""

    number: int
    reason: str
    raw: bytes
    torn: bool


@dataclass
class _Stretch:
    """Physical lines that belong together: an entry may wrap inside a repr."""

    number: int
    raw: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, line: bytes) -> None:
        self.size += len(line)
        self.raw.append(line)

    def is_whole(self) -> bool:
        text = b"".join(self.raw).rstrip()
        return text.endswith(b"}") and b"\t" in text


def read_log(path: str | os.PathLike[str]) -> Iterator[Entry | Fault]:
    """Read a log entry by entry, in memory that does not grow with the log.

    Parameters
    ----------
    path : str or PathLike
        A ``.out`` log, or a worker's ``.out.tmp`` that is still growing.

    Yields
    ------
    Entry or Fault
        In log order. A fault is ``torn`` if it is the last line and has no
        newline: the writer was stopped in the middle of it.
    """
    with open(path, "rb") as file:
        for stretch in _stretches(file):
            raw = b"".join(stretch.raw)
            try:
                yield _entry(raw, stretch.number)
            except LogError as error:
                torn = not raw.endswith(b"\n") and len(raw) <= MAX_ENTRY_BYTES
                yield Fault(stretch.number, str(error), raw, torn)


def _stretches(file: IO[bytes]) -> Iterator[_Stretch]:
    stretch: _Stretch | None = None
    for number, line in _numbered(file):
        continues = line.startswith(b" ") and bool(line.strip())
        if stretch and continues and stretch.size < MAX_ENTRY_BYTES and not stretch.is_whole():
            stretch.add(line)
            continue
        if stretch:
            yield stretch
        stretch = None
        if line.strip():
            stretch = _Stretch(number)
            stretch.add(line)
    if stretch:
        yield stretch


def _numbered(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Physical lines with their number; an endless one comes in pieces."""
    number = 1
    while line := file.readline(MAX_ENTRY_BYTES + 1):
        yield number, line
        number += line.endswith(b"\n")


def _entry(raw: bytes, number: int) -> Entry:
    if len(raw) > MAX_ENTRY_BYTES:
        raise LogError(f"longer than {MAX_ENTRY_BYTES} bytes")
    try:
        text = raw.decode(ENCODING)
    except UnicodeDecodeError as error:
        raise LogError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    fields = text.strip().split("\t")
    if len(fields) != 2:
        raise LogError(
            f"expected parameters, a tab and scores; found {len(fields)} field"
            f"{'s' * (len(fields) != 1)}: {_excerpt(text)}"
        )
    params = _parameters(" ".join(fields[0].splitlines()))
    scores = _record(" ".join(fields[1].splitlines()), "scores")
    return Entry(params, scores, _estimator(params.values, scores), number)


@lru_cache(maxsize=1 << 14)
def _parameters(text: str) -> Parameters:
    values = _record(text, "parameters")
    return Parameters(
        values,
        json.dumps(json_value(values), allow_nan=False),
        {key: cell(value) for key, value in values.items()},
        repr(sorted(values.items(), key=lambda item: item[0])),
    )


def _record(text: str, what: str) -> dict[str, Any]:
    try:
        record = parse(text)
    except LogError as error:
        raise LogError(f"{what}: {error}") from None
    if not isinstance(record, dict):
        raise LogError(f"{what}: expected a dictionary, found {_excerpt(text)}")
    for key in record:
        if not isinstance(key, str):
            raise LogError(f"{what}: expected names as keys, found {key!r}")
    return record


def _estimator(params: dict[str, Any], scores: dict[str, Any]) -> str:
    """Class of the estimator: as the scores name it, or as the original did."""
    for name in (scores.get("estimator"), params.get("estimator")):
        if isinstance(name, str):
            if not _CLASS_NAME.fullmatch(name) or len(name) > MAX_CLASS_NAME:
                raise LogError(
                    f"estimator: expected the name of a class, found {_excerpt(repr(name))}"
                )
            return name
    known = params.keys() | ({"estimator"} if "base_estimator" in params else set())
    return next((name for keys, name in _FAMILIES if keys <= known), "Estimator")


def _excerpt(text: str, length: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}…"


# --- tables -----------------------------------------------------------------


def _byte_spool(spools: ExitStack) -> tempfile.SpooledTemporaryFile[bytes]:
    return spools.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES, "w+b"))


class _Table:
    """A CSV table whose columns become known only while it is filled."""

    def __init__(self, spools: ExitStack, leading: tuple[str, ...]) -> None:
        self.columns = {name: place for place, name in enumerate(leading)}
        self._spool = io.TextIOWrapper(
            _byte_spool(spools), ENCODING, newline="", write_through=True
        )
        self._writer = csv.writer(self._spool)

    def add(self, row: dict[str, str]) -> None:
        for name in row:
            self.columns.setdefault(name, len(self.columns))
        self._writer.writerow([row.get(name, "") for name in self.columns])

    def write(self, path: Path, *, omit: frozenset[str] = frozenset()) -> None:
        """Write the header and the rows, rows from before a column padded."""
        self._spool.seek(0)
        kept = [place for name, place in self.columns.items() if name not in omit]
        with _write_aside(path) as file:
            text = io.TextIOWrapper(file, ENCODING, newline="", write_through=True)
            writer = csv.writer(text, delimiter=DELIMITER, lineterminator="\n")
            writer.writerow([name for name in self.columns if name not in omit])
            for row in csv.reader(self._spool):
                writer.writerow([row[place] if place < len(row) else "" for place in kept])
            text.detach()


class _JsonLists:
    """The two parallel lists of the JSON file, filled side by side."""

    def __init__(self, spools: ExitStack) -> None:
        self._lists = {name: _byte_spool(spools) for name in ("params", "scores")}
        self._empty = True

    def add(self, params: str, scores: str) -> None:
        for spool, text in zip(self._lists.values(), (params, scores), strict=True):
            spool.write(f"{'' if self._empty else ','}\n{text}".encode())
        self._empty = False

    def write(self, path: Path) -> None:
        with _write_aside(path) as file:
            opening = b"{"
            for name, spool in self._lists.items():
                file.write(opening + f'"{name}": ['.encode())
                spool.seek(0)
                shutil.copyfileobj(spool, file)
                file.write(b"\n]")
                opening = b", "
            file.write(b"}\n")


class _Combinations:
    """Numbers parameter combinations in the order in which they first appear."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._one_per_entry: bool | None = None
        self.count = 0

    def place(self, entry: Entry) -> tuple[int, bool]:
        """The id of an entry, and whether it is the first to have it."""
        if self._one_per_entry is None:
            # The original's scores name no fold: each of its lines keeps a row.
            self._one_per_entry = "fold" not in entry.scores
        if self._one_per_entry:
            self.count += 1
            return self.count - 1, True
        text = f"{entry.estimator}\t{entry.params.canonical}"
        key = hashlib.blake2b(text.encode(ENCODING, "replace"), digest_size=16).digest()
        known = self._ids.setdefault(key, self.count)
        is_new = known == self.count
        self.count += is_new
        return known, is_new


@dataclass
class Report:
    """What became of a log.

    Attributes
    ----------
    entries, combinations, estimators : int
        Fits read, distinct ids, and classes of estimator.
    rejected : int
        Malformed lines, kept aside.
    torn : int or None
        Number of a last line that was cut off while it was written.
    faults : list of str
        The first twenty malformed lines, with number and reason.
    files : list of Path
        Files written.
    """

    entries: int = 0
    combinations: int = 0
    estimators: int = 0
    rejected: int = 0
    torn: int | None = None
    faults: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


class _Tables:
    """Everything that is written for one log."""

    def __init__(self, spools: ExitStack) -> None:
        self.report = Report()
        self._spools = spools
        self._json = _JsonLists(spools)
        self._scores = _Table(spools, LEADING_SCORES)
        self._params: dict[str, _Table] = {}
        self._rejected = _byte_spool(spools)
        self._combinations = _Combinations()
        self._has_folds = False

    def add(self, entry: Entry) -> None:
        number, is_new = self._combinations.place(entry)
        scores = json.dumps(json_value(entry.scores), allow_nan=False)
        self._json.add(entry.params.json, scores)
        cells = {key: cell(value) for key, value in entry.scores.items()}
        self._has_folds |= "fold" in cells
        self._scores.add({**cells, "id": str(number)})
        if is_new:
            if entry.estimator not in self._params:
                self._params[entry.estimator] = _Table(self._spools, ("id",))
            self._params[entry.estimator].add({**entry.params.cells, "id": str(number)})
        self.report.entries += 1

    def set_aside(self, fault: Fault) -> None:
        if fault.torn:
            self.report.torn = fault.number
            return
        self.report.rejected += 1
        if len(self.report.faults) < SHOWN_FAULTS:
            self.report.faults.append(f"line {fault.number}: {fault.reason}")
        self._rejected.write(f"# line {fault.number}: {fault.reason}\n".encode(errors="replace"))
        self._rejected.write(fault.raw)

    def write_rejected(self, path: Path) -> None:
        """Write the file of malformed lines, or delete that of an earlier run."""
        if not self.report.rejected:
            path.unlink(missing_ok=True)
            return
        self._rejected.seek(0)
        with _write_aside(path) as file:
            shutil.copyfileobj(self._rejected, file)
        self.report.files.append(path)

    def write(self, base: str) -> None:
        """Write the JSON file, the scores and one table of parameters per class."""
        omit = frozenset() if self._has_folds else frozenset(LEADING_SCORES[1:])
        writers: dict[str, Callable[[Path], None]] = {
            ".json": self._json.write,
            ".scores.csv": lambda path: self._scores.write(path, omit=omit),
        }
        names = _file_names(list(self._params))
        for name, table in zip(names, self._params.values(), strict=True):
            writers[f".params.{name}.csv"] = table.write
        for ending, write in writers.items():
            path = Path(base + ending)
            write(path)
            self.report.files.append(path)
        self.report.combinations = self._combinations.count
        self.report.estimators = len(self._params)


def _file_names(classes: list[str]) -> list[str]:
    """Bare class names, in full where two libraries share one."""
    bare = [name.rpartition(".")[2] for name in classes]
    return [
        full if bare.count(short) > 1 else short for full, short in zip(classes, bare, strict=True)
    ]


def tabulate(path: str | os.PathLike[str]) -> Report:
    """Write the tables of a log beside it.

    Parameters
    ----------
    path : str or PathLike
        ``RUN.out``. The tables are ``RUN.json``, ``RUN.scores.csv``, one
        ``RUN.params.<EstimatorClass>.csv`` per class, and ``RUN.rejected`` if
        lines were malformed. Each file is replaced whole.

    Returns
    -------
    Report
        Counts, faults and the files written.

    Raises
    ------
    LogError
        If no line of the log can be read.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Path(folder, "demo.out")
    ...     line = "{'C': 1}\\t{'estimator': 'sklearn.svm.SVC', 'fold': 0, 'F1': 0.9}\\n"
    ...     _ = log.write_text(line)
    ...     report = tabulate(log)
    ...     print(Path(folder, "demo.scores.csv").read_text().rstrip())
    id;fold;split;estimator;F1
    0;0;;sklearn.svm.SVC;0.9
    >>> report.entries, report.combinations, report.rejected
    (1, 1, 0)
    """
    base = os.fspath(path)
    base = base.removesuffix(".tmp").removesuffix(".out")
    with ExitStack() as spools:
        tables = _Tables(spools)
        for found in read_log(path):
            if isinstance(found, Entry):
                tables.add(found)
            else:
                tables.set_aside(found)
        tables.write_rejected(Path(base + ".rejected"))
        if not tables.report.entries:
            raise LogError(_nothing_to_read(path, tables.report))
        tables.write(base)
    return tables.report


def _nothing_to_read(path: str | os.PathLike[str], report: Report) -> str:
    if report.faults:
        return f"{path}: no line is a fit; the first fault is {report.faults[0]}"
    return f"{path}: the log holds no finished fit"


@contextmanager
def _write_aside(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only once it is whole and on the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


# --- command line -----------------------------------------------------------

_EPILOG = """\
The log has one fit per line: the parameters, a tab, the scores, both as Python
literals. From RUN.out come, beside it:

  RUN.json              {"params": [...], "scores": [...]}, parallel, in log order
  RUN.scores.csv        id;fold;split; then every score and the confusion matrix
  RUN.params.CLASS.csv  id; then one column per parameter; an empty cell is None
  RUN.rejected          malformed lines, each under a comment with its number

`id` numbers the parameter combinations from 0 in order of first appearance and
joins the scores to the parameters. Logs of the original program name no fold:
there each entry keeps its own row, and `id` is its place in the log, from 0.
Nested estimators are written as a one-line call, nan and inf as words.

example:
  python parameters.py --run demo
  python beautify.py params/demo.out
  python process_output.py params/demo.scores.csv params/demo.params.*.csv

A worker's own RUN.HOST.PID.out.tmp can be read while the run goes on: a last
line that is cut off is left out and counted.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="beautify.py",
        description="Turn the log of a tuning run into JSON and CSV tables.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", metavar="RUN.out", help="log to read, as parameters.py merges it")
    return parser


def _show(report: Report, log: str) -> None:
    def count(number: int, what: str) -> str:
        return f"{number} {what}{'s' * (number != 1)}"

    print(
        f"{log}: {count(report.entries, 'fit')}, "
        f"{count(report.combinations, 'parameter combination')}, "
        f"{count(report.estimators, 'estimator')}"
    )
    for fault in report.faults:
        print(f"rejected {fault}", file=sys.stderr)
    if report.rejected > len(report.faults):
        print(f"rejected {report.rejected - len(report.faults)} more", file=sys.stderr)
    if report.torn is not None:
        print(f"left out line {report.torn}, the last, cut off while written", file=sys.stderr)
    for path in report.files:
        print(f"wrote {path}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    log = _parser().parse_args(arguments).log
    try:
        report = tabulate(log)
    except OSError as error:
        print(f"beautify.py: error: {error.filename or log}: {error.strerror}", file=sys.stderr)
        return 2
    except LogError as error:
        print(f"beautify.py: error: {error}", file=sys.stderr)
        return 2
    _show(report, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
