"""Slots on a GPU. What needs one is marked ``gpu``; the arena's bookkeeping runs on any torch device."""

from __future__ import annotations

import random

import pytest
import torch

from offload.errors import FinemoeError
from offload.transfer.cuda import CudaArena, CudaStage
from offload.transfer.lanes import Lanes
from tests.support.checkpoints import tensor_bytes

MIB = 1 << 20


def on_gpu(test):
    """Marks a test that needs a GPU, and skips it where there is none."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
    return pytest.mark.gpu(skip(test))


@pytest.fixture
def chunked():
    arena = CudaArena(slot_bytes=8 * MIB, max_slots=5, device=torch.device("cpu"))  # two slots a chunk
    yield arena
    arena.close()


def test_chunks_come_and_go_with_their_slots(chunked):
    assert chunked.allocated_bytes == 0
    chunked.reserve([0, 2])
    assert chunked.allocated_bytes == 4 * 8 * MIB
    chunked.reserve([3, 4])
    assert chunked.allocated_bytes == 5 * 8 * MIB
    chunked.release(2)
    assert chunked.allocated_bytes == 5 * 8 * MIB
    chunked.release(3)
    assert chunked.allocated_bytes == 3 * 8 * MIB
    chunked.close()
    assert chunked.allocated_bytes == 0


def test_slots_are_apart_and_keep_their_bytes(chunked):
    chunked.reserve(range(5))
    for index in range(5):
        chunked.slot(index).fill_(index)
    chunked.release(2)
    for index in (0, 1, 3, 4):
        assert chunked.slot(index).shape == (8 * MIB,)
        assert bool((chunked.slot(index) == index).all())


def test_only_reserved_slots(chunked):
    chunked.reserve([1])
    chunked.release(1)
    with pytest.raises(IndexError):
        chunked.slot(1)
    with pytest.raises(IndexError):
        chunked.reserve([5])


@pytest.fixture
def device_arena(store):
    arena = CudaArena(store.slot_bytes, 16, torch.device("cuda", 0))
    arena.reserve(range(16))
    yield arena
    arena.close()


@on_gpu
@pytest.mark.parametrize("count", [1, 4])
def test_bytes_are_equal_after_the_trip(store, arena, device_arena, count):
    stage = CudaStage(device_arena, torch.cuda.current_stream())
    lanes = Lanes(store, stage, count)
    chance = random.Random(0)
    size = store.spec.hidden_size * store.spec.expert_size * 2
    for _ in range(20):
        experts = chance.sample(range(store.spec.total_experts), 16)
        for slot, expert in enumerate(experts):
            lanes.submit(expert, slot, demand=True)
        while lanes.in_flight:
            for done in lanes.wait():
                assert done.error is None
                store.read(done.expert, arena.slot(0))
                for begin, nbytes in (
                    (int(store.gate_up_offset[done.expert]), 2 * size),
                    (int(store.down_offset[done.expert]), size),
                ):
                    on_device = device_arena.slot(done.slot)[begin : begin + nbytes].cpu()
                    assert tensor_bytes(on_device) == arena.slot(0)[begin : begin + nbytes]
    lanes.close()
    stage.close()


@on_gpu
def test_kernels_that_were_given_a_slot_before_finish_before_it_is_overwritten(store, device_arena):
    stage = CudaStage(device_arena, torch.cuda.current_stream())
    lanes = Lanes(store, stage, 2)
    slot = device_arena.slot(0)
    for round_ in range(20):
        slot.fill_(7)
        torch.cuda._sleep(20_000_000)  # the computation is behind
        seen = slot.clone()
        lanes.submit(round_, 0, demand=True)
        (done,) = lanes.wait()
        assert done.error is None
        assert bool((seen == 7).all())
    lanes.close()
    stage.close()


@on_gpu
def test_device_memory_grows_and_shrinks():
    device = torch.device("cuda", 0)
    arena = CudaArena(slot_bytes=16 * MIB, max_slots=64, device=device)
    arena.reserve([0])
    free = torch.cuda.mem_get_info(device)[0]
    arena.reserve(range(1, 33))
    assert free - torch.cuda.mem_get_info(device)[0] >= 32 * 16 * MIB
    for index in range(1, 33):
        arena.release(index)
    assert free - torch.cuda.mem_get_info(device)[0] < 64 * MIB
    arena.close()


@on_gpu
def test_more_than_the_device_has_is_refused_with_a_hint():
    device = torch.device("cuda", 0)
    total = torch.cuda.mem_get_info(device)[1]
    arena = CudaArena(slot_bytes=total * 2, max_slots=1, device=device)
    with pytest.raises(FinemoeError) as caught:
        arena.reserve([0])
    assert caught.value.hint
