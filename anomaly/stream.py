"""Score a stream from the command line.

    python -m anomaly.stream run data.csv --time timestamp --value value --out scores.csv
    tail -n +1 -f sensor.csv | python -m anomaly.stream run - --value temperature
    python -m anomaly.stream run data.csv --value value --follow --state sensor.state \\
        --out scores.csv --plot live.png

One line goes out for each line that comes in: timestamp, value, predicted value, raw
score, likelihood and whether it is an anomaly (likelihood >= threshold, 0.5 unless
changed). With --state a run that was stopped, even by kill -9, goes on where it was:
the same file is read from the next record on, and scores.csv continues without a gap
or a double line.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from anomaly.errors import AnomalyError, DataError, ParameterError
from anomaly.files import write_aside
from anomaly.htm import HTMDetector
from anomaly.stream_ensemble import DEFAULT_WEIGHTS, StreamEnsemble
from anomaly.stream_plot import LivePlot
from anomaly.streaming import (
    StreamDetector,
    StreamRecord,
    restore_snapshots,
    seconds_of,
    snapshots_of,
)
from anomaly.tiles import TileDetector

__all__ = ["DETECTORS", "main", "make_detector", "read_parameters"]

DETECTORS: dict[str, type[StreamDetector]] = {
    "tile": TileDetector,
    "htm": HTMDetector,
    "ensemble": StreamEnsemble,
}
_LONGEST_LINE = 1 << 20
_MAGIC = b"anomaly stream state 1\n"
_TYPES = {"datetime", "float", "int", "string", "bool", "sdr", "list"}  # of the original's CSV
_MISSING = {"", "nan", "na", "null", "none"}


@dataclass
class Header:
    """Where a CSV keeps its clock and its values.

    Attributes
    ----------
    time : int or None
        Position of the time stamps.
    values : list of int
        Positions of the fields.
    names : list of str
        Names of the fields.
    lines : int
        Lines before the first record: 1, or 3 in the original's format.
    """

    time: int | None
    values: list[int]
    names: list[str]
    lines: int


@dataclass
class Output:
    """Scores as CSV, to a file that can be cut back to a checkpoint, or to stdout."""

    file: IO[str]
    path: Path | None
    rows: int = 0

    def write(self, cells: list[Any]) -> None:
        """Append one whole line."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self.file.write(line.getvalue())
        self.rows += 1

    def flush(self) -> int:
        """Bring everything to disk; the length of the file, 0 for stdout."""
        self.file.flush()
        if self.path is None:
            return 0
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size


@dataclass
class Run:
    """A detector on its way through a stream."""

    detector: StreamDetector
    settings: dict[str, Any]
    records: int = 0
    anomalies: int = 0
    written: int = 0
    state: Path | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def save(self, output: Output) -> None:
        """Write the checkpoint: scores first, then the state that says how many they are."""
        self.written = output.flush()
        if self.state is None or self.detector._stream is None:
            return
        blobs = snapshots_of(self.detector._stream)
        head = {
            "settings": self.settings,
            "records": self.records,
            "anomalies": self.anomalies,
            "written": self.written,
            "sizes": [len(blob) for blob in blobs],
        }
        with write_aside(self.state, "wb") as file:
            file.write(_MAGIC + json.dumps(head).encode() + b"\n")
            for blob in blobs:
                file.write(blob)
        self.saved_at = time.monotonic()


def read_parameters(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Detector and parameters from a file that ``python -m anomaly.swarm`` wrote.

    Parameters
    ----------
    path : str or PathLike
        JSON with ``detector`` ("tile", "htm" or "ensemble") and ``parameters``.

    Returns
    -------
    (str, dict)

    Raises
    ------
    ParameterError
        If it is anything else, or names an unknown parameter.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        kind, parameters = given["detector"], dict(given["parameters"])
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{path} must be JSON with 'detector' and 'parameters', as anomaly.swarm writes it"
        ) from error
    make_detector(kind, parameters)
    return kind, parameters


def make_detector(kind: str, parameters: dict[str, Any]) -> StreamDetector:
    """A detector by its short name.

    Examples
    --------
    >>> from anomaly.stream import make_detector
    >>> make_detector("tile", {"learning_period": 300})
    TileDetector(learning_period=300)
    """
    if kind not in DETECTORS:
        raise ParameterError(f"detector must be one of {sorted(DETECTORS)}, got {kind!r}")
    detector = DETECTORS[kind]()
    if isinstance(detector, StreamEnsemble) and "learning_period" in parameters:
        parameters = dict(parameters)
        detector = _learning_for(detector, parameters.pop("learning_period"))
    unknown = sorted(set(parameters) - set(detector.get_params()))
    if unknown:
        raise ParameterError(f"{kind} has no parameter {unknown[0]!r}")
    detector.set_params(**parameters)
    return detector


def _learning_for(ensemble: StreamEnsemble, learning_period: int) -> StreamEnsemble:
    """The default ensemble with members that learn for so many records."""
    members = ensemble._members()
    for _, member in members:
        member.set_params(learning_period=learning_period)
    return ensemble.set_params(estimators=members, weights=DEFAULT_WEIGHTS)


# Reading


def lines_of(source: str, follow: bool, idle_s: float | None) -> Iterator[str]:
    """Whole lines of a file or stdin; with ``follow`` those to come, too."""
    with ExitStack() as stack:
        if source == "-":
            file = sys.stdin
        else:
            file = stack.enter_context(open(source, encoding="utf-8-sig", newline=""))
        rest, quiet_since = "", time.monotonic()
        while True:
            line = file.readline()
            if line:
                rest += line
                if rest.endswith("\n"):
                    yield rest
                    rest = ""
                quiet_since = time.monotonic()
            elif follow and source != "-":
                if idle_s is not None and time.monotonic() - quiet_since >= idle_s:
                    break
                yield ""  # a chance to write what is finished
                time.sleep(0.05)
            else:
                break
        if rest and (not follow or source == "-"):  # no more will come
            yield rest


def find_header(lines: Iterator[str], options: argparse.Namespace) -> Header:
    """Read the header line, and the two more of the original's format."""
    names = _next_cells(lines, options.separator)
    if names is None:
        raise DataError(f"{options.data} is empty: a header line is needed")
    fields = options.value
    for wanted in [*fields, *([options.time] if options.time else [])]:
        if wanted not in names:
            raise DataError(f"no column {wanted!r} in {options.data}; it has {names}")
    time_at = names.index(options.time) if options.time else None
    return Header(time_at, [names.index(name) for name in fields], fields, 1)


def _next_cells(lines: Iterator[str], separator: str) -> list[str] | None:
    for line in lines:
        if line.strip():
            return [cell.strip() for cell in _cells_of(line, separator, "the header line")]
    return None


def _cells_of(line: str, separator: str, place: str) -> list[str]:
    if len(line) > _LONGEST_LINE:
        raise DataError(f"{place} is longer than {_LONGEST_LINE} characters")
    try:
        return next(csv.reader([line], delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{place} is no line of a CSV: {error}") from None


def records_of(
    lines: Iterator[str], header: Header, options: argparse.Namespace
) -> Iterator[tuple[str, float, tuple[float, ...]] | None]:
    """Time stamp as it came, its seconds, and the values; None when nothing came yet."""
    number = 1
    for line in lines:
        if not line:
            yield None
            continue
        number += 1
        if not line.strip():
            continue
        cells = _cells_of(line, options.separator, f"{options.data} line {number}")
        if number <= 3 and _is_format_line(cells):
            continue
        yield _record(cells, header, number, options.data)


def _is_format_line(cells: list[str]) -> bool:
    """Whether this is the second or third header line of the original's format."""
    words = {cell.strip().lower() for cell in cells}
    flags = {"", "t", "r", "s", "c", "l"}
    return words <= _TYPES or (words <= flags and words != {""})


def _record(
    cells: list[str], header: Header, number: int, source: str
) -> tuple[str, float, tuple[float, ...]]:
    try:
        stamp = "" if header.time is None else cells[header.time].strip()
        values = tuple(_value(cells[at]) for at in header.values)
        seconds = _seconds(stamp)
    except IndexError:
        raise DataError(f"{source} line {number} has only {len(cells)} columns") from None
    except ValueError as error:
        raise DataError(f"{source} line {number}: {error}") from None
    return stamp, seconds, values


def _value(text: str) -> float:
    if text.strip().lower() in _MISSING:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise DataError(f"a value must be a number or empty, got {text!r}") from None


def _seconds(stamp: str) -> float:
    if not stamp:
        return math.nan
    try:
        return float(stamp)
    except ValueError:
        return seconds_of(stamp)


# Running


def run(options: argparse.Namespace) -> int:
    """Stream a CSV through a detector, one line out for each line in."""
    current = start_or_resume(options)
    lines = lines_of(options.data, options.follow, options.idle)
    header = find_header(lines, options)
    records = records_of(lines, header, options)
    with ExitStack() as stack:
        output = open_output(options, current, header, stack)
        plot = open_plot(options, current, stack)
        skip_done(records, current, options)
        try:
            score_all(records, header, current, output, plot, options)
        except KeyboardInterrupt:
            pass
        finally:
            current.save(output)
    print(f"{current.records} records, {current.anomalies} anomalies", file=sys.stderr, flush=True)
    return 0


def start_or_resume(options: argparse.Namespace) -> Run:
    """A fresh run, or the one that the state file describes."""
    kind: str = options.detector or "tile"
    parameters: dict[str, Any] = {}
    if options.params:
        kind, parameters = read_parameters(options.params)
        if options.detector and options.detector != kind:
            raise ParameterError(f"{options.params} is for {kind!r}, not {options.detector!r}")
    for name in ("learning_period", "threshold"):
        if getattr(options, name) is not None:
            parameters[name] = getattr(options, name)
    if kind == "htm":
        parameters.setdefault("cells_per_column", 1)
    detector = make_detector(kind, parameters)
    settings = {"detector": kind, "parameters": parameters, "fields": options.value}
    current = Run(detector, settings, state=Path(options.state) if options.state else None)
    if current.state is not None and current.state.exists():
        resume(current)
    return current


def resume(current: Run) -> None:
    """Take up what a state file holds."""
    assert current.state is not None
    content = current.state.read_bytes()
    start = content.find(b"\n", len(_MAGIC))
    try:
        if not content.startswith(_MAGIC) or start < 0:
            raise DataError("it is not a stream state")
        head = json.loads(content[len(_MAGIC) : start])
        if head["settings"] != current.settings:
            raise DataError(
                f"it belongs to {head['settings']}, this run is {current.settings}; "
                "give the same options or another state file"
            )
        blobs, at = [], start + 1
        for size in head["sizes"]:
            blobs.append(content[at : at + int(size)])
            at += int(size)
        fresh = current.detector._start(len(current.settings["fields"]))
        current.detector._stream = restore_snapshots(fresh, blobs)
        current.records, current.anomalies = int(head["records"]), int(head["anomalies"])
        current.written = int(head["written"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot resume from {current.state}: {error}") from error


def skip_done(records: Iterator[Any], current: Run, options: argparse.Namespace) -> None:
    """Pass over what an earlier run has scored; stdin brings new records only."""
    if options.data == "-":
        return
    done = 0
    while done < current.records:
        try:
            done += next(records) is not None
        except StopIteration:
            raise DataError(
                f"{options.data} has {done} records, but the state has seen {current.records}"
            ) from None


def open_output(
    options: argparse.Namespace, current: Run, header: Header, stack: ExitStack
) -> Output:
    """Stdout, a file that appears when it is whole, or one that grows with its state.

    A growing file is cut back to the last checkpoint.
    """
    single = len(header.names) == 1
    named = [f"predicted_{name}" for name in header.names]
    columns = ["timestamp", *(["value", "predicted"] if single else [*header.names, *named])]
    columns += ["raw_score", "likelihood", "is_anomaly"]
    if options.out is None:
        output = Output(sys.stdout, None)
    else:
        path = Path(options.out)
        if options.state is None and not options.follow and options.data != "-":
            output = Output(stack.enter_context(write_aside(path)), path)
            output.write(columns)
            return output
        going_on = current.records > 0 and path.exists()
        if current.records > 0 and (not going_on or path.stat().st_size < current.written):
            raise DataError(f"{path} is shorter than the state says; it cannot be continued")
        if going_on:
            os.truncate(path, current.written)
        file = open(path, "a" if going_on else "w", encoding="utf-8", newline="")  # noqa: SIM115
        output = Output(stack.enter_context(file), path)
        if going_on:
            return output
    if current.records == 0:
        output.write(columns)
    return output


def open_plot(options: argparse.Namespace, current: Run, stack: ExitStack) -> LivePlot | None:
    """The picture to keep up to date, if one was asked for."""
    if not options.plot and not options.window:
        return None
    return stack.enter_context(
        LivePlot(
            options.plot or None,
            last=options.plot_last,
            every_s=2.0 if options.follow or options.window else math.inf,
            threshold=current.detector.threshold,
            title=Path(options.data).name if options.data != "-" else "stdin",
        )
    )


def score_all(
    records: Iterator[tuple[str, float, tuple[float, ...]] | None],
    header: Header,
    current: Run,
    output: Output,
    plot: LivePlot | None,
    options: argparse.Namespace,
) -> None:
    """The loop: one record in, one line out, a checkpoint now and then."""
    live = options.follow or options.data == "-"
    unsaved = 0
    for record in records:
        if record is None:
            if unsaved:
                current.save(output)
                unsaved = 0
            if plot is not None:
                plot.refresh()
            continue
        stamp, seconds, values = record
        x: Any = values[0] if len(values) == 1 else list(values)
        answer = current.detector.process_one(x, seconds)
        current.records += 1
        current.anomalies += answer.is_anomaly
        unsaved += 1
        output.write(_cells(stamp, answer))
        if plot is not None:
            plot.add(answer, None if math.isnan(seconds) else seconds)
        if live:
            output.file.flush()
        if unsaved >= options.save_every or time.monotonic() - current.saved_at > 10.0:
            current.save(output)
            unsaved = 0


def _cells(stamp: str, answer: StreamRecord) -> list[Any]:
    values, due = np.atleast_1d(answer.value), np.atleast_1d(answer.predicted)
    numbers = [*values.tolist(), *due.tolist(), answer.raw_score, answer.likelihood]
    return [stamp, *("" if math.isnan(n) else repr(n) for n in numbers), int(answer.is_anomaly)]


def separator(text: str) -> str:
    """The one character between columns; ``\\t`` is a tab."""
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or text in '\r\n"':
        raise argparse.ArgumentTypeError(f"must be one character such as ; or \\t, got {text!r}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    top = argparse.ArgumentParser(
        prog="python -m anomaly.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "run",
        help="score a CSV file or stdin, record by record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("data", help="CSV file with a header line, or - for stdin")
    command.add_argument("--time", metavar="COLUMN", help="time stamps (default: no clock)")
    command.add_argument(
        "--value",
        metavar="COLUMN",
        action="append",
        help="values; repeat for several fields (default: value)",
    )
    command.add_argument(
        "--separator", type=separator, default=",", help="between columns (default: a comma)"
    )
    command.add_argument("--detector", choices=sorted(DETECTORS), help="default: tile")
    command.add_argument("--params", metavar="FILE", help="what python -m anomaly.swarm found")
    command.add_argument("--learning-period", type=int, metavar="N", help="records not scored")
    command.add_argument("--threshold", type=float, metavar="X", help="default: 0.5")
    command.add_argument("--out", metavar="FILE", help="scores as CSV (default: stdout)")
    command.add_argument("--plot", metavar="PNG", help="picture; kept up to date with --follow")
    command.add_argument("--window", action="store_true", help="show the picture in a window")
    command.add_argument(
        "--plot-last", type=_count, default=5000, metavar="N", help="records in it (default: 5000)"
    )
    command.add_argument("--follow", action="store_true", help="wait for lines to be appended")
    command.add_argument(
        "--idle", type=float, metavar="S", help="with --follow: stop after S quiet seconds"
    )
    command.add_argument("--state", metavar="FILE", help="keep the state here and go on from it")
    command.add_argument(
        "--save-every",
        type=_count,
        default=5000,
        metavar="N",
        help="records between checkpoints (default: 5000, and every 10 seconds)",
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    options = parser().parse_args(arguments)
    options.value = options.value or ["value"]
    try:
        return run(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (AnomalyError, OSError, ValueError) as error:
        print(f"anomaly.stream: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
