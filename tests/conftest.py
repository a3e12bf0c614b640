"""Fixtures every test can use."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import nullcontext
from pathlib import Path

# before torch is imported: the networks of the tests are too small for threads, and threads that wait for each other on
# a busy machine, or in every worker of pytest-xdist, make them many times slower
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import suite_progress
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported
    os.environ.setdefault("QMAMBAIR_CUDA_SIMULATE", "1")  # the CUDA kernels, compiled for the host

from instruction_sets import in_use, libraries

import qmambair_basicsr  # noqa: F401  (mends basicsr's imports before a test module imports basicsr)

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Show how far the suite is; take interrupts, which a shell has what it starts in the background ignore."""
    suite_progress.install(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: one worker for each core that this process may use."""
    return suite_progress.usable_cores()


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_dead_log_handlers():
    """BasicSR's logger keeps the stderr of the test that first used it; pytest closes that with the test."""
    yield
    logger = logging.getLogger("basicsr")
    for handler in list(logger.handlers):
        if getattr(getattr(handler, "stream", None), "closed", False):
            logger.removeHandler(handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with benchmark images, weights and golden vectors, beside the checkout; absent for users."""
    path = Path(os.environ.get("QMAMBAIR_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs the development material in {path} (images, official weights), which is not shipped")
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """tests/data: small vectors that ship with the repository."""
    return ROOT / "tests" / "data"


@pytest.fixture(params=libraries() or [None])
def instruction_set(request):
    """The test runs once with the native kernels for each instruction set of this machine; None: they are not built."""
    with nullcontext() if request.param is None else in_use(request.param):
        yield request.param
