"""The host arena: slots that are really there, and memory that really goes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offload.errors import FinemoeError
from offload.memory.arena import HostArena

MIB = 1 << 20

_RESIDENT_SCRIPT = """
import ctypes, json, sys
import numpy as np
from offload.memory.arena import HostArena

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024

def fill(indices):
    for index in indices:
        np.frombuffer(arena.slot(index), np.uint8)[:] = index + 1

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would bring unused neighbours
arena = HostArena(slot_bytes=3 << 20, max_slots=4096)  # 12 GiB of addresses
fill([0])
base, seen = resident(), {}
seen["reserved"] = resident() - base
fill(range(0, 40, 2))
seen["filled"] = resident() - base
arena.use(20)
seen["half given back"] = resident() - base
arena.use(40)
seen["in use again"] = resident() - base
fill(range(20, 40, 2))
seen["filled again"] = resident() - base
seen["intact"] = all(set(arena.slot(index)[:10]) == {index + 1} for index in range(0, 40, 2))
arena.close()
seen["closed"] = resident() - base
json.dump(seen, sys.stdout)
"""


@pytest.fixture
def arena():
    arena = HostArena(slot_bytes=8192, max_slots=5)
    yield arena
    arena.close()


def test_slots_are_page_aligned_and_apart(arena):
    for index in range(5):
        slot = np.frombuffer(arena.slot(index), np.uint8)
        assert slot.ctypes.data % 4096 == 0
        slot[:] = index + 1
    assert arena.buffer.shape == (5 * 8192,)
    assert np.array_equal(arena.buffer, np.repeat(np.arange(1, 6, dtype=np.uint8), 8192))


def test_slots_out_of_use_read_as_zeros_and_leave_the_others(arena):
    arena.buffer[:] = 7
    arena.use(3)
    arena.use(4)
    assert set(arena.slot(3)) == set(arena.slot(4)) == {0}
    assert set(arena.slot(0)) == set(arena.slot(2)) == {7}


def test_no_slot_outside(arena):
    for index in (-1, 5):
        with pytest.raises(IndexError):
            arena.slot(index)
    for slots in (-1, 6):
        with pytest.raises(IndexError):
            arena.use(slots)


@pytest.mark.parametrize(("slot_bytes", "max_slots"), [(0, 1), (5000, 1), (4096, 0), (-4096, 2)])
def test_only_whole_pages(slot_bytes, max_slots):
    with pytest.raises(ValueError, match="whole pages"):
        HostArena(slot_bytes, max_slots)


def test_more_addresses_than_there_are_is_refused_with_a_hint():
    with pytest.raises(FinemoeError) as caught:
        HostArena(slot_bytes=1 << 40, max_slots=1 << 12)
    assert caught.value.hint


def test_close_with_a_view_still_held(arena):
    held = arena.slot(0)
    arena.close()
    arena.close()
    assert held[0] == 0


def test_resident_memory_follows_the_slots_in_use():
    out = subprocess.run([sys.executable, "-c", _RESIDENT_SCRIPT], capture_output=True, text=True, check=True)
    seen = json.loads(out.stdout)
    slot = 3 * MIB
    assert seen["intact"]
    assert abs(seen["reserved"]) < MIB
    expected = {"filled": 19, "half given back": 9, "in use again": 9, "filled again": 19, "closed": -1}
    for when, slots in expected.items():
        assert abs(seen[when] - slots * slot) < MIB, (when, seen)


_HUGE_SCRIPT = """
import json, random, sys
import numpy as np
from offload.memory.arena import HostArena

SLOT, SLOTS = 663_552, 97

def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024

def huge():
    fields = dict(line.split(":", 1) for line in list(open("/proc/self/smaps_rollup"))[1:])
    return int(fields["AnonHugePages"].split()[0]) * 1024

arena = HostArena(SLOT, SLOTS)
used = 60
np.frombuffer(arena.slot(0), np.uint8)[:] = 1
base, before = resident() - SLOT, huge()
arena.use(used)
chance = random.Random(0)
seen = []
for _ in range(300):
    slot = chance.randrange(SLOTS)
    if slot < used:
        np.frombuffer(arena.slot(slot), np.uint8)[:] = slot
    if chance.random() < 0.2:
        used = max(1, min(SLOTS, used + chance.randrange(-9, 10)))
        arena.use(used)
    seen.append((resident() - base, used * SLOT))
arena.use(SLOTS)
for slot in range(SLOTS):
    np.frombuffer(arena.slot(slot), np.uint8)[:] = slot
json.dump({"seen": seen, "huge": huge() - before}, sys.stdout)
"""


def test_huge_pages_take_no_memory_outside():
    done = subprocess.run([sys.executable, "-c", _HUGE_SCRIPT], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert all(taken <= allowed + MIB for taken, allowed in facts["seen"])
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if modes.exists() and "[never]" not in modes.read_text():
        assert facts["huge"] > 0
