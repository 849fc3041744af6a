"""Forks Dask schedulers and workers from a process that has everything imported.

Every line of standard input starts one: ``scheduler``, or ``worker ADDRESS
[THREADS] [skewed]``. The answer is the process number, and the address of a
scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

import distributed

from anomaly.tuning import remote
from anomaly.tuning.workers import exit_with_parent


async def scheduler(pipe: int) -> None:
    async with distributed.Scheduler(
        host="127.0.0.1", port=0, dashboard=False, dashboard_address=None
    ) as one:
        os.write(pipe, one.address.encode() + b"\n")
        await one.finished()


async def worker(address: str, threads: str = "1", skewed: str = "") -> None:
    if skewed:
        remote.code_fingerprint = lambda: "0" * 12
    async with distributed.Worker(
        address, nthreads=int(threads), host="127.0.0.1", memory_limit=0, dashboard=False
    ) as one:
        await one.finished()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    parent = os.getpid()
    for line in sys.stdin:
        kind, *given = line.split()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(reader)
            threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
            asyncio.run(scheduler(writer) if kind == "scheduler" else worker(*given))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            address = said.readline().strip() if kind == "scheduler" else ""
        print(child, address, flush=True)


class Nursery:
    """Starts processes in a child of this one, and kills them all at the end."""

    def __init__(self, root, folder) -> None:
        with open(folder / "said", "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery"],
                cwd=root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=os.environ | {"DASK_TEMPORARY_DIRECTORY": str(folder)},
            )
        self.pids: list[int] = []

    def start(self, *words: object) -> tuple[int, str]:
        """Process number of a new scheduler or worker, and its address."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        pid, _, address = self.process.stdout.readline().partition(" ")
        self.pids.append(int(pid))
        return int(pid), address.strip()

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal, SIGKILL by default."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, number)
        if number == signal.SIGKILL:
            self.pids.remove(pid)

    def close(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()


if __name__ == "__main__":
    main()
