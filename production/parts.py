"""Parts of tables: whole files, byte ranges of CSV files, row groups of Parquet files.

A CSV file may be cut at a line end only where that is a record end for certain. It is,
everywhere, if each line of the file is a record by itself: every field is either quoted
from end to end, or without a quote. That can be seen line by line, so stretches of a
file are looked at independently of each other. A file with one line that is not so
(a line break in a cell, a quote within plain text) is one part.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from anomaly.errors import DataError, require
from production.places import Stored, tree_of

__all__ = ["Part", "Stretch", "Survey", "cut", "format_of", "look_over", "parts_of", "stretches"]

MAX_LINE = 1 << 20
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_PACKED = (".bz2", ".lz4", ".xz", ".zip", ".zst")


@dataclass(frozen=True)
class Part:
    """A piece of a table that is scored by itself.

    Attributes
    ----------
    name : str
        Of the output below the output folder.
    source : Stored
        The file it is of, as it was when it was listed.
    format : {"csv", "csv.gz", "parquet"}
    start, stop : int or None
        Bytes of a CSV file, after its header, or row groups of a Parquet file.
        None and None are the whole file.
    before : int
        Lines after the header, or rows, that come before the part.
    size : int
        Bytes of input.
    """

    name: str
    source: Stored
    format: str
    start: int | None
    stop: int | None
    before: int
    size: int


@dataclass(frozen=True)
class Stretch:
    """A piece of a CSV file to look over: about ``start`` to ``stop``, up to line ends."""

    source: Stored
    separator: str
    start: int
    stop: int


@dataclass(frozen=True)
class Survey:
    """What a stretch holds: its bounds at line ends, its lines, and whether each is a record."""

    start: int
    stop: int
    lines: int
    is_plain: bool


def format_of(name: str) -> str:
    """Format of a table by the end of its name.

    Examples
    --------
    >>> from production.parts import format_of
    >>> format_of("a.csv"), format_of("b.CSV.gz"), format_of("c.parquet")
    ('csv', 'csv.gz', 'parquet')

    Raises
    ------
    DataError
        For other ways of compressing.
    """
    low = name.lower()
    if low.endswith(_PACKED):
        raise DataError(f"{name}: of compressed files only .gz is read")
    if low.endswith((".parquet", ".pq")):
        return "parquet"
    return "csv.gz" if low.endswith(".gz") else "csv"


def parts_of(source: Stored, ending: str, surveys: Sequence[Survey] = ()) -> list[Part]:
    """Parts of a CSV file: one for each stretch, or one if it may not be cut.

    Parameters
    ----------
    source : Stored
    ending : {"csv", "csv.gz", "parquet"}
        Of the output names.
    surveys : sequence of Survey
        Of all its stretches, in order.
    """
    kind = format_of(source.name)
    if len(surveys) < 2 or not all(survey.is_plain for survey in surveys):
        return [Part(f"{_stem(source.name)}.{ending}", source, kind, None, None, 0, source.size)]
    pieces, before = [], 0
    for survey in surveys:
        if survey.stop > survey.start:
            pieces.append((survey.start, survey.stop, before, survey.stop - survey.start))
        before += survey.lines
    return _numbered(source, kind, ending, pieces)


def _numbered(
    source: Stored, kind: str, ending: str, pieces: Sequence[tuple[int, int, int, int]]
) -> list[Part]:
    """Parts whose names sort in the order of the input."""
    width = max(5, len(str(len(pieces))))
    stem = _stem(source.name)
    return [
        Part(f"{stem}-{i:0{width}}.{ending}", source, kind, start, stop, before, size)
        for i, (start, stop, before, size) in enumerate(pieces)
    ]


def _stem(name: str) -> str:
    return re.sub(r"\.(csv|tsv|txt|parquet|pq)$", "", re.sub(r"(?i)\.gz$", "", name), flags=re.I)


# ---- CSV


def stretches(source: Stored, part_size: int, separator: str | None) -> list[Stretch]:
    """Stretches of a CSV file of about so many bytes; none if it is small or packed."""
    if format_of(source.name) != "csv" or source.size <= part_size:
        return []
    with tree_of(source.address).open(source.address) as file:
        header = file.readline(MAX_LINE)
    separator = separator or separator_of(header.decode("utf-8", "replace"))
    named = header.removeprefix(_BOM)
    is_line = header.endswith(b"\n") and b"\r" not in header.rstrip(b"\r\n")
    is_cut = is_line and source.size > len(header)
    if not is_cut or not named.strip() or not _is_plain(named, separator):
        return []
    n = -(-(source.size - len(header)) // part_size)
    cuts = [len(header) + (source.size - len(header)) * i // n for i in range(n + 1)]
    return [Stretch(source, separator, start, stop) for start, stop in itertools.pairwise(cuts)]


def separator_of(header: str) -> str:
    """Comma, semicolon or tab: the one that a header has most of."""
    return max(",;\t", key=header.count)


def look_over(stretch: Stretch) -> Survey:
    """Find the line ends at which a stretch begins and ends, and look at its lines.

    The stretch owns the lines that begin in it. A line end before ``start`` itself
    counts, so that neighbours agree.
    """
    with tree_of(stretch.source.address).open(stretch.source.address) as file:
        start = _after_line_end(file, stretch.start)
        stop = _after_line_end(file, stretch.stop)
        if start is None or stop is None:
            return Survey(stretch.start, stretch.start, 0, False)
        lines, is_plain = 0, True
        for block in _line_blocks(file, start, stop):
            lines += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
            is_plain = is_plain and _is_plain(block, stretch.separator)
    return Survey(start, max(start, stop), lines, is_plain)


def _after_line_end(file: IO[bytes], place: int) -> int | None:
    """Where the line that holds the byte before a place ends; None if it is too long."""
    file.seek(place - 1)
    read = 0
    while read <= 4 * MAX_LINE:
        line = file.readline(_BLOCK)
        read += len(line)
        if not line or line.endswith(b"\n"):
            return place - 1 + read
    return None


def _line_blocks(file: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    """Blocks of whole lines from one line end to another."""
    file.seek(start)
    rest, left = b"", stop - start
    while left > 0:
        block = file.read(min(_BLOCK, left))
        if not block:
            raise DataError(f"the file ends at {stop - left}, but {stop} bytes were listed")
        left -= len(block)
        whole = block.rfind(b"\n") + 1
        if whole or len(rest) > 4 * MAX_LINE:  # such a line is refused when it is scored
            yield rest + block[: whole or len(block)]
            rest = block[whole or len(block) :]
        else:
            rest += block
    if rest:
        yield rest


def _is_plain(block: bytes, separator: str) -> bool:
    """Whether every line of a block is a record by itself."""
    if b'"' not in block:
        return True
    return _plain_lines(separator).fullmatch(block) is not None


def _plain_lines(separator: str) -> re.Pattern[bytes]:
    apart = re.escape(separator.encode())
    field = rb'(?:"(?:[^"\r\n]++|"")*+"|[^"\r\n' + apart + rb"]*+)"
    line = field + rb"(?:" + apart + field + rb")*+"
    return re.compile(rb"(?:" + line + rb"(?:\r\n|\r|\n))*+(?:" + line + rb")?+")


class Span(io.RawIOBase):
    """A stretch of bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, stop: int) -> None:
        self._file = file
        self._left = stop - start
        file.seek(start)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes next."""
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


# ---- Parquet


def cut(source: Stored, part_size: int, ending: str) -> list[Part]:
    """Parts of a Parquet file: runs of row groups of about so many bytes; one if it is small."""
    whole = parts_of(source, ending)
    if source.size <= part_size:
        return whole
    parquet = require("pyarrow.parquet", extra="dask")
    with tree_of(source.address).open(source.address) as file:
        try:
            described = parquet.ParquetFile(file).metadata
        except ValueError as error:
            raise DataError(f"{source.address}: {error}") from error
    groups = [described.row_group(i) for i in range(described.num_row_groups)]
    pieces: list[tuple[int, int, int, int]] = []
    start = before = rows = size = 0
    for i, group in enumerate(groups):
        stored = sum(group.column(j).total_compressed_size for j in range(group.num_columns))
        if size and size + stored > part_size:
            pieces.append((start, i, before, size))
            start, before, size = i, rows, 0
        rows += group.num_rows
        size += stored
    pieces.append((start, len(groups), before, size))
    return whole if len(pieces) < 2 else _numbered(source, "parquet", ending, pieces)
