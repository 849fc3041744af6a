"""Records from CSV files, plain or described by a catalogue, with every loss counted.

Two readers give the same table: pandas' C parser on the happy path, and a plain
row-by-row reader that takes over when the first one stumbles. The second either
copes (no-break spaces between thousands, stray blanks) or names the file, line,
column and value at fault.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import itertools
import os
import re
import stat
import sys
import tomllib
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import DataError, ParameterError

#: Cells that mean "no value"; blanks round a cell do not count.
MISSING_CELLS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "#N/A", "?")
SEPARATORS = (";", "\t", ",", "|")
CLASS = "class"
DUPLICATE = "duplicate"
#: The catalogue of the data sets that come with the project.
BUNDLED = Path(__file__).resolve().parent.parent / "datasets" / "catalogue.toml"
SAMPLE_ROWS = 1000
CHUNK_ROWS = 200_000

Floats = NDArray[np.float64]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)|nan", re.I)
_BLANKS = " \u00a0\u202f\u2009"
_TRUTH = dict.fromkeys(("True", "TRUE", "true"), 1.0) | dict.fromkeys(
    ("False", "FALSE", "false"), 0.0
)
_TRUE = {"1", "1.0", "true", "yes", "anomaly", "anomalous"}
_FALSE = {"0", "0.0", "false", "no", "normal"}
_FILTERS = {
    "equals": lambda cells, value: cells == value,
    "not_equals": lambda cells, value: cells != value,
    "above": lambda cells, value: cells > value,
    "at_least": lambda cells, value: cells >= value,
    "below": lambda cells, value: cells < value,
    "at_most": lambda cells, value: cells <= value,
    "one_of": lambda cells, value: cells.isin(value),
    "none_of": lambda cells, value: ~cells.isin(value),
}
# From 3.1 on pandas reads decimals exactly by default and refuses the option.
_EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"}
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    else {}
)


@dataclass(frozen=True)
class Report:
    """What a load found and what it left out.

    Attributes
    ----------
    source : str
        File, or name of the data set.
    rows_read, rows_filtered, rows_dropped, rows : int
        Records in the file, those a filter took out, those dropped for a missing
        or infinite cell, and those in the frame.
    missing, infinite : dict of str to int
        Cells without a value, and infinite cells, per column, in the rows that
        passed the filters; counted whether or not their rows were dropped.
    duplicates : int
        Rows of the frame that repeat an earlier one.
    renamed : dict of str to str
        Header names that occurred twice: new name to the name in the file.
    unnamed : int
        Columns without a header name, which are left out.
    separator : str
        The separator in use, given or found.
    parts : tuple of Report
        The reports of the files of a group.
    """

    source: str
    rows_read: int
    rows_filtered: int
    rows_dropped: int
    rows: int
    missing: dict[str, int] = field(default_factory=dict)
    infinite: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    unnamed: int = 0
    separator: str = ","
    parts: tuple[Report, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one line per finding; findings of zero are left out."""
        lines = [f"{self.source}: {self.rows} rows of {self.rows_read}"]
        if self.rows_filtered:
            lines.append(f"  {self.rows_filtered} rows filtered out")
        if self.rows_dropped:
            lines.append(f"  {self.rows_dropped} rows dropped for missing or infinite cells")
        for name, cells in (("missing", self.missing), ("infinite", self.infinite)):
            found = ", ".join(f"{column} {n}" for column, n in cells.items() if n)
            if found:
                lines.append(f"  {name} cells: {found}")
        if self.duplicates:
            lines.append(f"  {self.duplicates} rows repeat an earlier one")
        for new, old in self.renamed.items():
            lines.append(f"  header {old!r} occurs again; read as {new!r}")
        if self.unnamed:
            lines.append(f"  {self.unnamed} columns without a name left out")
        for part in self.parts:
            lines += ["  " + line for line in str(part).splitlines()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Loaded:
    """A table and the account of how it was read.

    Attributes
    ----------
    frame : DataFrame
        ``class`` first if there is one, then the columns used, the label column
        (0 normal, 1 anomaly) if there is one, and last the boolean ``duplicate``.
    report : Report
    label : str or None
        Name of the label column.
    categorical : tuple of str
        The columns of text, ``class`` among them.
    """

    frame: pd.DataFrame
    report: Report
    label: str | None = None
    categorical: tuple[str, ...] = ()


class _Source:
    """A file, stream or standard input that can be opened more than once."""

    def __init__(self, source: str | os.PathLike[str] | IO[Any]) -> None:
        self._data: bytes | None = None
        self._path: str | os.PathLike[str] = ""
        if source == "-":
            self.name, self._data = "<stdin>", sys.stdin.buffer.read()
        elif isinstance(source, str | os.PathLike):
            self.name, self._path = str(source), source
            if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe can be read once only
                self._data = Path(source).read_bytes()
        elif hasattr(source, "read"):
            data = source.read()
            self._data = data.encode("utf-8") if isinstance(data, str) else data
            self.name = str(getattr(source, "name", "<stream>"))
        else:
            raise ParameterError(
                f"source must be a path, '-' or a readable file, got {type(source).__name__}"
            )

    def open(self) -> IO[bytes]:
        """Open for bytes, unpacked if the content is gzip (whatever the name says)."""
        with self._open_packed() as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        if not packed:
            return self._open_packed()
        return cast(
            IO[bytes], gzip.open(self._path if self._data is None else self._open_packed())
        )

    def _open_packed(self) -> IO[bytes]:
        return open(self._path, "rb") if self._data is None else io.BytesIO(self._data)

    def rows(self, separator: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
        """Yield the line on which each record starts, and its cells."""
        with self.open() as raw, io.TextIOWrapper(raw, encoding, newline="") as text:
            reader = csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True)
            line = 1
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    yield line, row
                line = reader.line_num + 1


@dataclass(frozen=True)
class _Options:
    """The options of `read_csv`, checked."""

    separator: str | None
    decimal: str
    thousands: str | None
    encoding: str
    columns: Sequence[str] | Mapping[str, str] | None
    categorical: Sequence[str] | None
    units: Mapping[str, float]
    class_column: str | None
    class_value: str | None
    label: str | None
    anomalies: Sequence[Any] | None
    filters: tuple[tuple[str, str, Any], ...]
    missing: str

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator) != 1:
            raise ParameterError(f"separator must be one character, got {self.separator!r}")
        if self.decimal not in (".", ","):
            raise ParameterError(f"decimal must be '.' or ',', got {self.decimal!r}")
        if self.thousands is not None and (
            len(self.thousands) != 1 or self.thousands in self.decimal
        ):
            raise ParameterError(
                f"thousands must be one character other than the decimal mark "
                f"{self.decimal!r}, got {self.thousands!r}"
            )
        if self.separator is not None and self.separator in (self.decimal, self.thousands):
            raise ParameterError(
                f"separator must differ from the decimal mark and the thousands mark, "
                f"got {self.separator!r} twice"
            )
        if self.missing not in ("drop", "keep"):
            raise ParameterError(f"missing must be 'drop' or 'keep', got {self.missing!r}")
        if self.class_column is not None and self.class_value is not None:
            raise ParameterError("class_column and class_value exclude each other, got both")
        if isinstance(self.columns, str):
            raise ParameterError(
                f"columns must be a list or a mapping of names, got {self.columns!r}"
            )


@dataclass(frozen=True)
class _Layout:
    """How to read one file: its form, its columns, and what they are called in the frame."""

    source: _Source
    separator: str
    decimal: str
    thousands: str | None
    encoding: str
    header: list[str]
    renamed: dict[str, str]
    unnamed: set[str]
    names: dict[str, str]
    numbers: list[str]
    texts: list[str]

    @property
    def used(self) -> list[str]:
        return [name for name in self.header if name in {*self.numbers, *self.texts}]


def read_csv(
    source: str | os.PathLike[str] | IO[Any],
    *,
    separator: str | None = None,
    decimal: str = ".",
    thousands: str | None = None,
    encoding: str = "utf-8",
    columns: Sequence[str] | Mapping[str, str] | None = None,
    categorical: Sequence[str] | None = None,
    units: Mapping[str, float] | None = None,
    class_column: str | None = None,
    class_value: str | None = None,
    label: str | None = None,
    anomalies: Sequence[Any] | None = None,
    filters: Iterable[Mapping[str, Any]] | None = None,
    missing: str = "drop",
) -> Loaded:
    r"""Read records from a CSV file.

    Parameters
    ----------
    source : path, "-" or readable file
        "-" is standard input. Gzip is recognised by content, a byte order mark by
        its bytes.
    separator : str, optional
        One character; found among ``;``, tab, ``,`` and ``|`` when not given.
    decimal : {".", ","}
    thousands : str, optional
        Character between groups of digits. A blank stands for no-break and thin
        spaces too.
    encoding : str
    columns : sequence of str or mapping of str to str, optional
        Columns to use, in this order; a mapping goes from the name in the file to
        the name in the frame. All named columns when not given.
    categorical : sequence of str, optional
        Columns of text, by their name in the frame. When not given, a column is
        text if more than half of its filled cells among the first 1000 records
        are no numbers. Every other column must hold numbers; true and
        false are 1 and 0.
    units : mapping of str to float, optional
        Factor for a column of the frame, e.g. ``{"length": 25.4}`` for inches to mm.
    class_column : str, optional
        Column of the file that becomes the text column ``class``.
    class_value : str, optional
        One ``class`` for every row, instead of a column.
    label : str, optional
        Column of the file with the existing label; becomes 0 or 1.
    anomalies : sequence, optional
        The values of `label` that mean anomaly, every other one being normal.
        Without it the label must be written as 0/1, false/true, no/yes or
        normal/anomaly.
    filters : iterable of mapping, optional
        Rows to keep: each mapping names a ``column`` of the file and one test on
        it, in the units of the file: ``equals``, ``not_equals``, ``above``,
        ``at_least``, ``below``, ``at_most``, ``one_of``, ``none_of``. A row
        without a value in that column fails every test.
    missing : {"drop", "keep"}
        What to do with rows that lack a value; an infinite cell is no value. Kept
        cells are NaN.

    Returns
    -------
    Loaded

    Raises
    ------
    DataError
        If the content does not fit; names the file, line, column and value.
    ParameterError
        If an option is outside what is allowed.

    Examples
    --------
    >>> import io
    >>> from anomaly.loading import read_csv
    >>> text = "Länge;Breite\n4 950,5;1 800\n;1 750\n4 950,5;1 800\n"
    >>> loaded = read_csv(
    ...     io.StringIO(text), decimal=",", thousands=" ",
    ...     columns={"Länge": "length", "Breite": "width"}, class_value="car",
    ... )
    >>> loaded.frame
      class  length   width  duplicate
    0   car  4950.5  1800.0      False
    1   car  4950.5  1800.0       True
    >>> print(loaded.report)
    <stream>: 2 rows of 3
      1 rows dropped for missing or infinite cells
      missing cells: length 1
      1 rows repeat an earlier one
    >>> read_csv(io.StringIO("a,b\n1,2\n3,x4\n"))
    Traceback (most recent call last):
        ...
    anomaly.errors.DataError: <stream>, line 3, column 'b': 'x4' is not a number
    """
    options = _Options(
        separator, decimal, thousands, encoding, columns, categorical, units or {},
        class_column, class_value, label, anomalies,
        tuple(_check_filter(entry) for entry in filters or ()), missing,
    )  # fmt: skip
    opened = _Source(source)
    try:
        layout = _plan(opened, options)
        table = _read(layout)
    except UnicodeError as error:
        raise DataError(
            f"{opened.name}: not {encoding} text ({error}); pass encoding=, e.g. 'latin-1'"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{opened.name}: the gzip data is damaged or cut off: {error}") from error
    kept = _filter(table, options)
    frame = _frame(kept, layout, options)
    return _finish(frame, layout, options, rows_read=len(table))


def _check_filter(entry: Mapping[str, Any]) -> tuple[str, str, Any]:
    tests = [key for key in entry if key != "column"]
    if "column" not in entry or len(tests) != 1 or tests[0] not in _FILTERS:
        raise ParameterError(
            f"a filter names a column and one of {', '.join(_FILTERS)}; got {dict(entry)!r}"
        )
    value = entry[tests[0]]
    if tests[0].endswith("_of") and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise ParameterError(f"{tests[0]} takes a list of values, got {value!r}")
    return str(entry["column"]), tests[0], value


def _plan(source: _Source, options: _Options) -> _Layout:
    """Find the form of the file, and the type of every column that is needed."""
    encoding = _encoding(source, options.encoding)
    separator = options.separator or _sniff(source, encoding, options.decimal)
    records = source.rows(separator, encoding)
    try:
        first = next(records, None)
        sample = [row for _, row in itertools.islice(records, SAMPLE_ROWS)]
    except csv.Error as error:
        raise DataError(f"{source.name}: {error}") from error
    if first is None:
        raise DataError(f"{source.name}: empty, not even a header line")
    header, renamed, unnamed = _unique_names(first[1])
    names = _frame_names(source.name, header, unnamed, options)
    for column, _, _ in options.filters:
        _require("column", source.name, header, column)
    texts = _text_columns(source.name, header, names, sample, options)
    needed = {*names, *(column for column, _, _ in options.filters)}
    return _Layout(
        source, separator, options.decimal, options.thousands, encoding,
        header, renamed, unnamed, names,
        numbers=[c for c in header if c in needed and c not in texts],
        texts=[c for c in header if c in texts],
    )  # fmt: skip


def _text_columns(
    where: str,
    header: list[str],
    names: Mapping[str, str],
    sample: list[list[str]],
    options: _Options,
) -> set[str]:
    """Tell the columns of text from those of numbers, by their names in the file."""
    texts = {c for c in (options.class_column, options.label) if c is not None}
    if options.categorical is None:
        free = [c for c in names if c not in texts]
        texts |= {c for c in free if _is_text(sample, header.index(c), options)}
    else:
        known = {new: old for old, new in names.items()}
        for name in options.categorical:
            _require("column", where, list(known), name)
        texts |= {known[name] for name in options.categorical}
    for column, _, value in options.filters:
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if any(isinstance(v, str) for v in values):
            texts.add(column)
        elif column in texts:
            raise ParameterError(
                f"filter on {column!r}: the column holds text, so compare it with text, "
                f"got {value!r}"
            )
    return texts


def _encoding(source: _Source, encoding: str) -> str:
    """Follow a byte order mark, if there is one."""
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise ParameterError(f"encoding {encoding!r} is not known") from None
    with source.open() as raw:
        head = raw.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig" if codec == "utf-8" or head.startswith(codecs.BOM_UTF8) else codec


def _sniff(source: _Source, encoding: str, decimal: str) -> str:
    """Find the separator that splits the header and the first records alike."""
    best, most = ",", 1
    for candidate in SEPARATORS:
        if candidate == decimal:
            continue
        try:
            rows = [row for _, row in itertools.islice(source.rows(candidate, encoding), 20)]
        except csv.Error:
            continue
        widths = {len(row) for row in rows}
        if rows and len(rows[0]) > most and max(widths) <= len(rows[0]) + 1 and min(widths) > 1:
            best, most = candidate, len(rows[0])
    return best


def _unique_names(header: list[str]) -> tuple[list[str], dict[str, str], set[str]]:
    """Give every column a name of its own: ``a, a`` becomes ``a, a.1``."""
    taken = {name.strip() for name in header}
    unique: list[str] = []
    renamed: dict[str, str] = {}
    unnamed: set[str] = set()
    for position, raw in enumerate(header):
        wanted = raw.strip()
        name, number = wanted or f"column{position + 1}", 0
        while name in unique or ((number or not wanted) and name in taken):
            number += 1
            name = f"{wanted or f'column{position + 1}'}.{number}"
        unique.append(name)
        if not wanted:
            unnamed.add(name)
        elif number:
            renamed[name] = wanted
    return unique, renamed, unnamed


def _require(what: str, where: str, known: Sequence[str], name: str) -> None:
    """Refuse a name that is not known, and guess what was meant."""
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(
            f"{where}: there is no {what} {name!r}, only {', '.join(map(repr, known))}{hint}"
        )


def _frame_names(
    where: str,
    header: list[str],
    unnamed: set[str],
    options: _Options,
) -> dict[str, str]:
    """Map names in the file to names in the frame, in the order of the frame."""
    columns, class_column, label = options.columns, options.class_column, options.label
    special = [c for c in (class_column, label) if c is not None]
    if columns is None:
        chosen = {c: c for c in header if c not in unnamed and c not in special}
    else:
        chosen = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    names = {class_column: CLASS} if class_column is not None else {}
    names |= {old: new for old, new in chosen.items() if old not in special}
    if label is not None:
        names[label] = chosen.get(label, label)
    for old in names:
        _require("column", where, header, old)
    new = list(names.values())
    for name in new:
        if new.count(name) > 1:
            raise DataError(f"{where}: two columns would be called {name!r}; rename one")
    if DUPLICATE in new:
        raise DataError(
            f"{where}: the column name {DUPLICATE!r} is kept for the flag of repeated rows; "
            f"choose columns= without it or rename it"
        )
    return names


def _is_text(sample: list[list[str]], index: int, options: _Options) -> bool:
    cells = [row[index].strip() for row in sample if index < len(row)]
    filled = [cell for cell in cells if cell not in MISSING_CELLS]
    # A mark that was not announced makes a wrong number, not a text.
    marks = [(decimal, thousands) for decimal in ".," for thousands in (options.thousands, " ")]
    numbers = sum(any(_number(cell, *pair) is not None for pair in marks) for cell in filled)
    return 2 * numbers < len(filled)


def _number(cell: str, decimal: str, thousands: str | None) -> float | None:
    """Return the value of a cell, NaN if it is missing, None if it is no number."""
    text = cell.strip()
    if text in MISSING_CELLS:
        return float("nan")
    if thousands is not None:
        for mark in _BLANKS if thousands in _BLANKS else thousands:
            text = text.replace(mark, "")
    if decimal != ".":
        if "." in text:
            return None
        text = text.replace(decimal, ".")
    return float(text) if _NUMBER.fullmatch(text) else _TRUTH.get(text)


def _read(layout: _Layout) -> pd.DataFrame:
    """Read fast; where that fails, slowly, to cope or to say why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return _read_fast(layout)
    except UnicodeError:
        raise
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning, csv.Error):
        return _read_rows(layout)


def _read_fast(layout: _Layout) -> pd.DataFrame:
    """Read by pandas' C parser, in blocks, so that unused columns cost no memory.

    The unused columns are parsed all the same: a row with too many cells is then
    an error instead of a shift.
    """
    # Pandas reads thousands marks inexactly, so such numbers come as text, too.
    plain = set() if layout.thousands else set(layout.numbers)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in layout.used}
    codes: dict[str, dict[str, int]] = {name: {} for name in layout.texts}
    with layout.source.open() as raw:
        blocks = pd.read_csv(
            raw,
            sep=layout.separator,
            decimal=layout.decimal,
            encoding=layout.encoding,
            names=layout.header,
            header=0,
            index_col=False,
            dtype={name: "float64" if name in plain else "object" for name in layout.header},
            na_values=list(MISSING_CELLS),
            keep_default_na=False,
            skipinitialspace=True,
            chunksize=CHUNK_ROWS,
            **_EXACT,
        )
        for block in blocks:
            for name in layout.numbers:
                cells = block[name]
                parts[name].append(cells.to_numpy() if name in plain else _decode(cells, layout))
            for name in layout.texts:
                parts[name].append(_recode(block[name], codes[name]))
    return _table(layout, parts, codes)


def _decode(cells: pd.Series, layout: _Layout) -> Floats:
    """Turn a block of written numbers into numbers, each distinct writing once."""
    codes, texts = pd.factorize(cells)
    values = [_number(text, layout.decimal, layout.thousands) for text in texts]
    if None in values:
        raise ValueError("not a number")
    return np.array([*values, np.nan], dtype=np.float64)[codes]


def _recode(cells: pd.Series, numbers: dict[str, int]) -> NDArray[np.int32]:
    """Number the texts of a block in the order of the whole file; -1 is missing."""
    codes, texts = pd.factorize(cells)
    stripped = [text.strip() for text in texts]
    known = [
        -1 if text in MISSING_CELLS else numbers.setdefault(text, len(numbers))
        for text in stripped
    ]
    return np.array([*known, -1], dtype=np.int32)[codes]


def _read_rows(layout: _Layout) -> pd.DataFrame:
    """Read row by row: the slow, obvious twin of the fast reader, which names the culprit."""
    width = len(layout.header)
    at = {name: layout.header.index(name) for name in layout.used}
    parts: dict[str, list[Any]] = {name: [] for name in layout.used}
    codes: dict[str, dict[str, int]] = {name: {} for name in layout.texts}
    records = layout.source.rows(layout.separator, layout.encoding)
    where = f"{layout.source.name}, line {{}}"
    line = 1
    try:
        next(records)
        for line, row in records:
            if len(row) > width and any(cell.strip() for cell in row[width:]):
                raise DataError(
                    f"{where.format(line)}: {len(row)} cells under {width} headers; "
                    f"the first too many is {row[width]!r}"
                )
            row += [""] * (width - len(row))
            for name in layout.numbers:
                value = _number(row[at[name]], layout.decimal, layout.thousands)
                if value is None:
                    raise DataError(
                        f"{where.format(line)}, column {name!r}: {row[at[name]].strip()!r} "
                        f"is not a number{_hint(row[at[name]], layout)}"
                    )
                parts[name].append(value)
            for name in layout.texts:
                text, seen = row[at[name]].strip(), codes[name]
                missing = text in MISSING_CELLS
                parts[name].append(-1 if missing else seen.setdefault(text, len(seen)))
    except csv.Error as error:
        raise DataError(f"{where.format(line)} or after: {error}") from error
    numbers = {name: [np.array(parts[name], dtype=np.float64)] for name in layout.numbers}
    texts = {name: [np.array(parts[name], dtype=np.int32)] for name in layout.texts}
    return _table(layout, {**numbers, **texts}, codes)


def _hint(cell: str, layout: _Layout) -> str:
    """Say which option would have read the cell."""
    other = "," if layout.decimal == "." else "."
    if _number(cell, other, layout.thousands) is not None:
        return f"; did you mean decimal={other!r}?"
    for mark in (" ", ",", "."):
        if mark != layout.decimal and _number(cell, layout.decimal, mark) is not None:
            return f"; did you mean thousands={mark!r}?"
    return ""


def _table(
    layout: _Layout, parts: dict[str, list[NDArray[Any]]], codes: dict[str, dict[str, int]]
) -> pd.DataFrame:
    table = {}
    for name in layout.used:
        cells = np.concatenate(parts.pop(name)) if parts[name] else np.array([])
        if name in codes:
            values = np.array([*codes[name], np.nan], dtype=object)
            table[name] = pd.Series(values[cells.astype(np.int32)], dtype="str")
        else:
            table[name] = pd.Series(cells, copy=False)
    return pd.DataFrame(table)


def _filter(table: pd.DataFrame, options: _Options) -> pd.DataFrame:
    for column, test, value in options.filters:
        table = table[_FILTERS[test](table[column], value) & table[column].notna()]
    return table


def _frame(table: pd.DataFrame, layout: _Layout, options: _Options) -> pd.DataFrame:
    """Pick, rename and convert the columns."""
    names, where = layout.names, layout.source.name
    frame = table[list(names)].rename(columns=names).reset_index(drop=True)
    for name, factor in options.units.items():
        _require("column", f"{where}: units", list(frame.columns), name)
        if not pd.api.types.is_float_dtype(frame[name]):
            raise ParameterError(f"units: column {name!r} holds text and takes no factor")
        if factor != 1:
            frame[name] = frame[name] * factor
    if options.class_value is not None:
        if CLASS in frame:
            raise DataError(f"{where}: class_value is given and a column is called {CLASS!r}")
        value = np.array([options.class_value], dtype=object)
        frame.insert(0, CLASS, pd.Series(np.repeat(value, len(frame)), dtype="str"))
    if options.label is not None:
        label = names[options.label]
        frame[label] = _labels(frame[label], options.anomalies, where)
    return frame


def _labels(cells: pd.Series, anomalies: Sequence[Any] | None, where: str) -> pd.Series:
    """Turn a text column into 0, 1 and NaN."""
    known = [text for text in cells.unique() if isinstance(text, str)]
    if anomalies is not None:
        wanted = {str(value).strip() for value in anomalies}
        numbers = {text: float(text in wanted) for text in known}
    else:
        numbers = {text: 1.0 for text in known if text.lower() in _TRUE}
        numbers |= {text: 0.0 for text in known if text.lower() in _FALSE}
        strange = sorted(set(known) - set(numbers))
        if strange:
            raise DataError(
                f"{where}: label {cells.name!r} holds {', '.join(map(repr, strange[:5]))}; "
                f"say with anomalies (--anomalies VALUE) which values mean anomaly"
            )
    return cells.map(numbers).astype("float64")


def _finish(frame: pd.DataFrame, layout: _Layout, options: _Options, rows_read: int) -> Loaded:
    """Count, drop and flag."""
    passed = len(frame)
    infinite = {}
    for name in frame.select_dtypes("float64").columns:
        endless = np.isinf(frame[name].to_numpy())
        if endless.any():
            infinite[str(name)] = int(endless.sum())
            frame[name] = frame[name].mask(endless)
    absent = {str(c): int(frame[c].isna().sum()) - infinite.get(c, 0) for c in frame.columns}
    if options.missing == "drop" and (infinite or any(absent.values())):
        frame = frame.dropna(ignore_index=True)
    label = None if options.label is None else layout.names[options.label]
    if label is not None and not frame[label].hasnans:
        frame[label] = frame[label].astype("int64")
    frame[DUPLICATE] = frame.duplicated().to_numpy()
    report = Report(
        source=layout.source.name,
        rows_read=rows_read,
        rows_filtered=rows_read - passed,
        rows_dropped=passed - len(frame),
        rows=len(frame),
        missing={name: n for name, n in absent.items() if n},
        infinite=infinite,
        duplicates=int(frame[DUPLICATE].sum()),
        renamed=layout.renamed,
        unnamed=len(layout.unnamed - set(layout.names)),
        separator=layout.separator,
    )
    texts = {*(layout.names.get(c) for c in layout.texts), CLASS} - {label}
    return Loaded(frame, report, label, tuple(c for c in frame.columns if c in texts))


_FILE_KEYS = (
    "title", "description", "file", "source", "licence", "simulated", "separator", "decimal",
    "thousands", "encoding", "missing", "class", "filters", "columns",
)  # fmt: skip
_GROUP_KEYS = ("title", "description", "parts")
_COLUMN_KEYS = ("from", "type", "factor", "unit", "description", "anomalies")


class Catalogue:
    """Data sets described in a TOML file, one table per data set.

    A data set is one CSV file, named relative to the catalogue, or a group of them
    with the same columns. ``docs/datasets.md`` describes every key.

    Parameters
    ----------
    path : str or PathLike, optional
        The catalogue; the bundled one when not given.

    Raises
    ------
    DataError
        If the catalogue cannot be read or has a key that is not known.

    Examples
    --------
    >>> from anomaly.loading import Catalogue
    >>> catalogue = Catalogue()
    >>> loaded = catalogue.load("body")
    >>> loaded.frame.head(2)
       class  length   width  duplicate
    0  human   895.0  1062.0      False
    1  human   970.0  1105.0      False
    >>> catalogue.entry("motorcycles")["simulated"]
    True
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else BUNDLED
        try:
            with open(self.path, "rb") as file:
                self._entries: dict[str, dict[str, Any]] = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not TOML: {error}") from error
        for name, entry in self._entries.items():
            self._check(name, entry)

    def names(self) -> list[str]:
        """Return the names of all data sets, in the order of the catalogue."""
        return list(self._entries)

    def entry(self, name: str) -> dict[str, Any]:
        """Return what the catalogue says of a data set.

        Raises
        ------
        DataError
            If there is none of this name.
        """
        if name not in self._entries:
            _require("data set", str(self.path), list(self._entries), name)
        return self._entries[name]

    def load(self, name: str, *, missing: str | None = None) -> Loaded:
        """Read a data set.

        Parameters
        ----------
        name : str
        missing : {"drop", "keep"}, optional
            Instead of what the catalogue says.

        Returns
        -------
        Loaded
            For a group, ``duplicate`` is flagged over all its files.
        """
        entry = self.entry(name)
        if "parts" not in entry:
            loaded = self._load_file(entry, missing)
            return replace(loaded, report=replace(loaded.report, source=name))
        return _join(name, [self.load(part, missing=missing) for part in entry["parts"]])

    def _load_file(self, entry: Mapping[str, Any], missing: str | None) -> Loaded:
        columns: dict[str, dict[str, Any]] = entry["columns"]
        kinds = {name: column.get("type", "number") for name, column in columns.items()}
        labels = [name for name, kind in kinds.items() if kind == "label"]
        form = {
            k: entry[k] for k in ("separator", "decimal", "thousands", "encoding") if k in entry
        }
        return read_csv(
            self.path.parent / entry["file"],
            **{key: entry[key] for key in form if key in entry},
            columns={columns[c].get("from", c): c for c in kinds if c != CLASS},
            categorical=[c for c, kind in kinds.items() if kind == "text"],
            units={c: columns[c]["factor"] for c in columns if "factor" in columns[c]},
            class_column=columns[CLASS].get("from", CLASS) if CLASS in columns else None,
            class_value=entry.get("class"),
            label=columns[labels[0]].get("from", labels[0]) if labels else None,
            anomalies=columns[labels[0]].get("anomalies") if labels else None,
            filters=entry.get("filters"),
            missing=missing or entry.get("missing", "drop"),
        )

    def _check(self, name: str, entry: Any) -> None:
        where = f"{self.path}, [{name}]"
        if not isinstance(entry, dict):
            raise DataError(f"{self.path}: {name!r} must be a table, got {entry!r}")
        if "parts" in entry:
            _check_keys(where, entry, _GROUP_KEYS, required=("parts",))
            for part in entry["parts"]:
                _require("data set", where, list(self._entries), part)
                if "parts" in self._entries[part]:
                    raise DataError(f"{where}: part {part!r} is a group itself")
            return
        _check_keys(where, entry, _FILE_KEYS, required=("file", "columns"))
        kinds = []
        for column, about in entry["columns"].items():
            inner = f"{where}, column {column!r}"
            if not isinstance(about, dict):
                raise DataError(f"{inner} must be a table, got {about!r}")
            _check_keys(inner, about, _COLUMN_KEYS)
            kinds.append(about.get("type", "number"))
            _require("type", inner, ["number", "text", "label"], kinds[-1])
        if kinds.count("label") > 1:
            raise DataError(f"{where}: one column at most has type 'label'")


def _check_keys(
    where: str, table: Mapping[str, Any], known: Sequence[str], required: Sequence[str] = ()
) -> None:
    for key in table:
        _require("key", where, known, key)
    for key in required:
        if key not in table:
            raise DataError(f"{where}: {key!r} is missing")


def _join(name: str, parts: list[Loaded]) -> Loaded:
    """Put the files of a group under one another."""
    first, reports = parts[0], [part.report for part in parts]
    for part in parts[1:]:
        if list(part.frame.columns) != list(first.frame.columns) or part.label != first.label:
            raise DataError(
                f"{name}: {part.report.source!r} has the columns {list(part.frame.columns)}, "
                f"{first.report.source!r} has {list(first.frame.columns)}"
            )
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    frame[DUPLICATE] = frame.drop(columns=DUPLICATE).duplicated().to_numpy()
    report = Report(
        source=name,
        rows_read=sum(r.rows_read for r in reports),
        rows_filtered=sum(r.rows_filtered for r in reports),
        rows_dropped=sum(r.rows_dropped for r in reports),
        rows=len(frame),
        missing=dict(sum((Counter(r.missing) for r in reports), Counter())),
        infinite=dict(sum((Counter(r.infinite) for r in reports), Counter())),
        duplicates=int(frame[DUPLICATE].sum()),
        separator=first.report.separator,
        parts=tuple(reports),
    )
    return Loaded(frame, report, first.label, first.categorical)
