"""The budget is a promise for the whole process: its peak, watched from outside, stays within 3 %."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offload.models.spec import read_spec
from offload.precision import QUANTISED, Precision
from offload.store.open_store import pack_in
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from offload.units import MIB

TOLERANCE = 1.03
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))

LONG_ANSWER = """
import json, sys
from pathlib import Path
from offload import Engine, EngineConfig, Sampling

folder, budget, prompt_tokens, context, kernels, *quantised = sys.argv[1:]
precision, packs = quantised or ("bf16", "")
config = EngineConfig(
    model=Path(folder),
    budget_bytes=int(budget),
    context=int(context),
    kernels=kernels,
    precision=precision,
    packs_folder=Path(packs) if packs else None,
)
with Engine(config) as engine:
    # Token ids spread over the vocabulary: nearly every expert of every layer has to come in.
    prompt = [(i * 37) % 40000 + 20 for i in range(int(prompt_tokens))]
    done = engine.generate_ids(prompt, Sampling(max_new_tokens=24, temperature=0))
print(json.dumps(done.to_dict()))
"""


def peak_of(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run `command`; its highest resident memory as the kernel tells others, and what it printed."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.005)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return peak, out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's figures from /proc")
@pytest.mark.parametrize(
    ("budget_mib", "prompt_tokens", "context", "kernels"),
    [
        (760, 1500, 2048, "fast"),
        (1300, 600, 4096, "reference"),
        pytest.param(1000, 40, 4096, "fast", marks=SLOW),
        pytest.param(1700, 1200, 2048, "fast", marks=SLOW),
        pytest.param(800, 4000, 4096, "fast", marks=SLOW),
        pytest.param(1200, 4000, 8192, "reference", marks=SLOW),
    ],
)
def test_peak_resident_memory_keeps_to_the_budget(
    demo_model: Path, tmp_path: Path, budget_mib: int, prompt_tokens: int, context: int, kernels: str
) -> None:
    environment = dict(os.environ)
    if budget_mib == 1000:
        environment["NUMBA_CACHE_DIR"] = str(tmp_path)  # the first compilation included
    command = [sys.executable, "-c", LONG_ANSWER, str(demo_model), str(budget_mib * MIB)]
    peak, out = peak_of([*command, str(prompt_tokens), str(context), kernels], environment)
    memory = json.loads(out)["memory"]
    assert memory["budget_bytes"] == budget_mib * MIB
    assert peak <= TOLERANCE * budget_mib * MIB
    # What the engine says of itself is what others see.
    assert memory["peak_bytes"] == pytest.approx(peak, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's figures from /proc")
@pytest.mark.parametrize("precision", QUANTISED)
def test_a_quantised_model_keeps_to_a_smaller_budget(
    demo_model: Path, tmp_path: Path, precision: Precision
) -> None:
    spec, index = read_spec(demo_model), CheckpointIndex.open(demo_model)
    path = pack_in(tmp_path, spec, index, precision)
    write_pack(spec, index, path, precision)
    for budget_mib, prompt_tokens, kernels in ((780, 1500, "fast"), (740, 40, "fast"), (780, 600, "reference")):
        command = [sys.executable, "-c", LONG_ANSWER, str(demo_model), str(budget_mib * MIB)]
        command += [str(prompt_tokens), "2048", kernels, precision, str(tmp_path)]
        peak, out = peak_of(command, dict(os.environ))
        assert json.loads(out)["precision"] == precision
        assert peak <= TOLERANCE * budget_mib * MIB
    path.unlink()
