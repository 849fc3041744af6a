"""Dask workers on other machines, started over SSH and stopped with the run.

The scheduler runs in the process that calls `start_hosts`, so that nothing
outlives that process: a worker that cannot reach its scheduler ends by itself.
All connections of the cluster are encrypted and need a key that is made for
this run and sent over SSH; nobody else can join it or send it work.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly.errors import DataError, ParameterError, require

# Seconds that workers outlive a scheduler that they cannot reach.
TIMEOUT_S = 60.0
_START_S = 180.0
_CONNECT_S = 20.0
_STOP_S = 10.0
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_LOOPBACK = ("127.", "::1")

# Runs on the host, under its Python: what it can do, or what it lacks.
_PROBE = """\
import importlib.util, json, os, sys
names = ["distributed", "joblib", "numpy", "pandas", "scipy", "sklearn", "threadpoolctl"]
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
missing = [name for name in names if importlib.util.find_spec(name) is None]
print(json.dumps({"python": sys.version_info[:2], "cores": cores, "missing": missing}))
"""
# The key of the run is in the text on standard input, where no list of processes shows it.
_START = """\
import sys
from distributed.cli.dask_spec import main
main([sys.argv[1], "--spec", sys.stdin.read()])
"""


@dataclass(frozen=True)
class Host:
    """One line of a file of hosts.

    Attributes
    ----------
    name : str
        Address or name, as SSH knows it.
    user : str or None
    port : int or None
    workers : int or None
        Number of processes; None for one per processor.
    python : str
        Path of Python there.
    """

    name: str
    user: str | None = None
    port: int | None = None
    workers: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        shown = f"[{self.name}]" if ":" in self.name else self.name
        return shown if self.port is None else f"{shown}:{self.port}"


@dataclass(frozen=True)
class HostFile:
    """A file of hosts.

    Attributes
    ----------
    hosts : list of Host
    listen : str or None
        Address of this machine for the hosts; None for the one that SSH uses.
    port : int
        Port of the scheduler; 0 for any free one.
    timeout_s : float
        Seconds that workers outlive a scheduler that they cannot reach.
    """

    hosts: list[Host]
    listen: str | None = None
    port: int = 0
    timeout_s: float = TIMEOUT_S


def read_hosts(path: str | os.PathLike[str]) -> HostFile:
    """Read a file of hosts.

    One host per line, ``[user@]host[:port] [workers=N] [python=/path]``. A line
    ``listen=ADDRESS[:PORT]`` says where the hosts reach this machine, a line
    ``timeout=SECONDS`` how long workers outlive a lost connection. ``#`` begins
    a comment.

    Raises
    ------
    DataError
        Naming the line, what is allowed and what came.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from anomaly.tuning.hosts import read_hosts
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "hosts.txt")
    ...     _ = file.write_text("ann@big:2222 workers=8  # fast\\nsmall python=/opt/py\\n")
    ...     for host in read_hosts(file).hosts:
    ...         print(host, host.user, host.workers, host.python)
    big:2222 ann 8 python3
    small None None /opt/py
    """
    hosts: list[Host] = []
    settings: dict[str, Any] = {}
    text = Path(path).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if "=" in words[0]:
                settings |= _setting(words)
            else:
                hosts.append(_host(words))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
    if not hosts:
        raise DataError(f"{path} names no host; write one per line: [user@]host[:port]")
    seen: set[tuple[str, int | None]] = set()
    for host in hosts:
        if (host.name, host.port) in seen:
            raise DataError(f"{path} names {host} twice; use workers=N")
        seen.add((host.name, host.port))
    return HostFile(hosts, **settings)


def _setting(words: Sequence[str]) -> dict[str, Any]:
    name, _, value = words[0].partition("=")
    if len(words) > 1 or name not in ("listen", "timeout"):
        raise ValueError(
            "a line begins with a host, or is listen=ADDRESS[:PORT] or timeout=SECONDS, "
            f"got {' '.join(words)!r}"
        )
    if name == "timeout":
        return {"timeout_s": float(_whole("timeout", value, 86400))}
    found = _ADDRESS.fullmatch(value)
    if found is None or found["user"]:
        raise ValueError(f"listen must be an address of this machine, got {value!r}")
    return {"listen": found["ipv6"] or found["name"], "port": int(found["port"] or 0)}


def _host(words: Sequence[str]) -> Host:
    found = _ADDRESS.fullmatch(words[0])
    if found is None:
        raise ValueError(
            f"a host is [user@]host[:port], an IPv6 address in brackets, got {words[0]!r}"
        )
    port = None if found["port"] is None else _whole("the port", found["port"], 65535)
    more: dict[str, Any] = {}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or not value or name not in ("workers", "python"):
            raise ValueError(
                f"after the host only workers=N and python=/path are allowed, got {word!r}"
            )
        if name in more:
            raise ValueError(f"{name} is given twice")
        more[name] = _whole("workers", value, 4096) if name == "workers" else value
    return Host(found["ipv6"] or found["name"], found["user"], port, **more)


def _whole(name: str, value: str, most: int) -> int:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
    return int(value)


@contextmanager
def start_hosts(
    path: str | os.PathLike[str],
    say: Callable[[str], None] | None = None,
    dashboard_address: str | None = "127.0.0.1:0",
) -> Iterator[str]:
    """Start a Dask cluster on the hosts of a file, and stop it at the end of the block.

    SSH is used as the user's own: keys, ``~/.ssh/config`` and, always,
    ``~/.ssh/known_hosts``. Inside the block, Dask clients of this process
    find the key of the cluster in Dask's configuration.

    Parameters
    ----------
    path : str or PathLike
        See `read_hosts`.
    say : callable, optional
        Called with one line of text per host that is ready.
    dashboard_address : str or None
        Where the dashboard listens; port 0 is any free one.

    Yields
    ------
    str
        Address of the scheduler.

    Raises
    ------
    ParameterError
        Naming every host that could not be started, and why.
    """
    file = read_hosts(path)
    asyncssh = require("asyncssh", extra="dask")
    distributed = require("distributed", extra="dask")
    import dask
    from distributed.utils import silence_logging_cmgr

    security = distributed.Security.temporary()
    cluster = _Cluster(asyncssh, file, security, say or (lambda line: None), dashboard_address)
    thread = threading.Thread(target=cluster.run, name="anomaly-hosts", daemon=True)
    with dask.config.set(client_keys(security)), silence_logging_cmgr(logging.WARNING):
        thread.start()
        try:
            yield cluster.address.result()
        finally:
            cluster.stop()
            thread.join(_STOP_S * 3)


def client_keys(security: Any) -> dict[str, str]:
    """Dask's configuration for the clients of a cluster with a `distributed.Security`."""
    return {
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        "distributed.comm.tls.client.cert": security.tls_client_cert,
        "distributed.comm.tls.client.key": security.tls_client_key,
    }


@dataclass
class _Started:
    """A host with its connection and the process that holds its workers."""

    host: Host
    connection: Any
    workers: int = 0
    process: Any = None
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    listener: Any = None

    async def listen(self) -> None:
        """Keep the last lines that the workers say; unread ones would hold them up."""
        async for line in self.process.stderr:
            self.said.append(line.rstrip())

    def names(self) -> list[str]:
        return [f"{self.host} {number}" for number in range(self.workers)]


class _Cluster:
    """The event loop that holds scheduler and connections, in a thread of its own."""

    def __init__(
        self,
        asyncssh: Any,
        file: HostFile,
        security: Any,
        say: Callable[[str], None],
        dashboard_address: str | None,
    ) -> None:
        self.asyncssh = asyncssh
        self.file = file
        self.security = security
        self.say = say
        self.dashboard_address = dashboard_address
        self.address: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._stopped = False

    def run(self) -> None:
        """Run until `stop`; what goes wrong before is the result of ``address``."""
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if self.address.done():
                raise
            self.address.set_exception(error)

    def stop(self) -> None:
        """End the workers and the scheduler."""
        self._stopped = True
        if self._loop is not None and self._ended is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._ended.set)

    async def _main(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        if self._stopped:
            return
        work = asyncio.ensure_future(self._work())
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait([work, ended], return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not self.address.done():
            work.cancel()  # stopped while it was starting
        ended.cancel()
        await work

    async def _work(self) -> None:
        from distributed import Scheduler

        assert self._ended is not None
        async with AsyncExitStack() as stack:
            started = await self._each(self.file.hosts, lambda host: self._connect(host, stack))
            scheduler = await stack.enter_async_context(
                Scheduler(
                    host=self._bind(started),
                    port=self.file.port,
                    protocol="tls://",
                    security=self.security,
                    dashboard_address=self.dashboard_address,
                )
            )
            try:
                await self._each(started, lambda each: self._start(each, scheduler, started))
                self.address.set_result(scheduler.address)
                await self._ended.wait()
            finally:
                await self._finish(scheduler, started)

    async def _each(self, things: Sequence[Any], do: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        """Do it for all at once, and name everything that went wrong."""
        done = await asyncio.gather(*map(do, things), return_exceptions=True)
        refused = [each for each in done if isinstance(each, ParameterError)]
        if refused:
            raise ParameterError("; ".join(map(str, refused)))
        for each in done:
            if isinstance(each, BaseException):
                raise each
        return done

    async def _connect(self, host: Host, stack: AsyncExitStack) -> _Started:
        """Connect to a host and ask what it can do."""
        options = {"port": host.port, "username": host.user}
        try:
            connection = await stack.enter_async_context(
                self.asyncssh.connect(
                    host.name,
                    connect_timeout=_CONNECT_S,
                    **{name: value for name, value in options.items() if value is not None},
                )
            )
        except (OSError, self.asyncssh.Error) as error:
            raise ParameterError(f"{host}: {self._why(host, error)}") from None
        asked = await connection.run(f"{_command(host.python)} -c {shlex.quote(_PROBE)}")
        if asked.exit_status:
            said = " ".join(str(asked.stderr).split())[-300:]
            raise ParameterError(
                f"{host}: {host.python} does not run there: {said}; name another with python=/path"
            )
        found = json.loads(asked.stdout.strip().splitlines()[-1])
        if found["missing"]:
            raise ParameterError(
                f"{host}: {host.python} has no {', '.join(found['missing'])}; install the "
                "versions of this machine there, or name another with python=/path"
            )
        return _Started(host, connection, host.workers or found["cores"])

    def _why(self, host: Host, error: BaseException) -> str:
        if isinstance(error, self.asyncssh.HostKeyNotVerifiable):
            return (
                f"its key is not in ~/.ssh/known_hosts or has changed; compare it and connect "
                f"once with: ssh {host.name}"
            )
        if isinstance(error, self.asyncssh.PermissionDenied):
            return f"it accepts no key of this user; put one there with: ssh-copy-id {host.name}"
        return str(error) or f"no answer within {_CONNECT_S:.0f} s"

    def _bind(self, started: Sequence[_Started]) -> str | None:
        """Address for the scheduler: the one that all hosts see, or all of this machine's."""
        seen = {self._seen_by(each, started) for each in started}
        return seen.pop() if len(seen) == 1 else None

    def _seen_by(self, one: _Started, started: Sequence[_Started]) -> str:
        """Address of this machine for a host: from the file, or the one that SSH uses."""
        if self.file.listen is not None:
            return self.file.listen
        own = [str(each.connection.get_extra_info("sockname")[0]) for each in (one, *started)]
        # Workers talk to each other, so those of this machine must not be called 127.0.0.1.
        return next((each for each in own if not each.startswith(_LOOPBACK)), own[0])

    async def _start(self, each: _Started, scheduler: Any, started: Sequence[_Started]) -> None:
        """Start the workers of a host and wait until all of them have joined."""
        address = self._seen_by(each, started)
        shown = f"[{address}]" if ":" in address else address
        command = (
            f"{_command(each.host.python)} -c {shlex.quote(_START)} tls://{shown}:{scheduler.port}"
        )
        each.process = await each.connection.create_process(f"exec {command}")
        each.listener = asyncio.ensure_future(each.listen())
        each.process.stdin.write(json.dumps(self._spec(each)))
        each.process.stdin.write_eof()
        waiting = set(each.names())
        ends = asyncio.get_running_loop().time() + _START_S
        while waiting - {worker.name for worker in scheduler.workers.values()}:
            late = asyncio.get_running_loop().time() > ends
            if each.process.exit_status is not None or late:
                await asyncio.sleep(0.2)  # for its last words
                said = " | ".join(list(each.said)[-5:]) or "nothing"
                raise ParameterError(
                    f"{each.host}: its workers cannot reach this machine at "
                    f"tls://{shown}:{scheduler.port}, or did not start within {_START_S:.0f} s "
                    f"(see listen= in the file of hosts); they said: {said[-1000:]}"
                )
            await asyncio.sleep(0.05)
        self.say(f"{each.host}: {each.workers} worker(s)")

    def _spec(self, each: _Started) -> dict[str, Any]:
        security = {
            "require_encryption": True,
            "tls_ca_file": self.security.tls_ca_file,
            "tls_worker_cert": self.security.tls_worker_cert,
            "tls_worker_key": self.security.tls_worker_key,
        }
        options = {
            "nthreads": 1,
            "death_timeout": self.file.timeout_s,
            "security": security,
            "env": _ONE_THREAD,
            "dashboard": False,
            "memory_limit": 0,  # fits run below the workers, whose own memory says nothing
        }
        return {
            name: {"cls": "distributed.Nanny", "opts": options | {"name": name}}
            for name in each.names()
        }

    async def _finish(self, scheduler: Any, started: Sequence[_Started]) -> None:
        """Ask the workers to end, kill those that do not, and end the scheduler."""
        running = [each for each in started if each.process is not None]
        for address in list(scheduler.workers):
            scheduler.worker_send(address, {"op": "close", "nanny": True, "executor_wait": False})
        waits = [asyncio.ensure_future(each.process.wait_closed()) for each in running]
        if waits:
            await asyncio.wait(waits, timeout=_STOP_S)
        for each, wait in zip(running, waits, strict=True):
            if not wait.done():
                with suppress(OSError):
                    each.process.kill()
                wait.cancel()
            each.listener.cancel()
        await scheduler.close(reason="the run is over")


def _command(python: str) -> str:
    """A path for the shell of a host; only ``~/`` keeps its meaning."""
    return "~/" + shlex.quote(python[2:]) if python.startswith("~/") else shlex.quote(python)
