"""``parameters.py status``: how far a run is, from any shell, here or over SSH."""

from __future__ import annotations

import argparse
import base64
import json
import math
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomaly.errors import DataError, ParameterError
from anomaly.tuning import probe as probing
from anomaly.tuning.addresses import (
    RunAddress,
    add_ssh_option,
    is_elsewhere,
    parse_address,
    run_there,
)
from anomaly.tuning.expected import Expected, expected_fits
from anomaly.tuning.literals import to_literal
from anomaly.tuning.log import RUN_NAME
from anomaly.tuning.progress import clock
from anomaly.tuning.scores import ratio_scores, scorer

# A run whose progress is older than this has stopped, whatever it says.
_FRESH_S = 30.0
_LARGEST = 2**30


@dataclass
class SearchStatus:
    """How far one classifier of a run is.

    Attributes
    ----------
    classifier : str
    done : int
        Lines in the log.
    total : int or None
        Lines in the end; None where the search decides on the way.
    best_score, best_params : float, str or None
        Of the candidates that were tried on most folds so far.
    best_folds : int
        Number of these folds.
    trouble : str
        Why the fits to come are not known.
    """

    classifier: str
    done: int = 0
    total: int | None = None
    best_score: float | None = None
    best_params: str | None = None
    best_folds: int = 0
    trouble: str = ""


@dataclass
class RunStatus:
    """How far a run is.

    Attributes
    ----------
    run : str
    state : {"running", "stopped", "finished"}
    searches : list of SearchStatus
    hosts : dict of str to float
        Fits per second of the hosts at work.
    left_s : float or None
        Seconds to the end at that rate.
    failed : dict of str to int
        Reason to number of fits.
    place : str or None
        Where its fits run, and the dashboard of Dask.
    others : int
        Lines that belong to no fit of the plan's grids.
    missing : dict of str to int
        Lines to come, by classifier.
    """

    run: str
    state: str
    searches: list[SearchStatus]
    hosts: dict[str, float]
    left_s: float | None
    failed: dict[str, int]
    place: str | None
    others: int = 0
    missing: dict[str, int] = field(default_factory=dict)


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``python parameters.py status``."""
    parser = argparse.ArgumentParser(
        prog="parameters.py status",
        description="How far a run is: fits done, best so far, rate, time left, failures. Reads "
        "only; the run may go on.",
        epilog="examples: python parameters.py status faults; "
        "python parameters.py status user@host:anomaly/params/faults",
    )
    parser.add_argument("run", help="name of a run, or user@host:path/RUN")
    parser.add_argument("--folder", default="params", help="folder of runs (default params)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--python", default="python3", help="a Python on the host, any from 3.7 (default python3)"
    )
    add_ssh_option(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Show how far a run is."""
    arguments = build_parser().parse_args(argv)
    if is_elsewhere(arguments.run):
        address = parse_address(arguments.run)
        found = probe_there(address, arguments.ssh, arguments.python)
        status = summarise(address.run, found)
    else:
        status = summarise(arguments.run, probe_here(arguments.folder, arguments.run))
    if arguments.json:
        print(json.dumps(asdict(status), indent=1))
    else:
        show(status)
    return 0


def probe_here(folder: str, run: str) -> dict[str, Any]:
    """What the folder of a run holds; a name never leads elsewhere."""
    if not RUN_NAME.fullmatch(run):
        raise ParameterError(f"a run has a plain name, its folder goes to --folder; got {run!r}")
    found = probing.probe(str(Path(folder, run)))
    if found["plan"] is None:
        raise ParameterError(f"there is no run {run!r} in {folder}")
    return found


def probe_there(address: RunAddress, ssh: str, python: str = "python3") -> dict[str, Any]:
    """The same over SSH: a text of the standard library is run by the Python of the host."""
    text = Path(probing.__file__).read_text(encoding="utf-8")
    said = run_there(address, ssh, [python, "-", f"{address.folder}/{address.run}"], text)
    for line in said.splitlines():
        if line.startswith(probing.MARK):
            return _unpacked(line.removeprefix(probing.MARK), address)
    raise DataError(f"{address.host}: {python} did not answer as a Python does: {said[-200:]!r}")


def _unpacked(text: str, address: RunAddress) -> dict[str, Any]:
    try:
        packed = zlib.decompressobj()
        found = json.loads(packed.decompress(base64.b64decode(text), _LARGEST))
    except (ValueError, zlib.error) as error:
        raise DataError(f"{address.host}: its answer is damaged: {error}") from None
    if found["plan"] is None:
        raise ParameterError(
            f"{address.host}: there is no run {address.run!r} in {address.folder}"
        )
    return dict(found)


def summarise(run: str, found: Mapping[str, Any]) -> RunStatus:
    """How far a run is, from what its folder holds."""
    plan = found["plan"]
    score = scorer((plan.get("job") or {}).get("scoring", "f1"))
    searches, seen = [], 0
    for expected in expected_fits(plan):
        search = _summarise_search(expected, found["fits"], score)
        seen += search.done
        searches.append(search)
    missing = {s.classifier: s.total - s.done for s in searches if s.total and s.total > s.done}
    progress = found["progress"] or {}
    state = _state(found, missing)
    hosts = _rates(found) if state == "running" else {}
    rate, left = sum(hosts.values()), sum(missing.values())
    return RunStatus(
        run=run,
        state=state,
        searches=searches,
        hosts=hosts,
        left_s=round(left / rate, 1) if rate and state == "running" else None,
        failed=dict(Counter(found["failed"].values()).most_common()),
        place=progress.get("place") if state == "running" else None,
        others=len(found["fits"]) - seen,
        missing=missing,
    )


def _summarise_search(expected: Expected, fits: Mapping[str, Any], score: Any) -> SearchStatus:
    status = SearchStatus(expected.classifier, total=expected.total, trouble=expected.trouble)
    folds: dict[int, list[float]] = defaultdict(list)
    for candidate, _, split, key in expected.lines():
        fit = fits.get(key)
        if fit is None:
            continue
        status.done += 1
        if split == "test":
            counts = fit[1]
            folds[candidate.number].append(
                math.nan if counts is None else score(ratio_scores(tuple(counts)))
            )
    status.best_folds = max(map(len, folds.values()), default=0)
    for candidate in expected.candidates:
        scores = folds.get(candidate.number, [])
        if len(scores) < max(status.best_folds, 1):
            continue
        mean = sum(scores) / len(scores)
        if mean > (-math.inf if status.best_score is None else status.best_score):
            status.best_score, status.best_params = mean, to_literal(candidate.params)
    return status


def _state(found: Mapping[str, Any], missing: Mapping[str, int]) -> str:
    progress = found["progress"] or {}
    job, answer = found["plan"].get("job"), found["plan"].get("answer")
    # Between two searches of a job, and while it writes its answer, it is not at rest.
    works = ("running",) if answer or not job else ("running", "ended")
    if any(file["is_open"] for file in found["files"]):
        return "running"
    if _lives(found) and progress.get("state") in works:
        return "running"
    is_done = bool(answer) if job else progress.get("state") == "ended"
    return "finished" if is_done and not missing else "stopped"


def _lives(found: Mapping[str, Any]) -> bool:
    """Whether the process that noted the progress lives, or was heard of lately."""
    if found["is_alive"] is None:  # this host does not know
        when = float((found["progress"] or {}).get("when", 0))
        return bool(found["now"] - when < _FRESH_S)
    return bool(found["is_alive"])


def _rates(found: Mapping[str, Any]) -> dict[str, float]:
    """Fits per second of every host at work: as noted, or by the seconds in the log."""
    progress = found["progress"] or {}
    if _lives(found) and progress.get("state") == "running" and progress.get("hosts"):
        return {str(h): round(each["fits_per_s"], 3) for h, each in progress["hosts"].items()}
    fits: Counter[int] = Counter()
    seconds: Counter[int] = Counter()
    for number, _, took in found["fits"].values():
        fits[number] += 1
        seconds[number] += took
    rates: dict[str, float] = defaultdict(float)
    for number, file in enumerate(found["files"]):
        if file["is_open"] and seconds[number] > 0:
            rates[file["host"]] += fits[number] / seconds[number]
    return {host: round(rate, 3) for host, rate in rates.items()}


def show(status: RunStatus) -> None:
    """Print the state of a run for a reader."""
    from rich.console import Console
    from rich.table import Column, Table

    texts = {"classifier", "best parameters"}
    names = ("classifier", "done", "of", "best", "best parameters")
    table = Table(*(Column(n, overflow="fold", no_wrap=n not in texts) for n in names))
    for search in status.searches:
        total = "?" if search.total is None else f"{search.total:,}"
        best = "-" if search.best_score is None else f"{search.best_score:.4f}"
        if search.done < (search.total or 0) and search.best_folds:
            best += f" ({search.best_folds} fold{'s' * (search.best_folds > 1)})"
        table.add_row(
            search.classifier,
            f"{search.done:,}",
            total,
            best,
            search.best_params or search.trouble,
        )
    screen = Console()
    screen = screen if screen.is_terminal else Console(width=max(screen.width, 120))
    print(f"{status.run}: {status.state}")
    screen.print(table)
    for host, rate in status.hosts.items():
        print(f"{host}: {rate:.1f} fits/s")
    if status.left_s is not None:
        print(f"about {clock(status.left_s)} left")
    if status.others:
        print(f"{status.others} other fits in the log, of an adaptive search or a former grid")
    for reason, number in list(status.failed.items())[:10]:
        print(f"{number} failed: {reason}")
    if status.place:
        print(f"on: {status.place}")
    sys.stdout.flush()
