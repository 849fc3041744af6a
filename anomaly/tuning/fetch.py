"""``parameters.py fetch``: copy a run from another host, and check that it is whole."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly.errors import ParameterError
from anomaly.files import write_aside
from anomaly.tuning.addresses import (
    RemoteError,
    RunAddress,
    add_ssh_option,
    need,
    parse_address,
    ssh_words,
)
from anomaly.tuning.expected import expected_fits
from anomaly.tuning.log import LogReader, MergeReport, RunFolder, plan_differences

# Seconds without a byte after which a transfer is given up.
_SILENT_S = 120


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``python parameters.py fetch``."""
    parser = argparse.ArgumentParser(
        prog="parameters.py fetch",
        description="Copy a run from another host and merge it with what is here. It may go on "
        "there: fetch again for the rest. An interrupted copy continues where it was. Exit code "
        "0 if every fit of the run is here, 1 if some are missing.",
        epilog="example: python parameters.py fetch user@host:anomaly/params/faults",
    )
    parser.add_argument("run", metavar="user@host:path/RUN")
    parser.add_argument("--folder", default="params", help="folder of runs here (default params)")
    add_ssh_option(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Fetch a run, and say what is missing and what comes next."""
    arguments = build_parser().parse_args(argv)
    address = parse_address(arguments.run)
    mirror = copy(address, Path(arguments.folder), arguments.ssh)
    report = take(mirror, Path(arguments.folder), address)
    print(report)
    missing = missing_fits(RunFolder(Path(arguments.folder, address.run)))
    again = "" if arguments.folder == "params" else f" --folder {shlex.quote(arguments.folder)}"
    if not missing:
        shutil.rmtree(mirror, ignore_errors=True)
        print("every fit of the run is here; next:")
        print(f"  python beautify.py {report.path}")
        print(f"  python parameters.py evaluate {address.run}{again}")
        return 0
    words = ", ".join(f"{n or 'an unknown number'} of {name}" for name, n in missing.items())
    ssh = "" if arguments.ssh == "ssh" else f" --ssh {shlex.quote(arguments.ssh)}"
    print(f"missing: {words}; if the run goes on there:")
    print(f"  python parameters.py fetch {shlex.quote(str(address))}{again}{ssh}")
    print("or finish it here:")
    print(f"  python parameters.py --resume {address.run}{again}")
    return 1


def copy(address: RunAddress, folder: Path, ssh: str) -> Path:
    """Bring a copy of the files of a run up to date, apart from the run that may be here.

    Returns
    -------
    Path
        Where the copy is.

    Raises
    ------
    RemoteError
        With what rsync said. What has come so far is kept for the next call.
    """
    need("rsync")
    mark = hashlib.sha256(str(address).encode()).hexdigest()[:12]
    mirror = folder / f".fetch-{address.run}-{mark}"
    mirror.mkdir(parents=True, exist_ok=True)
    run = address.run
    wanted = (f"/{run}/", f"/{run}/*.json", f"/{run}/{run}.*.out.tmp", f"/{run}.out")
    # A file that is not whole waits in a folder of its own: what came before stays as it is.
    # Links are not followed: the other side does not choose what is read here.
    command = ["rsync", "-rtz", "--partial-dir=.rsync-partial", "--delete", "--no-links"]
    command += ["--secluded-args", f"--timeout={_SILENT_S}", "-e", shlex.join(ssh_words(ssh))]
    command += [f"--include={pattern}" for pattern in wanted]
    there = address.folder if address.folder.startswith("/") else f"./{address.folder}"
    command += ["--exclude=*", "--", f"{address.host}:{there}/", f"{mirror}/"]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    if done.returncode and not _vanished(done.returncode):
        said = " ".join(done.stderr.split())[-400:] or f"exit code {done.returncode}"
        raise RemoteError(f"{address}: {said}; the same command continues the copy")
    return mirror


def _vanished(code: int) -> bool:
    """Whether rsync only missed files that the run has merged meanwhile."""
    return code == 24


def take(mirror: Path, folder: Path, address: RunAddress) -> MergeReport:
    """Merge a copy into the run of the same name here, which is made if there is none.

    Raises
    ------
    ParameterError
        If the copy holds no run, or the run here has another plan.
    """
    if not (mirror / address.run / "run.json").exists():
        shutil.rmtree(mirror, ignore_errors=True)
        raise ParameterError(
            f"{address.host}: there is no run {address.run!r} in {address.folder}"
        )
    theirs = RunFolder(mirror / address.run)
    there = theirs.plan()
    if (
        not (folder / address.run / "run.json").exists()
        and (folder / f"{address.run}.out").exists()
    ):
        raise ParameterError(
            f"{folder / address.run}.out is here without its run; move it away first"
        )
    mine = RunFolder(folder / address.run)
    here = mine.plan()
    _check_plans(here, there, mine, address)
    plans = there.get("plans", {}) | here.get("plans", {})
    mine.note(**(there | here | {"plans": plans}))
    for path in (mirror / address.run).glob("*.json"):
        is_here = (mine.path / path.name).exists() or path.name == "progress.json"
        if path.is_file() and not is_here:
            with write_aside(mine.path / path.name, "wb") as file:
                file.write(path.read_bytes())
    _add_lines(theirs, mine, mirror.name.rpartition("-")[2])
    return mine.merge()


def _check_plans(
    here: dict[str, Any], there: dict[str, Any], mine: RunFolder, address: RunAddress
) -> None:
    """Refuse to mix runs that were told different things."""
    if not here:
        return
    found = list(plan_differences(here.get("job"), there.get("job")))
    ours, others = here.get("plans", {}), there.get("plans", {})
    for name in sorted(ours.keys() & others.keys()):
        found += plan_differences(ours[name], others[name])
    if found:
        raise ParameterError(
            f"the run {mine.name!r} in {mine.path.parent} is another one than {address}: "
            f"{'; '.join(found)}; fetch it into another --folder"
        )


def _add_lines(theirs: RunFolder, mine: RunFolder, mark: str) -> None:
    """Write the lines that are new here into a file of their own, whole or not at all."""
    reader, known = LogReader(theirs), LogReader(mine)
    reader.refresh()
    known.refresh()
    fresh = [line for key, line in reader.lines.items() if key not in known]
    if fresh:
        with write_aside(mine.path / f"{mine.name}.fetched.{mark}.out.tmp", "wb") as file:
            file.writelines(fresh)


def missing_fits(folder: RunFolder) -> dict[str, int | None]:
    """Number of fits that the plan of a run asks for and its log lacks, by classifier.

    None stands for a search that chooses its fits on the way and has no answer yet.
    """
    reader = LogReader(folder)
    reader.refresh()
    plan = folder.plan()
    answer = plan.get("answer") or {}
    found: dict[str, int | None] = {}
    for expected in expected_fits(plan):
        if expected.total is None:
            if expected.classifier not in answer:
                found[expected.classifier] = None
            continue
        number = expected.total - sum(key in reader for *_, key in expected.lines())
        if number:
            found[expected.classifier] = number
    return found
