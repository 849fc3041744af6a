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
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anomaly.errors import AnomalyError, ClassifierFileError, DataError, ParameterError
from production.judges import judge_from
from production.manifest import MANIFEST, Entry, Manifest
from production.meters import Meter
from production.parts import Part, Stretch, Survey, cut, format_of, parts_of, stretches
from production.places import Stored, clean, find, is_local, tree_of
from production.scoring import Scored, Settings, score_part, survey_stretch
from production.workers import Workers

__all__ = ["Options", "Run", "score_tables"]

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
    meter: Meter | None = None,
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
        sha256 = hashlib.sha256(model).hexdigest()
        manifest = Manifest.open(options.out, sha256, options.told(), options.start_over)
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
        out = self.options.out
        there = _sweep(out, self.manifest.owners)
        self._foreign = set(there) - {f"{out}/{name}" for name in self.manifest.owners}
        self.inputs = [stored.address for stored in inputs]
        for stored in inputs:
            entry = self.manifest.entries.get(stored.address)
            if entry is None or entry.source != stored:
                self._unplanned.append(stored)
                continue
            for name, result in list(entry.results.items()):
                if there.get(f"{out}/{name}") != result.size:  # it is gone, or was altered
                    del entry.results[name]
            self.kept += len(entry.results)
        return bool(self._unplanned or any(True for _ in self._left()))

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
                    ours = _as_ours(ended, stretch.source.address)
                    if isinstance(ours, ClassifierFileError):
                        raise ours
                    ended = Survey(0, 0, 0, False)  # what is wrong is told when it is scored
                surveys[stretch] = ended
                self.meter.advance(stretch.stop - stretch.start, 0)
        finally:
            self.meter.stop()
        return surveys

    def _enter(self, stored: Stored, surveys: list[Survey]) -> None:
        """Put the parts of an input into the manifest, in place of those it had."""
        parts = self._parts(stored, surveys)
        for part in parts:
            owner = self.manifest.owners.get(part.name, stored.address)
            if owner != stored.address:
                raise ParameterError(
                    f"{stored.address} and {owner} would both be scored to {part.name}; give "
                    "each its own --out"
                )
            if f"{self.options.out}/{part.name}" in self._foreign:
                raise ParameterError(
                    f"{self.options.out}/{part.name} exists, and no earlier run has listed it in "
                    f"{MANIFEST}; remove it, or give another --out"
                )
        for part in self.manifest.take(stored.address):
            target = f"{self.options.out}/{part.name}"
            tree_of(target).remove(target)
        self.manifest.put(Entry(stored, parts))

    def _parts(self, stored: Stored, surveys: list[Survey]) -> list[Part]:
        own = format_of(stored.name)
        ending = self.options.format or ("parquet" if own == "parquet" else "csv")
        if own == "parquet":
            try:
                return cut(stored, self.options.part_size, ending)
            except DataError:  # told when it is scored
                return parts_of(stored, ending)
        parts = parts_of(stored, ending, surveys)
        if surveys and len(parts) == 1:
            self.tell(
                f"{stored.address}: has line breaks or stray quotes in cells, so it is one part "
                "and is scored by one worker"
            )
        return parts

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
        """Write down what is done, and leave nothing behind that is not whole."""
        self.seconds = time.monotonic() - self._begun
        if self.manifest.entries:
            self.manifest.save()
            _sweep(self.options.out, self.manifest.owners)

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
        console = Console(width=120, no_color=True, highlight=False, markup=False, emoji=False)
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


def _sweep(out: str, names: Iterable[str]) -> dict[str, int]:
    """Remove what killed workers left of parts that never were whole; returns what is there."""
    tree = tree_of(out)
    there = tree.below(out)
    ours = {*names, MANIFEST}
    for address in list(there):
        folder, _, name = address.removeprefix(f"{out}/").rpartition("/")
        torn = re.fullmatch(r"\.(.+)\.[A-Za-z0-9_]{8}\.part", name)
        if torn and f"{folder}/{torn[1]}".lstrip("/") in ours:
            tree.remove(address)
            del there[address]
    return there
