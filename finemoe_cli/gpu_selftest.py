"""The checks of ``finemoe doctor --gpu-selftest``: does what the engine asks of a GPU hold on this one?

Not yet run on real hardware, as the code that it checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING

from finemoe_cli.doctor import Finding
from offload.errors import FinemoeError
from offload.units import MIB, format_bytes

if TYPE_CHECKING:
    import torch

_SLOT_BYTES = 8 * MIB
_SLOTS = 16
_ROUNDS = 20


def gpu_selftest() -> Iterator[Finding]:
    """One finding for each check; a single failure where there is no GPU to check."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("fail", "gpu self-test", f"torch cannot be imported: {error}")
        return
    if not torch.cuda.is_available():
        why = "torch finds no CUDA device" if torch.version.cuda else "this torch was built without CUDA"
        yield Finding("fail", "gpu self-test", f"no GPU to test: {why}")
        return
    device = torch.device("cuda", 0)
    checks: tuple[tuple[str, Callable[[torch.device], str]], ...] = (
        ("bytes", _bytes_arrive_unchanged),
        ("order", _kernels_finish_before_their_slot_is_overwritten),
        ("memory", _memory_comes_back),
    )
    for name, check in checks:
        try:
            yield Finding("ok", f"gpu {name}", check(device))
        except (AssertionError, FinemoeError, RuntimeError, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            yield Finding("fail", f"gpu {name}", first)


def _bytes_arrive_unchanged(device: torch.device) -> str:
    import torch

    from offload.transfer.cuda import CudaArena, CudaStage

    arena = CudaArena(_SLOT_BYTES, _SLOTS, device)
    arena.reserve(range(_SLOTS))
    stage = CudaStage(arena, torch.cuda.current_stream(device))
    sources = [random.Random(number).randbytes(_SLOT_BYTES) for number in range(_SLOTS)]

    def transfer(slot: int) -> None:
        stage.target(slot)[:] = sources[slot]
        stage.land(slot)

    begin = perf_counter()
    with ThreadPoolExecutor(4) as lanes:
        for _ in range(_ROUNDS):
            list(lanes.map(transfer, range(_SLOTS)))
    seconds = perf_counter() - begin
    for slot, source in enumerate(sources):
        assert arena.slot(slot).cpu().numpy().tobytes() == source, f"slot {slot} has other bytes than were sent"
    stage.close()
    arena.close()
    total = _ROUNDS * _SLOTS * _SLOT_BYTES
    return f"{format_bytes(total)} on 4 lanes arrived unchanged, {format_bytes(total / seconds)}/s"


def _kernels_finish_before_their_slot_is_overwritten(device: torch.device) -> str:
    import torch

    from offload.transfer.cuda import CudaArena, CudaStage

    arena = CudaArena(_SLOT_BYTES, 1, device)
    arena.reserve([0])
    stage = CudaStage(arena, torch.cuda.current_stream(device))
    slot = arena.slot(0)
    for _ in range(_ROUNDS):
        slot.fill_(7)
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        seen = slot.clone()
        stage.target(0)[:] = bytes(_SLOT_BYTES)
        stage.land(0)
        assert bool((seen == 7).all()), "a transfer overtook a kernel that still read the slot"
        assert bool((slot == 0).all()), "a transfer was not complete when it said so"
    stage.close()
    arena.close()
    return f"{_ROUNDS} transfers waited for the kernels before them"


def _memory_comes_back(device: torch.device) -> str:
    import torch

    from offload.transfer.cuda import CudaArena

    arena = CudaArena(_SLOT_BYTES, _SLOTS + 1, device)
    arena.reserve([0])
    before = torch.cuda.mem_get_info(device)[0]
    arena.reserve(range(1, _SLOTS + 1))
    assert before - torch.cuda.mem_get_info(device)[0] >= _SLOTS * _SLOT_BYTES // 2, "slots took no memory"
    for slot in range(1, _SLOTS + 1):
        arena.release(slot)
    lost = before - torch.cuda.mem_get_info(device)[0]
    assert lost < 4 * _SLOT_BYTES, f"{format_bytes(lost)} did not come back"
    arena.close()
    return "released slots give their memory back"
