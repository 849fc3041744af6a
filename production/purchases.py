"""Flag the purchases of a stream that are out of line with what the buyer's circle spends.

``python -m production.purchases --help`` shows how.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import Progress

from anomaly._core import Network
from anomaly.errors import AnomalyError, DataError, ParameterError
from anomaly.files import write_aside
from anomaly.purchases import EventLog, make_network, read_header
from anomaly.purchases.log import LogCounts
from production.purchase_state import (
    BLOCK,
    Journal,
    LogFile,
    Position,
    ReplayedOutput,
    locked,
    read_snapshot,
    write_snapshot,
)

PROG = "purchases.py"
_LONG = 8 << 20  # bytes of a log from which on progress is shown
_POLL_S = 0.1
_SNAPSHOT_S = 30.0
_SIGMA = re.compile(r"(?=[0-9.]{1,10}\Z)[0-9]+(\.[0-9]+)?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _check(options)
        if options.state:
            _run_with_state(options)
        else:
            _run(options)
        return 0
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{PROG}: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except (AnomalyError, MemoryError) as error:
        print(f"{PROG}: error: {error or 'out of memory'}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Flag the purchases of a stream that are more than three standard "
        "deviations above\nwhat the buyer's circle of friends spends.",
        epilog="""\
The batch log starts with {"D":"3","T":"50"} (steps that make a circle, purchases in
a window); every line after it, and of the stream log, is an event:
  {"event_type":"befriend", "timestamp":"2017-06-13 11:33:01", "id1": "1", "id2": "2"}
  {"event_type":"unfriend", "timestamp":"2017-06-13 11:33:01", "id1": "1", "id2": "2"}
  {"event_type":"purchase", "timestamp":"2017-06-13 11:33:02", "id": "2", "amount": "16.83"}
A flagged purchase is written as it came, with the circle's "mean" and "sd" added.

examples:
  python -m production.purchases --batch-log=batch_log.json \\
      --stream-log=stream_log.json --output=flagged_purchases.json

  # whatever arrives, as it arrives
  tail -n +1 -f stream_log.json | python -m production.purchases -b batch_log.json -s - -o -

  # a daemon that may be killed at any time and goes on where it was
  python -m production.purchases -b batch_log.json -s stream_log.json \\
      -o flagged_purchases.json --follow --state state

What cannot be read is skipped and counted, and told on stderr. Exit code 2 means
that something was refused, and says what.
""",
    )
    parser.add_argument("-b", "--batch-log", required=True, metavar="FILE", help="- is stdin")
    parser.add_argument("-s", "--stream-log", required=True, metavar="FILE", help="- is stdin")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="- is stdout")
    parser.add_argument(
        "--sigma", default="3", help="standard deviations above the mean (default 3)"
    )
    parser.add_argument("--report", action="store_true", help="print counts on stderr at the end")
    parser.add_argument(
        "--follow", action="store_true", help="wait for the stream log to grow, until SIGTERM"
    )
    parser.add_argument(
        "--state", metavar="DIR", help="keep the state here and go on from it at the next start"
    )
    parser.add_argument(
        "--snapshot-lines",
        type=int,
        default=100_000,
        metavar="N",
        help="write the state anew after this many lines (default 100000), and every 30 s",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot work together."""
    if options.batch_log == options.stream_log == "-":
        raise ParameterError("only one of --batch-log and --stream-log can be - (stdin)")
    if options.state and options.output == "-":
        raise ParameterError("--state needs --output in a file, which it can look at after a kill")
    if options.state and options.batch_log == "-":
        raise ParameterError("--state needs --batch-log in a file")
    if options.snapshot_lines < 1:
        raise ParameterError(f"--snapshot-lines must be 1 or more, got {options.snapshot_lines}")
    if not _SIGMA.fullmatch(options.sigma):
        raise ParameterError(
            f"--sigma must be a number of nine digits at most, e.g. 2.5, got {options.sigma!r:.60}"
        )
    options.sigma = Fraction(options.sigma)
    for name in ("batch_log", "stream_log"):
        path = getattr(options, name)
        with contextlib.suppress(FileNotFoundError):
            if path != "-" and options.output != "-" and os.path.samefile(path, options.output):
                option = name.replace("_", "-")
                raise ParameterError(f"--output is the same file as --{option}: {path}")


# ---- one run --------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    """Batch log, then stream log, then the report."""
    network, batch = _read_batch(options)
    log = EventLog(network, judge=True)
    with _opened(options.stream_log) as stream, _output(options) as out:
        blocks = _tail(stream) if options.follow else _blocks(stream, "stream log")
        for text in _whole_lines(blocks):
            for line in log.feed(text):
                out.write(line + b"\n")
            out.flush()
    _report(options, network, batch, log.counts)


def _read_batch(options: argparse.Namespace) -> tuple[Network, LogCounts]:
    """Settings, friendships and history."""
    counts = LogCounts()
    with _opened(options.batch_log) as file:
        texts = _whole_lines(_blocks(file, "batch log"))
        first, more = _first_line(texts, counts)
        degree, window_size, rest = read_header(first)
        network = make_network(degree, window_size, options.sigma)
        log = EventLog(network, judge=False, counts=counts)
        counts.lines -= 1  # what follows the settings is read as the same line
        for text in itertools.chain([rest + b"\n", more], texts):
            list(log.feed(text))
    return network, counts


def _first_line(texts: Iterator[bytes], counts: LogCounts) -> tuple[bytes, bytes]:
    """The first line that is not blank, and the rest of the text it came with."""
    for text in texts:
        while text:
            line, _, text = text.partition(b"\n")
            counts.lines += 1
            if line.strip():
                return line, text
    return b"", b""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdin.buffer
    else:
        with open(path, "rb") as file:
            yield file


def _blocks(file: IO[bytes], name: str) -> Iterator[bytes]:
    """What a file holds, as soon as it is there; long files with progress."""
    handle = file.fileno()
    size = os.fstat(handle).st_size
    console = Console(stderr=True)
    shown = console.is_terminal and size > _LONG
    with Progress(console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(name, total=size or None)
        while block := os.read(handle, BLOCK):
            progress.advance(task, len(block))
            yield block


def _tail(file: IO[bytes]) -> Iterator[bytes]:
    """What a growing file holds, until SIGTERM or SIGINT."""
    regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    with _stop_signals() as stopped:
        while not stopped:
            block = os.read(file.fileno(), BLOCK)
            if block:
                yield block
            elif not regular:
                return  # a pipe that ended
            else:
                time.sleep(_POLL_S)


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes cut after newlines; the last line gets one if it has none."""
    rest: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if not end:
            rest.append(block)
            continue
        yield b"".join([*rest, block[:end]])
        rest = [block[end:]]
    last = b"".join(rest)
    if last:
        yield last + b"\n"


@contextlib.contextmanager
def _output(options: argparse.Namespace) -> Iterator[IO[bytes]]:
    """Stdout, a file that grows with an endless stream, or one that appears when it is whole."""
    path = Path(options.output)
    if options.output == "-":
        yield sys.stdout.buffer
    elif options.follow or options.stream_log == "-" or (path.exists() and not path.is_file()):
        with open(path, "wb") as file:
            yield file
    else:
        with write_aside(path.resolve(), "wb") as file:
            yield file


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM or SIGINT came."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- a run that outlives its process ----------------------------------------------------------


def _run_with_state(options: argparse.Namespace) -> None:
    """Go on from the state, or start it, until the stream ends or a signal comes."""
    folder = Path(options.state)
    with locked(folder), _stop_signals() as stopped:
        position, network, batch, counts, fresh = _resume(options, folder)
        source = _source(options, folder, position)
        output = ReplayedOutput(Path(options.output), position.output, fresh)
        log = EventLog(network, judge=True, counts=counts)

        def save() -> None:
            _save(folder, position, network, source, output, {"batch": batch, "stream": counts})

        with contextlib.closing(source), contextlib.closing(output):
            if fresh:
                save()
            _work(options, log, source, output, stopped, save)
            save()
    _report(options, network, batch, counts)


def _work(
    options: argparse.Namespace,
    log: EventLog,
    source: LogFile | Journal,
    output: ReplayedOutput,
    stopped: list[int],
    save: Any,
) -> None:
    """Judge what comes, saving now and then."""
    saved_lines, saved_at = log.counts.lines, time.monotonic()
    while not stopped:
        text = source.read()
        if text:
            output.write(b"".join(line + b"\n" for line in log.feed(text)))
        elif source.ended or not (options.follow or isinstance(source, Journal)):
            return
        else:
            source.wait(_POLL_S)
        lines = log.counts.lines - saved_lines
        late = time.monotonic() - saved_at > _SNAPSHOT_S
        if lines >= options.snapshot_lines or (lines and late):
            save()
            saved_lines, saved_at = log.counts.lines, time.monotonic()


def _resume(
    options: argparse.Namespace, folder: Path
) -> tuple[Position, Network, LogCounts, LogCounts, bool]:
    """The state of the folder, or that after the batch log."""
    run = _run_identity(options)
    found = read_snapshot(folder)
    if found is None:
        network, batch = _read_batch(options)
        journal = 1 if options.stream_log == "-" else 0
        return Position(run, journal), network, batch, LogCounts(), True
    position, saved = found
    changed = [name for name in run if position.run.get(name) != run[name]]
    if changed:
        raise DataError(
            f"{folder} holds the state of another run ({', '.join(changed)} changed); name "
            "another --state, or delete it to start again from the batch log"
        )
    counts = {
        name: LogCounts(**{**fields, "skipped": _tuples(fields["skipped"])})
        for name, fields in (position.counts or {}).items()
    }
    return position, Network.load(saved), counts["batch"], counts["stream"], False


def _tuples(skipped: dict[str, list[Any]]) -> dict[str, tuple[int, list[int]]]:
    return {kind: (count, lines) for kind, (count, lines) in skipped.items()}


def _run_identity(options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same at every start."""
    with open(options.batch_log, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        checksum = zlib.crc32(file.read(BLOCK))
    from_stdin = options.stream_log == "-"
    return {
        "batch log": [size, checksum],
        "stream log": "-" if from_stdin else os.path.realpath(options.stream_log),
        "output": os.path.realpath(options.output),
        "sigma": str(options.sigma),
    }


def _source(options: argparse.Namespace, folder: Path, position: Position) -> LogFile | Journal:
    if options.stream_log == "-":
        return Journal(folder, position.journal, position.offset, position.head)
    return LogFile(Path(options.stream_log), position.offset, position.head)


def _save(
    folder: Path,
    position: Position,
    network: Network,
    source: LogFile | Journal,
    output: ReplayedOutput,
    counts: dict[str, LogCounts],
) -> None:
    """Write a snapshot of this moment; a new journal begins with it."""
    output.flush()
    if isinstance(source, Journal):
        source.turn()
        position.journal = source.number
    position.offset, position.head = source.offset, source.head()
    position.output = output.position
    position.counts = {name: asdict(found) for name, found in counts.items()}
    write_snapshot(folder, position, network.save())
    if isinstance(source, Journal):
        source.drop()


# ---- the report -------------------------------------------------------------------------------


def _report(
    options: argparse.Namespace, network: Network, batch: LogCounts, stream: LogCounts
) -> None:
    """Tell on stderr what was skipped and, if asked, what was counted."""
    for name, counts in (("batch log", batch), ("stream log", stream)):
        for kind, (count, lines) in sorted(counts.skipped.items()):
            more = ", …" if count > len(lines) else ""
            where = ", ".join(map(str, lines)) + more
            _say(f"{name}: skipped {count} × {kind}, first on line {where}")
        if options.report:
            events = ", ".join(f"{count} {kind}" for kind, count in counts.events.items())
            _say(f"{name}: {counts.lines} lines, {events}, {counts.flagged} flagged")
    if options.report:
        users, friendships, purchases = network.sizes()
        _say(f"network: {users} users, {friendships} friendships, {purchases} purchases kept")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
