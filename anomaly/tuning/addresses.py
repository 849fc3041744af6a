"""Runs on other hosts: their addresses, and the user's own ssh and rsync."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from anomaly.errors import AnomalyError, MissingExtraError, ParameterError
from anomaly.tuning.log import RUN_NAME

_HOST = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])"
)
_PACKAGES = {"rsync": ("rsync", "rsync"), "ssh": ("openssh-client", "openssh")}


class RemoteError(AnomalyError, OSError):
    """Another host could not be reached, or did not do what it was asked."""


@dataclass(frozen=True)
class RunAddress:
    """A run on another host.

    Attributes
    ----------
    host : str
        ``[user@]host``, as ssh takes it.
    folder : str
        Folder of runs there, relative to the home or absolute.
    run : str
    """

    host: str
    folder: str
    run: str

    def __str__(self) -> str:
        return f"{self.host}:{self.folder}/{self.run}"

    @property
    def bare_host(self) -> str:
        """The host as ssh takes it, an IPv6 address without brackets."""
        return self.host.replace("[", "").replace("]", "")


def parse_address(text: str) -> RunAddress:
    """Read ``[user@]host:path/RUN``.

    Raises
    ------
    ParameterError
        For anything that ssh or rsync could take for an option or a command.

    Examples
    --------
    >>> from anomaly.tuning.addresses import parse_address
    >>> parse_address("ann@big:anomaly/params/first")
    RunAddress(host='ann@big', folder='anomaly/params', run='first')
    >>> parse_address("-oProxyCommand=x:params/first")
    Traceback (most recent call last):
        ...
    anomaly.errors.ParameterError: a run elsewhere is [user@]host:path/RUN, \
got '-oProxyCommand=x:params/first'
    """
    closed = text.find("]:")
    host, path = (
        (text[: closed + 1], text[closed + 2 :]) if closed >= 0 else text.partition(":")[::2]
    )
    folder, slash, run = path.rstrip("/").rpartition("/")
    if not _HOST.fullmatch(host) or not RUN_NAME.fullmatch(run) or not text.isprintable():
        raise ParameterError(f"a run elsewhere is [user@]host:path/RUN, got {text!r}")
    folder = folder.removeprefix("~/") if folder != "~" else ""
    if folder.startswith("~"):
        raise ParameterError(f"write a home of another user in full, got {text!r}")
    return RunAddress(host, folder or ("/" if slash and path.startswith("/") else "."), run)


def is_elsewhere(text: str) -> bool:
    """Whether a text is meant as the address of a run on another host."""
    return ":" in text


def add_ssh_option(parser: argparse.ArgumentParser) -> None:
    """The option that says how to run ssh."""
    parser.add_argument(
        "--ssh",
        default="ssh",
        metavar="COMMAND",
        help="ssh with options, e.g. 'ssh -p 2222 -J jump' (default ssh)",
    )


def ssh_words(command: str) -> list[str]:
    """The words of an ssh command; refuses where it is not installed."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ParameterError(f"--ssh cannot be read: {error}; got {command!r}") from None
    if not words:
        raise ParameterError("--ssh must be a command, got none")
    need(words[0])
    return words


def need(program: str) -> None:
    """Refuse, with the name of its package, where a program is not installed."""
    if shutil.which(program) is None:
        debian, mac = _PACKAGES.get(program, (program, program))
        raise MissingExtraError(
            f"{program} is not installed; run: apt-get install {debian} (Debian), "
            f"brew install {mac} (macOS)"
        )


def run_there(address: RunAddress, ssh: str, command: Sequence[str], text: str) -> str:
    """Run a command on the host of a run, with a text on its input; returns its output.

    Raises
    ------
    RemoteError
        With what ssh or the command said.
    """
    # The shell there takes the command apart again, so every word is quoted.
    words = [*ssh_words(ssh), "--", address.bare_host, shlex.join(command)]
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:] or f"exit code {done.returncode}"
        raise RemoteError(f"{address.host}: {said}")
    return done.stdout
