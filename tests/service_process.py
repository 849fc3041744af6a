"""A service in a process of its own, to be talked to and killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServiceProcess:
    """Started on entry, killed on exit; state, database and models live in one folder.

    ``before`` is Python to run in the process first, to make its limits small.
    """

    def __init__(
        self, folder: Path, *arguments: str, before: str = "", **environment: str
    ) -> None:
        self.folder = folder
        start = "import sys; from production.service import main; sys.exit(main())"
        self.program = ["-c", f"{before}; {start}"] if before else ["-m", "production.service"]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = arguments
        self.environment = environment

    def start(self) -> ServiceProcess:
        command = [sys.executable, *self.program, "--port", str(self.port)]
        self.log = (self.folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [*command, *self.arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | self.environment,
            stdout=self.log,
            stderr=self.log,
        )
        end = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError((self.folder / "log.txt").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.log.close()
        return code

    def __enter__(self) -> ServiceProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
