"""An engine with a board, for as long as a block lasts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from offload.errors import FinemoeError
from offload.models.spec import read_spec
from offload.service.board_writer import BoardWriter
from offload.telemetry.frame import Facts
from offload.telemetry.log import logger
from offload.telemetry.probes import HostProbe, NvmlProbe

if TYPE_CHECKING:
    from offload.runtime.engine import Engine


@contextmanager
def published(
    engine: Engine, boards_dir: Path, *, command: str = "run", profile: str = ""
) -> Iterator[BoardWriter | None]:
    """Within the block the engine has a board in `boards_dir`, so that others can watch it.

    Where no board can be made, the block runs without one (None), and the log says why.
    """
    try:
        facts = engine_facts(engine, command)
        gpu = gpu_probe(facts.device)
        writer = BoardWriter(boards_dir, facts, engine, HostProbe(), gpu, profile)
    except (OSError, FinemoeError) as error:
        logger.warning("the counters are not published: %s", error)
        yield None
        return
    try:
        engine.observe(writer)
        try:
            yield writer
        finally:
            writer.close()
            engine.unobserve(writer)
    finally:
        writer.close()


def engine_facts(engine: Engine, command: str) -> Facts:
    """What does not change of an open engine."""
    spec, snapshot = read_spec(engine.folder), engine.snapshot()
    return Facts(
        pid=os.getpid(),
        opened=time.time(),
        command=command,
        model=snapshot.model,
        device=snapshot.device,
        kernels=snapshot.kernels,
        layers=len(spec.moe_layers),
        experts=spec.num_experts,
        top_k=spec.top_k,
        slot_bytes=snapshot.memory.slot_bytes,
        precision=snapshot.precision,
    )


def gpu_probe(device: str) -> NvmlProbe | None:
    """The probe of a CUDA device; None for the CPU.

    CUDA and the driver may count devices in another order, so it goes by UUID.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    return NvmlProbe(f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}")
