"""A private SSH server and its client's settings, in a folder; nothing outside it is touched."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import venv
from pathlib import Path

import psutil

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def make_key(path: Path) -> None:
    """A key without a pass phrase."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Client:
    """The home of a user: key, known hosts and settings of SSH.

    Attributes
    ----------
    home : Path
        To be $HOME of what connects.
    ssh : str
        Command that has the same settings for programs which ask the password file for the home.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        folder = home / ".ssh"
        folder.mkdir(parents=True, mode=0o700)
        make_key(folder / "id_ed25519")
        self.public = folder / "id_ed25519.pub"
        self.known = folder / "known_hosts"
        self.known.touch()
        config = folder / "config"
        config.write_text(
            f"Host *\n    IdentityFile {folder / 'id_ed25519'}\n    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {self.known}\n    StrictHostKeyChecking yes\n"
            "    BatchMode yes\n    ConnectTimeout 5\n"
        )
        config.chmod(0o600)
        self.ssh = f"ssh -F {config}"


class Server:
    """An SSH server that lets one client in, as the user who runs the tests."""

    def __init__(
        self,
        folder: Path,
        client: Client,
        address: str = "127.0.0.1",
        within: list[str] | None = None,
        known: bool = True,
    ) -> None:
        folder.mkdir(parents=True)
        self.address, self.port = address, free_port() if within is None else 22
        self.cache = folder / "cache"
        make_key(folder / "key")
        if known:
            key = (folder / "key.pub").read_text().split()[:2]
            named = address if self.port == 22 else f"[{address}]:{self.port}"
            with open(client.known, "a") as file:
                file.write(f"{named} {' '.join(key)}\n")
        self.allowed = folder / "authorized_keys"
        self.allowed.write_text(client.public.read_text())
        values = {"XDG_CACHE_HOME": self.cache, "XDG_STATE_HOME": folder / "state"}
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress {address}\nPort {self.port}\nHostKey {folder / 'key'}\n"
            f"AuthorizedKeysFile {self.allowed}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin yes\nAllowUsers {getpass.getuser()}\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in values.items())}\n"
        )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it refuses to start without
        assert SSHD is not None, "no sshd; run: apt-get install openssh-server"
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*(within or []), SSHD, "-D", "-e", "-f", str(config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        for _ in range(500):
            if "Server listening" in self.log.read_text():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())

    @property
    def host(self) -> str:
        """As in a file of hosts."""
        return f"{self.address}:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """What was started over SSH and lives."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        """End the server and what was started over it."""
        if self.process.poll() is None:
            for process in [*self.processes(), self.process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()


def bare_python(folder: Path, **versions: str) -> Path:
    """A Python with the libraries of this one and without this package.

    ``versions`` are what it says of libraries, whatever it has.
    """
    venv.create(folder, symlinks=True)
    own = next(folder.glob("lib/python*/site-packages"))
    paths = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    # Files ending in .pth below these, that of this package among them, are not read.
    (own / "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    for name, version in versions.items():
        claimed = own / f"{name}-{version}.dist-info"
        claimed.mkdir()
        (claimed / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    return folder / "bin/python"
