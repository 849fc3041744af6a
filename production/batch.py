"""Score tables larger than memory, part by part, so that a run can be killed and go on.

The output folder holds one file for each part, and ``_scored.json``: the model, the
options, every input as it was found, and what came of each part. A second run does
what is missing and what has changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError, ClassifierFileError, DataError, ParameterError
from production.judges import judge_from
from production.parts import Part, Stretch, Survey, cut, format_of, parts_of, stretches
from production.places import Stored, clean, find, is_local, tree_of
from production.scoring import Scored, Settings, score_part, survey_stretch
from production.workers import Workers

__all__ = ["Bar", "Lines", "Manifest", "Meter", "Options", "Run", "score_tables"]

MANIFEST = "_scored.json"
FORMAT_VERSION = 1
_MOST_SHOWN = 40


@dataclass(frozen=True)
class Options:
    """What a run is asked to do.

    Attributes
    ----------
    inputs : tuple of str
        Files, patterns, folders, addresses.
    out : str
        Folder of the output, or its address.
    format : {"csv", "csv.gz", "parquet"}, optional
        Of the output; by default Parquet for Parquet and CSV for CSV.
    part_size : int
        Bytes; larger files are cut into parts of about this size.
    separator, decimal, bad, columns, chunk_size, skew
        See `production.scoring.Settings`.
    start_over : bool
        Whether to remove what an earlier run left in the folder.
    """

    inputs: tuple[str, ...]
    out: str
    format: str | None = None
    part_size: int = 128 << 20
    separator: str | None = None
    decimal: str = "."
    bad: str = "stop"
    columns: tuple[str, ...] | None = None
    chunk_size: int = 4096
    skew: str = "refuse"
    start_over: bool = False

    def settings(self, model: bytes) -> Settings:
        """How each part is scored."""
        return Settings(
            out=self.out,
            sha256=hashlib.sha256(model).hexdigest(),
            separator=self.separator,
            decimal=self.decimal,
            bad=self.bad,
            columns=self.columns,
            chunk_size=self.chunk_size,
            skew=self.skew,
        )

    def told(self) -> dict[str, Any]:
        """The options that the bytes of the output depend on."""
        return {
            "format": self.format,
            "part_size": self.part_size,
            "separator": self.separator,
            "decimal": self.decimal,
            "bad": self.bad,
            "columns": None if self.columns is None else list(self.columns),
        }


def score_tables(
    model: bytes,
    options: Options,
    make_workers: Callable[[bytes], Workers],
    *,
    tell: Callable[[str], None] = lambda text: None,
    meter: Any = None,
) -> Run:
    """Score every table that the options name.

    Parameters
    ----------
    model : bytes
        The model file; verified here before anything is started, and again by every
        worker before it is used.
    options : Options
    make_workers : callable
        Given the model, makes `production.workers.Workers`.
    tell : callable, optional
        Gets a line of text for each bad record and each part that fails.
    meter : Meter, optional

    Returns
    -------
    Run
        ``failed`` names the parts that could not be scored.

    Raises
    ------
    ParameterError
        The folder holds the work of another model or of other options.
    """
    options = replace(options, out=clean(options.out).rstrip("/") or "/")
    judge = judge_from(model, decimal=options.decimal, skew=options.skew)
    inputs = _listed(options)
    with _alone(options.out):
        manifest = Manifest.open(options, hashlib.sha256(model).hexdigest())
        run = Run(manifest, options, judge.answers[0], tell, meter or Meter())
        workers = None
        try:
            if run.choose(inputs):
                workers = make_workers(model)
                run.plan(workers, options.settings(model))
                run.score(workers, options.settings(model))
        except BaseException:
            if workers is not None:
                workers.close(kill=True)
            raise
        finally:
            run.finish()
        if workers is not None:
            workers.close()
        return run


def _listed(options: Options) -> list[Stored]:
    """The inputs, each once; of folders only what is named like a table."""
    found: dict[str, Stored] = {}
    below = options.out + "/"
    for pattern in options.inputs:
        for stored in find(pattern):
            if stored.address.startswith(below) and stored.address != clean(pattern):
                continue
            is_named = clean(pattern) == stored.address or re.search(r"[*?\[]", pattern)
            low = stored.name.lower()
            if is_named or low.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")):
                found.setdefault(stored.address, stored)
    if not found:
        raise DataError(f"{', '.join(options.inputs)}: no table (.csv, .csv.gz, .parquet)")
    for stored in found.values():
        if {"", ".", ".."} & set(stored.name.split("/")):
            raise DataError(f"{stored.address}: this name cannot be kept below the output folder")
        format_of(stored.name)
    return list(found.values())


@contextlib.contextmanager
def _alone(out: str) -> Iterator[None]:
    """Refuse a second run on one folder of this machine."""
    if not is_local(out):
        yield
        return
    os.makedirs(out, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ParameterError(f"{out}: another run is writing here") from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF):
                raise
        yield
    finally:
        os.close(handle)


# ---- the manifest


@dataclass
class Entry:
    """An input and its parts; a part without a result is still to be scored."""

    source: Stored
    parts: list[Part]
    results: dict[str, Scored] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **asdict(self.source),
            "parts": [
                {
                    **{k: v for k, v in vars(part).items() if k != "source"},
                    "result": asdict(self.results[part.name])
                    if part.name in self.results
                    else None,
                }
                for part in self.parts
            ],
        }

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Entry:
        """From plain values."""
        source = Stored(*(plain[name] for name in ("address", "name", "size", "mark")))
        entry = cls(source, [])
        for described in plain["parts"]:
            result = described.pop("result")
            entry.parts.append(Part(source=source, **described))
            if result is not None:
                entry.results[described["name"]] = Scored(**result)
        return entry


class Manifest:
    """What an output folder holds, in its file ``_scored.json``.

    Parameters
    ----------
    out : str
        Address of the folder.
    model : str
        SHA-256 of the model file.
    options : dict
        What the bytes of the output depend on.
    entries : dict of str to Entry
        By the address of the input.
    """

    def __init__(
        self, out: str, model: str, options: dict[str, Any], entries: dict[str, Entry]
    ) -> None:
        self.out = out
        self.model = model
        self.options = options
        self.entries = entries
        self._saved = 0.0
        self._cost = 0.0

    @classmethod
    def open(cls, options: Options, model: str) -> Manifest:
        """Read the manifest of a folder, or begin one.

        Raises
        ------
        ParameterError
            It is of another model or of other options, or cannot be read.
        """
        manifest = cls(options.out, model, options.told(), {})
        address = f"{options.out}/{MANIFEST}"
        try:
            with tree_of(address).open(address) as file:
                found = _parsed(address, file.read())
        except FileNotFoundError:
            return manifest
        if options.start_over:
            for name in _names(found):
                tree_of(address).remove(f"{options.out}/{name}")
            tree_of(address).remove(address)
            return manifest
        _check_same(options.out, found, model, manifest.options)
        try:
            entries = [Entry.read(plain) for plain in found["inputs"]]
        except (KeyError, TypeError) as error:
            raise ParameterError(f"{address}: {_HOW_TO_START_OVER}: {error!r}") from error
        manifest.entries = {entry.source.address: entry for entry in entries}
        return manifest

    def save(self, at_once: bool = True) -> None:
        """Write it, whole or not at all; now and then only, unless at once."""
        begun = time.monotonic()
        if not at_once and begun - self._saved < max(1.0, 20 * self._cost):
            return
        plain = {
            "format": FORMAT_VERSION,
            "model": self.model,
            "options": self.options,
            "inputs": [entry.described() for entry in self.entries.values()],
        }
        address = f"{self.out}/{MANIFEST}"
        with tree_of(address).write_aside(address) as file:
            file.write(json.dumps(plain, indent=1, ensure_ascii=False).encode())
        self._saved = time.monotonic()
        self._cost = self._saved - begun

    def owners(self) -> dict[str, str]:
        """Address of the input of each part, by the name of the part."""
        return {
            part.name: entry.source.address
            for entry in self.entries.values()
            for part in entry.parts
        }


_HOW_TO_START_OVER = (
    "not a list of scored parts of this version; give another --out, or remove the folder"
)


def _parsed(address: str, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ParameterError(f"{address}: {_HOW_TO_START_OVER}: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT_VERSION:
        raise ParameterError(f"{address}: {_HOW_TO_START_OVER}")
    return found


def _names(found: dict[str, Any]) -> list[str]:
    """Names of parts, of which none leads out of the folder."""
    names = [part["name"] for plain in found.get("inputs", []) for part in plain["parts"]]
    return [name for name in names if not {"", ".", ".."} & set(str(name).split("/"))]


def _check_same(out: str, found: dict[str, Any], model: str, options: dict[str, Any]) -> None:
    advice = "give another --out, or --start-over to remove these parts and score anew"
    if found.get("model") != model:
        raise ParameterError(
            f"{out} was scored with another model (SHA-256 {str(found.get('model'))[:12]}…, "
            f"now {model[:12]}…); {advice}"
        )
    for name, now in options.items():
        then = found.get("options", {}).get(name)
        if then != now:
            raise ParameterError(
                f"{out} was scored with --{name.replace('_', '-')} {_shown(then)}, "
                f"now {_shown(now)}; {advice}"
            )


def _shown(value: Any) -> str:
    return "not given" if value is None else repr(value)


# ---- the run


class Run:
    """One run over the inputs: what to keep, what to plan, what to score.

    Attributes
    ----------
    failed : list of (str, str)
        Parts that could not be scored, and why.
    kept : int
        Parts that an earlier run had done.
    seconds : float
    """

    def __init__(
        self,
        manifest: Manifest,
        options: Options,
        flag: str,
        tell: Callable[[str], None],
        meter: Meter,
    ) -> None:
        self.manifest = manifest
        self.options = options
        self.flag = flag
        self.tell = tell
        self.meter = meter
        self.failed: list[tuple[str, str]] = []
        self.kept = 0
        self.n_fresh = 0
        self.inputs: list[str] = []
        self._unplanned: list[Stored] = []
        self._foreign: set[str] = set()
        self._stopping = False
        self._begun = time.monotonic()
        self.seconds = 0.0

    # --- what is there

    def choose(self, inputs: Sequence[Stored]) -> bool:
        """Keep what is done and unchanged; returns whether anything is left to do."""
        _sweep(self.options.out, set(self.manifest.owners()))
        self.inputs = [stored.address for stored in inputs]
        for stored in inputs:
            entry = self.manifest.entries.get(stored.address)
            if entry is None or entry.source != stored:
                self._unplanned.append(stored)
                continue
            self._forget_lost(entry)
            self.kept += len(entry.results)
        return bool(self._unplanned or any(True for _ in self._left()))

    def _forget_lost(self, entry: Entry) -> None:
        """A part whose output is gone, or not as long as it was, is done again."""
        for name, result in list(entry.results.items()):
            target = f"{self.options.out}/{name}"
            if tree_of(target).size(target) != result.size:
                del entry.results[name]

    def _left(self) -> Iterator[Part]:
        for address in self.inputs:
            entry = self.manifest.entries.get(address)
            if entry is not None:
                yield from (part for part in entry.parts if part.name not in entry.results)

    # --- planning

    def plan(self, workers: Workers, settings: Settings) -> None:
        """Cut new and changed inputs into parts."""
        wanted: dict[str, list[Stretch]] = {}
        for stored in self._unplanned:
            wanted[stored.address] = stretches(
                stored, self.options.part_size, self.options.separator
            )
        surveys = self._survey(workers, settings, [s for each in wanted.values() for s in each])
        out = self.options.out
        self._foreign = {stored.address for stored in tree_of(out).find(out)}
        self._foreign -= {f"{out}/{name}" for name in self.manifest.owners()}
        for stored in self._unplanned:
            found = [surveys.get(stretch) for stretch in wanted[stored.address]]
            self._enter(stored, [survey for survey in found if survey is not None])
        self.manifest.save()

    def _survey(
        self, workers: Workers, settings: Settings, wanted: list[Stretch]
    ) -> dict[Stretch, Survey]:
        """Where the parts of large CSV files begin and end."""
        surveys: dict[Stretch, Survey] = {}
        if not wanted:
            return surveys
        self.meter.start("looking", sum(stretch.stop - stretch.start for stretch in wanted))
        try:
            for stretch, ended in workers.run(survey_stretch, settings, wanted):
                if isinstance(ended, Exception):
                    raise _as_ours(ended, stretch.source.address)
                surveys[stretch] = ended
                self.meter.advance(stretch.stop - stretch.start, 0)
        finally:
            self.meter.stop()
        return surveys

    def _enter(self, stored: Stored, surveys: list[Survey]) -> None:
        """Put the parts of an input into the manifest, in place of those it had."""
        own = format_of(stored.name)
        ending = self.options.format or ("parquet" if own == "parquet" else "csv")
        if own == "parquet":
            parts = cut(stored, self.options.part_size, ending)
        else:
            parts = parts_of(stored, ending, surveys)
            if surveys and len(parts) == 1:
                self.tell(
                    f"{stored.address}: has line breaks or stray quotes in cells, so it is one "
                    "part and is scored by one worker"
                )
        old = self.manifest.entries.pop(stored.address, None)
        self._check_names(stored, parts)
        for part in old.parts if old is not None else ():
            target = f"{self.options.out}/{part.name}"
            tree_of(target).remove(target)
        self.manifest.entries[stored.address] = Entry(stored, parts)

    def _check_names(self, stored: Stored, parts: list[Part]) -> None:
        owners = self.manifest.owners()
        for part in parts:
            if part.name in owners:
                raise ParameterError(
                    f"{stored.address} and {owners[part.name]} would both be scored to "
                    f"{part.name}; give each its own --out"
                )
            if f"{self.options.out}/{part.name}" in self._foreign:
                raise ParameterError(
                    f"{self.options.out}/{part.name} exists, and no earlier run has listed it in "
                    f"{MANIFEST}; remove it, or give another --out"
                )

    # --- scoring

    def score(self, workers: Workers, settings: Settings) -> None:
        """Score what is left, and note each part as it is done."""
        left = list(self._left())
        self.meter.start("scoring", sum(part.size for part in left))
        try:
            for part, ended in workers.run(score_part, settings, self._until_stopped(left)):
                if isinstance(ended, Exception):
                    self._note_failure(part, ended)
                else:
                    self._note(part, ended)
        finally:
            self.meter.stop()
        _sweep(self.options.out, set(self.manifest.owners()))

    def _until_stopped(self, parts: Iterable[Part]) -> Iterator[Part]:
        for part in parts:
            if self._stopping:
                return
            yield part

    def _note(self, part: Part, scored: Scored) -> None:
        target = f"{self.options.out}/{part.name}"
        if tree_of(target).size(target) != scored.size:
            raise ParameterError(
                f"{scored.host} wrote {target}, but it is not here: with a path as --out every "
                "worker must see the same folder; else give an address such as s3://"
            )
        for text in scored.problems:
            self.tell(f"{part.source.address}: {text}")
        self.manifest.entries[part.source.address].results[part.name] = scored
        self.manifest.save(at_once=False)
        self.n_fresh += scored.records
        self.meter.advance(part.size, scored.records)

    def _note_failure(self, part: Part, error: Exception) -> None:
        if isinstance(error, ClassifierFileError):
            raise error
        ours = _as_ours(error, part.source.address)
        self.failed.append((part.name, str(ours)))
        self.tell(f"{part.name}: {ours}")
        self.meter.advance(part.size, 0)
        self._stopping = self._stopping or (
            self.options.bad == "stop" and isinstance(ours, DataError)
        )

    def finish(self) -> None:
        """Write down what is done."""
        self.seconds = time.monotonic() - self._begun
        if self.manifest.entries:
            self.manifest.save()

    # --- the account

    @property
    def n_parts(self) -> int:
        """Parts of all the inputs."""
        return sum(len(entry.parts) for entry in self._entries())

    @property
    def n_done(self) -> int:
        """Those that are scored."""
        return sum(len(entry.results) for entry in self._entries())

    def _entries(self) -> list[Entry]:
        return [
            self.manifest.entries[address]
            for address in self.inputs
            if address in self.manifest.entries
        ]

    def summary(self) -> str:
        """A table of the inputs and a line for all."""
        from rich.console import Console
        from rich.table import Table

        table = Table("input", box=None, pad_edge=False)
        for heading in ("parts", "records", self.flag, "bad", "seconds"):
            table.add_column(heading, justify="right")
        total = [0, 0, 0]
        for i, entry in enumerate(self._entries()):
            results = entry.results.values()
            sums = [sum(getattr(r, k) for r in results) for k in ("records", "malicious", "bad")]
            total = [a + b for a, b in zip(total, sums, strict=True)]
            if i < _MOST_SHOWN:
                done, n = len(entry.results), len(entry.parts)
                table.add_row(
                    entry.source.name,
                    str(n) if done == n else f"{done} of {n}",
                    *(f"{count:,}" for count in sums),
                    f"{sum(r.seconds for r in results):.1f}",
                )
        if len(self._entries()) > _MOST_SHOWN:
            table.add_row(f"… {len(self._entries()) - _MOST_SHOWN} more, see {MANIFEST}")
        console = Console(width=120, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(table)
        rate = self.n_fresh / max(self.seconds, 1e-9)
        return (
            f"{capture.get()}{total[0]:,} records: {total[1]:,} {self.flag}, {total[2]:,} bad; "
            f"{self.n_done} of {self.n_parts} parts done, {self.kept} of them before this run\n"
            f"this run: {self.n_fresh:,} records in {self.seconds:.1f} s, "
            f"{rate:,.0f} records/s"
        )


def _as_ours(error: Exception, address: str) -> Exception:
    """One of our errors, whatever came from a worker."""
    if isinstance(error, AnomalyError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name in ("anomaly", "production"):
        return ClassifierFileError("the workers have no package anomaly; install it there")
    return DataError(f"{address}: {type(error).__name__}: {error}")


def _sweep(out: str, names: set[str]) -> None:
    """Remove what a killed worker has left of parts that never were whole."""
    if not is_local(out):
        return
    left = re.compile(r"\.(.+)\.[A-Za-z0-9_]{8}\.part")
    for folder in {os.path.dirname(f"{out}/{name}") for name in {*names, MANIFEST}}:
        for path in Path(folder).glob(".*.part"):
            found = left.fullmatch(path.name)
            if found and os.path.relpath(f"{folder}/{found[1]}", out) in {*names, MANIFEST}:
                path.unlink(missing_ok=True)


# ---- progress


class Meter:
    """Says nothing."""

    def start(self, what: str, size: int) -> None:
        """So many bytes are to be gone through."""

    def advance(self, size: int, records: int) -> None:
        """So many more bytes and records are done."""

    def stop(self) -> None:
        """It is over, however it ended."""


class Lines(Meter):
    """A plain line now and then, for log files.

    Parameters
    ----------
    tell : callable
        Gets each line.
    every_s : float
        Seconds between lines.

    Examples
    --------
    >>> from production.batch import Lines
    >>> lines = Lines(print, every_s=0)
    >>> lines.start("scoring", size=2_000_000)
    >>> lines.advance(size=1_000_000, records=50)  # doctest: +ELLIPSIS
    scoring: 50 %, 1 of 2 MB, ... records/s, 0:00:00 left
    """

    def __init__(self, tell: Callable[[str], None], every_s: float = 60.0) -> None:
        self.tell = tell
        self.every_s = every_s

    def start(self, what: str, size: int) -> None:
        """Begin to count."""
        self.what, self.size, self.done, self.records = what, max(size, 1), 0, 0
        self.begun = self.said = time.monotonic()

    def advance(self, size: int, records: int) -> None:
        """Count, and say so when it is time."""
        self.done += size
        self.records += records
        if time.monotonic() - self.said >= self.every_s:
            self.said = time.monotonic()
            self.tell(f"{self.what}: {100 * self.done / self.size:.0f} %, {self.pace()}")

    def pace(self) -> str:
        """Bytes, rate and time left."""
        gone = max(time.monotonic() - self.begun, 1e-9)
        left = round(gone * (self.size - self.done) / self.done) if self.done else 0
        clock = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}" if self.done else "?"
        return (
            f"{self.done / 1e6:,.0f} of {self.size / 1e6:,.0f} MB, "
            f"{self.records / gone:,.0f} records/s, {clock} left"
        )


class Bar(Lines):
    """A bar on a terminal."""

    def __init__(self) -> None:
        super().__init__(lambda text: None, every_s=float("inf"))

    def start(self, what: str, size: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().start(what, size)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[pace]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(what, total=self.size, pace="")
        self.bar.start()

    def advance(self, size: int, records: int) -> None:
        """Move the bar."""
        super().advance(size, records)
        self.bar.update(self.task, completed=self.done, pace=self.pace())

    def stop(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()
