"""Tuning on other hosts over real SSH servers: code that is shipped, and hosts that fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.datasets import make_classification

from anomaly.errors import DataError, ParameterError
from anomaly.tuning import Backend, RunFolder, arrival, remote, shipping
from anomaly.tuning import tune as search
from anomaly.tuning.hosts import read_hosts, start_hosts
from anomaly.tuning.log import LogReader
from tests.sshd import Client, Server, bare_python, free_port
from tests.test_tuning import lines_without_times

ROOT = Path(__file__).resolve().parent.parent

# A classifier of the user's own, in two files that are not installed anywhere.
SLOW = """
import os, time
from sklearn.naive_bayes import GaussianNB
import slow_helper

class Slow(GaussianNB):
    def fit(self, X, y, sample_weight=None):
        time.sleep(float(os.environ.get("SLOW_S", slow_helper.SECONDS)))
        return super().fit(X, y, sample_weight)
"""
GRID = """
["slow.Slow"]
var_smoothing = {from = 1e-9, to = 1e-1, times = 2}
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has the libraries only."""
    return bare_python(tmp_path_factory.mktemp("bare") / "python")


@pytest.fixture
def client(tmp_path):
    return Client(tmp_path / "home")


@pytest.fixture
def servers(tmp_path, client):
    """Two hosts on this machine."""
    made = [Server(tmp_path / name, client) for name in ("a", "b")]
    yield made
    for server in made:
        server.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a table, a grid and a user's own classifier."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=90), "bad": 0})
    frame.loc[:29, "size"] += 1.5
    frame.loc[:29, "bad"] = 1
    folder = tmp_path / "place"
    folder.mkdir()
    frame.to_csv(folder / "table.csv", index=False)
    (folder / "grid.toml").write_text(GRID)
    (folder / "slow.py").write_text(SLOW)
    (folder / "slow_helper.py").write_text("SECONDS = 0.1\n")
    monkeypatch.chdir(folder)
    yield folder
    for name in ("slow", "slow_helper"):  # the next test has a folder of its own
        sys.modules.pop(name, None)


def tune(client, *options, **environment):
    """Start ``parameters.py`` as the user whose SSH settings are in the home of the client."""
    with open("tuning.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "parameters.py"), *options],
            env=os.environ | {"HOME": str(client.home), "OMP_NUM_THREADS": "1"} | environment,
            stdout=log,
            stderr=log,
        )


NEW = ["--data", "table.csv", "--label", "bad", "--grid", "grid.toml", "--cv", "3"]
NEW += ["--classifier", "slow.Slow"]


def wait_for_lines(run, number, process):
    """Wait until the log of a run has so many lines."""
    reader = LogReader(RunFolder(Path("params", run)))
    for _ in range(6000):
        reader.refresh()
        if len(reader.lines) >= number:
            return
        assert process.poll() is None, Path("tuning.log").read_text()
        time.sleep(0.01)
    raise AssertionError(Path("tuning.log").read_text())


def finish(process):
    assert process.wait(120) == 0, Path("tuning.log").read_text()


def wait_for_end(processes, seconds):
    """Wait until none of the processes lives."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert [" ".join(each.cmdline()) for each in alive] == []


def test_a_run_whose_hosts_and_client_are_killed_ends_as_on_one_machine(
    servers, client, bare, place
):
    finish(tune(client, *NEW, "--run", "one", SLOW_S="0"))
    first, second = servers
    Path("two.txt").write_text(
        f"timeout=5\n{first.host} workers=1 python={bare}\n{second.host} workers=1 python={bare}\n"
    )
    Path("one.txt").write_text(f"{first.host} workers=1 python={bare}  # the other is dead\n")
    dask = ["--backend", "dask", "--hosts"]
    process = tune(client, *NEW, "--run", "two", *dask, "two.txt")
    wait_for_lines("two", 20, process)
    second.close()
    wait_for_lines("two", 40, process)
    started = first.processes()
    assert started
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_end(started, 60)
    finish(tune(client, "--resume", "two", *dask, "one.txt"))
    assert first.processes() == []
    one, two = RunFolder("params/one"), RunFolder("params/two")
    assert lines_without_times(two) == lines_without_times(one)
    assert len(two.merged.read_bytes().splitlines()) == len(lines_without_times(one))


# Several hosts, each with its own network ----------------------------------------------


class Network:
    """Two hosts as network namespaces on a bridge."""

    def __init__(self, folder, client):
        if os.getuid() != 0:
            pytest.skip("network namespaces need root")
        number = os.getpid() % 250
        self.mark, self.subnet = f"an{number}", f"10.213.{number}"
        self.names = [f"{self.mark}-{name}" for name in ("a", "b")]
        self.close()
        self.ip(f"link add {self.mark} type bridge")
        self.ip(f"addr add {self.subnet}.1/24 dev {self.mark}")
        self.ip(f"link set {self.mark} up")
        for place, name in enumerate(self.names, start=2):
            self.ip(f"netns add {name}")
            self.ip(f"link add {name} type veth peer name eth0 netns {name}")
            self.ip(f"link set {name} up master {self.mark}")
            self.ip(f"-n {name} addr add {self.subnet}.{place}/24 dev eth0")
            self.ip(f"-n {name} link set eth0 up")
            self.ip(f"-n {name} link set lo up")
        within = [["ip", "netns", "exec", name, "unshare", "--uts"] for name in self.names]
        # A name of its own for each host, as real ones have.
        within = [[*w, "sh", "-c", 'hostname "$0"; exec "$@"', w[3]] for w in within]
        self.servers = [
            Server(folder / name, client, f"{self.subnet}.{place}", within[place - 2])
            for place, name in enumerate(self.names, start=2)
        ]

    def ip(self, command, check=True):
        subprocess.run(["ip", *command.split()], check=check, capture_output=not check)

    def close(self):
        for server in getattr(self, "servers", []):
            server.close()
        for name in self.names:
            self.ip(f"netns del {name}", check=False)
        self.ip(f"link del {self.mark}", check=False)


@pytest.fixture
def network(tmp_path, client):
    made = Network(tmp_path, client)
    yield made
    made.close()


def test_a_network_that_is_cut_for_30_seconds_changes_nothing(network, client, bare, place):
    finish(tune(client, *NEW, "--run", "one", SLOW_S="0"))
    Path("slow_helper.py").write_text("SECONDS = 0.4\n")
    lines = [f"{server.host} workers=1 python={bare}" for server in network.servers]
    Path("hosts.txt").write_text("\n".join(lines))
    process = tune(client, *NEW, "--run", "cut", "--backend", "dask", "--hosts", "hosts.txt")
    wait_for_lines("cut", 6, process)
    hosts = json.loads(Path("params/cut/progress.json").read_text())["hosts"]
    assert set(hosts) <= set(network.names)
    network.ip(f"link set {network.names[1]} down")
    time.sleep(30)
    network.ip(f"link set {network.names[1]} up")
    finish(process)
    one, two = RunFolder("params/one"), RunFolder("params/cut")
    assert lines_without_times(two) == lines_without_times(one)


# SLURM ------------------------------------------------------------------------------------

# Starts the job on this machine, in a session of its own that scancel can end.
SBATCH = """#!/bin/sh
cp "$1" job.sh
setsid sh job.sh > job.out 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
for job; do kill -- "-$job"; done
"""


def test_the_slurm_example_tunes_with_jobs(client, place, monkeypatch):
    tools = place / "bin"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(client.home))
    monkeypatch.setenv("SLOW_S", "0")
    script = [sys.executable, str(ROOT / "examples/slurm.py"), "--jobs", "1", "--cores", "1"]
    more = ["--memory", "1GB", "--", *NEW, "--run", "nodes"]
    done = subprocess.run([*script, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(Path("params/nodes.out").read_text().splitlines()) == 81
    job = Path("job.sh").read_text()
    assert "#SBATCH --cpus-per-task=1" in job
    assert "PRIVATE KEY" not in job


# Versions and code -----------------------------------------------------------------------


def test_hosts_with_other_versions_or_code_are_refused_by_name(
    servers, client, bare, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("HOME", str(client.home))
    skewed = bare_python(tmp_path / "skewed", scipy="0.0.1")
    (tmp_path / "hosts.txt").write_text(f"{servers[1].host} workers=1 python={skewed}\n")
    X, y = make_classification(90, random_state=0)
    grid = {"n_neighbors": [1, 3]}
    said = []
    with (
        contextlib.suppress(KeyboardInterrupt),
        start_hosts(tmp_path / "hosts.txt", said.append) as address,
    ):
        assert said == [f"{servers[1].host}: 1 worker(s)"]
        with pytest.raises(ParameterError, match=r"scipy 0\.0\.1 \(here .*--allow-version-skew"):
            search("knn", grid, X, y, cv=2, backend=Backend("dask", scheduler=address))
        allowed = Backend("dask", scheduler=address, allow_version_skew=True)
        run = tmp_path / "skew"
        found = search("knn", grid, X, y, cv=2, backend=allowed, log=run, refit=False)
        here = search("knn", grid, X, y, cv=2, refit=False)
        assert found.table["mean_score"].tolist() == here.table["mean_score"].tolist()
        assert "scipy 0.0.1" in json.dumps(RunFolder(run).plan()["version_skew"])
        # The folder of the shipped code is named for its content.
        [code] = (servers[1].cache / "anomaly/code").iterdir()
        assert (code / "anomaly/tuning/arrival.py").exists()
        other = tmp_path / "other/anomaly"
        shutil.copytree(ROOT / "anomaly", other)
        (other / "errors.py").write_text((other / "errors.py").read_text() + "# changed\n")
        monkeypatch.setattr(shipping.anomaly, "__file__", str(other / "__init__.py"))
        with pytest.raises(ParameterError, match="another version of anomaly is loaded from"):
            search("knn", grid, X, y, cv=2, backend=Backend("dask", scheduler=address))
        raise KeyboardInterrupt  # it stops the hosts like any other end
    assert servers[1].processes() == []


@pytest.fixture
def cluster(tmp_path, bare):
    """Address of a scheduler with a worker, both without this package."""
    address = f"tcp://127.0.0.1:{free_port()}"
    folders = {f"XDG_{name}_HOME": str(tmp_path / name) for name in ("CACHE", "STATE")}
    dask = [str(bare), "-m", "distributed.cli.dask_"]
    commands = [
        [*dask[:2], f"{dask[2]}scheduler", "--host", address, "--dashboard-address", ":0"],
        [*dask[:2], f"{dask[2]}worker", address, "--no-nanny", "--nthreads", "1"],
    ]
    with open(tmp_path / "cluster.log", "wb") as log:
        started = [
            subprocess.Popen(c, cwd=tmp_path, env=os.environ | folders, stdout=log, stderr=log)
            for c in commands
        ]
    yield address
    for process in started:
        process.kill()
        process.wait()


def test_a_scheduler_and_its_workers_need_the_libraries_only(cluster, place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("SLOW_S", "0")
    from slow import Slow

    X, y = make_classification(90, random_state=0)
    found, here = (
        search(Slow(), {"var_smoothing": [1e-9, 1e-3]}, X, y, cv=2, refit=False, backend=backend)
        for backend in (Backend("dask", scheduler=cluster), None)
    )
    assert found.table["mean_score"].tolist() == here.table["mean_score"].tolist()


def test_code_that_comes_after_the_first_search_of_a_run_is_found(cluster, place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("SLOW_S", "0")
    from slow import Slow

    X, y = make_classification(90, random_state=0)
    with Backend("dask", scheduler=cluster).open() as opened:
        search("knn", {"n_neighbors": [1, 3]}, X, y, cv=2, refit=False, backend=opened)
        grid = {"var_smoothing": [1e-9, 1e-3]}
        found = search(Slow(), grid, X, y, cv=2, refit=False, backend=opened)
    assert found.n_fits_ == 4


def test_the_native_core_is_built_where_the_one_that_was_sent_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    archive = shipping.pack(shipping.code_trees())
    monkeypatch.setattr(arrival, "build_core", lambda sources, core: built.append(core))
    built = []
    same = arrival.unpack(archive, arrival.platform_name())
    assert built == []
    assert (same / arrival.CORE).exists()
    assert arrival.unpack(archive, arrival.platform_name()) == same
    shutil.rmtree(same)
    arrival.unpack(archive, "plan9-mips cpython")
    assert len(built) == 1


def test_the_native_core_that_is_built_is_the_native_core(tmp_path):
    sources = tmp_path / "libdetect"
    sources.mkdir()
    (sources / "python").mkdir()
    (sources / "python/core.c").write_text(
        "#include <Python.h>\n"
        'static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = "_core"};\n'
        "PyMODINIT_FUNC PyInit__core(void) { return PyModule_Create(&def); }\n"
    )
    core = tmp_path / "_core.abi3.so"
    arrival.build_core(sources, core)
    code = "import _core"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    text = (ROOT / "setup.py").read_text()
    assert all(flag in text for flag in arrival.FLAGS if not flag.startswith("-D"))
    assert '("Py_LIMITED_API", "0x030B0000")' in text


def test_a_host_that_cannot_build_says_what_it_lacks(tmp_path, monkeypatch):
    with pytest.raises(arrival.RefusedError, match="sources were not sent: install anomaly"):
        arrival.build_core(tmp_path, tmp_path / "core.so")
    (tmp_path / "core.c").write_text("this is no C\n")
    with pytest.raises(arrival.RefusedError, match=r"cannot be built: .*error"):
        arrival.build_core(tmp_path, tmp_path / "core.so")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(arrival.RefusedError, match=r"no C compiler 'no-such-compiler' \(Debian"):
        arrival.build_core(tmp_path, tmp_path / "core.so")


def test_code_of_the_user_is_sent_with_what_it_imports(place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    from slow import Slow

    trees = shipping.code_trees([{"classifier": Slow(var_smoothing=0.1)}])
    assert trees == {
        "anomaly": ROOT / "anomaly",
        "slow": place / "slow.py",
        "slow_helper": place / "slow_helper.py",
    }
    assert shipping.pack(trees) == shipping.pack(dict(reversed(trees.items())))
    assert shipping.code_trees([np.float64(1), Path("x")]).keys() == {"anomaly"}
    monkeypatch.setattr(shipping, "_LARGEST", 1000)
    with pytest.raises(ParameterError, match="keep data out of the folders of packages"):
        shipping.pack(trees)


def test_other_rows_than_those_of_the_run_are_refused_on_the_worker():
    spec = remote.Spec("session", "0" * 16)
    answer = remote.run_unit_here(b"rows", remote.own_mark(), spec, None, b"", None)
    assert answer.end == "failed"
    assert "are not those of the run" in answer.why


# The file of hosts --------------------------------------------------------------------------


def test_a_file_of_hosts_is_read(tmp_path):
    path = tmp_path / "hosts.txt"
    path.write_text(
        "# my hosts\nlisten=10.0.0.1:8786\ntimeout=90\n\n"
        "ann@big:2222 workers=8 python=/opt/py/bin/python\n[::1]:22  # this one\nsmall\n"
    )
    file = read_hosts(path)
    assert (file.listen, file.port, file.timeout_s) == ("10.0.0.1", 8786, 90.0)
    assert [(h.user, h.name, h.port, h.workers, h.python) for h in file.hosts] == [
        ("ann", "big", 2222, 8, "/opt/py/bin/python"),
        (None, "::1", 22, None, "python3"),
        (None, "small", None, None, "python3"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-oProxyCommand=sh", r"line 2: a line begins with a host"),
        ("-big", r"line 2: a host is \[user@\]host\[:port\].*got '-big'"),
        ("a b", r"line 2: after the host only workers=N and python=/path.*got 'b'"),
        ("a;reboot", r"line 2: a host is"),
        ("a@b@c", r"line 2: a host is"),
        ("a:99999", r"line 2: the port must be a whole number from 1 to 65535, got '99999'"),
        ("a workers=0", r"line 2: workers must be a whole number from 1 to 4096, got '0'"),
        ("a workers=x", r"line 2: workers must be a whole number"),
        ("a workers=1 workers=2", r"line 2: workers is given twice"),
        ("a python=", r"line 2: after the host only"),
        ("listen=x y", r"line 2: a line begins with a host"),
        ("listen=a@b", r"line 2: listen must be an address of this machine, got 'a@b'"),
        ("timeout=0", r"line 2: timeout must be a whole number from 1 to 86400, got '0'"),
        ("fine", r"names fine twice; use workers=N"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "hosts.txt"
    path.write_text(f"fine\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_hosts(path)


def test_a_file_without_hosts_is_refused(tmp_path):
    (tmp_path / "hosts.txt").write_text("# none\n")
    with pytest.raises(DataError, match="names no host"):
        read_hosts(tmp_path / "hosts.txt")


def test_hosts_that_cannot_be_used_are_all_named_with_the_reason(
    servers, client, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(client.home))
    unknown = Server(tmp_path / "unknown", client, known=False)
    empty = tmp_path / "empty"
    empty.write_text('#!/bin/sh\nexec "$0.python" -S -I "$@"\n')
    empty.chmod(0o755)
    Path(f"{empty}.python").symlink_to(sys.executable)
    (tmp_path / "hosts.txt").write_text(
        f"{servers[0].host} python=/no/python\n{servers[1].host} python={empty}\n"
        f"{unknown.host}\n127.0.0.1:1\n"
    )
    with (
        pytest.raises(ParameterError) as error,
        start_hosts(tmp_path / "hosts.txt"),
    ):
        pass
    unknown.close()
    reasons = str(error.value).split("; 127.0.0.1:")
    assert f"{servers[0].port}: /no/python does not run there: " in reasons[0]
    assert f"{servers[1].port}: {empty} has no distributed, joblib, numpy" in reasons[1]
    assert "key is not in ~/.ssh/known_hosts or has changed" in reasons[2]
    assert reasons[3].startswith("1: ")


def test_a_client_whose_key_is_not_accepted_is_told_so(servers, client, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(client.home))
    servers[0].allowed.write_text("")
    (tmp_path / "hosts.txt").write_text(f"{servers[0].host}\n")
    with (
        pytest.raises(ParameterError, match=r"accepts no key of this user.*ssh-copy-id"),
        start_hosts(tmp_path / "hosts.txt"),
    ):
        pass
