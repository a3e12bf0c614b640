"""Threads wait without spinning, one OpenMP runtime is loaded, and a container's quota is kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qmambair_basicsr import threads
from qmambair_basicsr.ops import native_library

SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": threads.SPINS}


@pytest.fixture
def torch_not_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")


def cgroup(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, None),
        ({"cpu_max": "max 100000"}, None),
        ({"cpu_max": "150000 100000"}, 2),
        ({"cpu_max": "20000 100000"}, 1),
        ({"cpu_max": "nonsense"}, None),
        ({"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, None),
        ({"cpu__cfs_quota_us": "300000", "cpu__cfs_period_us": "100000"}, 3),
    ],
)
def test_quota_of_a_container(tmp_path, files, granted):
    assert threads.processors_granted(cgroup(tmp_path, **files)) == granted


def test_what_the_user_sets_stays(torch_not_loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "usable_processors", lambda: 8)
    folder = cgroup(tmp_path, cpu_max="200000 100000")
    for given, added in (
        ({}, {**SETTINGS, "OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "5"}, SETTINGS),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS": "2"}),
        ({"KMP_BLOCKTIME": "200", "OMP_NUM_THREADS": "5"}, {}),
    ):
        environment = dict(given)
        assert threads.apply(environment, folder)
        assert environment == {**given, **added}
    environment = {}
    assert threads.apply(environment, tmp_path / "none")
    assert environment == SETTINGS


def test_nothing_is_set_behind_torch():
    environment = {}
    assert not threads.apply(environment)
    assert environment == {}


WAITING = """
import importlib.util, json, sys, time
if sys.argv[1] != "-":
    spec = importlib.util.spec_from_file_location("threads", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.apply()
import torch
torch.set_num_threads(2)
x = torch.ones(1 << 16)
x.add(1)
start = time.process_time()
for _ in range(15):
    x.add(1)
    time.sleep(0.05)
print(time.process_time() - start)
"""


def test_a_waiting_thread_does_not_burn_the_processor():
    """CPU time of two threads that have next to nothing to do, whatever else the machine does."""
    if threads.usable_processors() < 2:
        pytest.skip("one processor: OpenMP does not spin there")
    environment = {k: v for k, v in os.environ.items() if k not in (*threads.WAITING, "OMP_NUM_THREADS")}
    spent = []
    for argument, extra in ((threads.__file__, {}), ("-", {"OMP_WAIT_POLICY": "active"})):
        command = [sys.executable, "-W", "ignore", "-c", WAITING, argument]
        done = subprocess.run(command, env=environment | extra, capture_output=True, text=True, check=True, timeout=300)
        spent.append(float(done.stdout))
    assert spent[0] < spent[1] / 3, spent


def test_one_openmp_runtime_is_loaded():
    if not native_library.is_available()[0]:
        pytest.skip(native_library.is_available()[1])
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc/self/maps")
    native_library.load()
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if re.search(r"/lib(g|i)?omp", line)}
    assert len({os.path.realpath(path) for path in loaded}) == 1, loaded
