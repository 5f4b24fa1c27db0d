"""The arithmetic of ``finemoe plan``, against the numbers that docs/plan.md works out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.forecast import (
    AUTO_WAIT,
    MachineRates,
    Waits,
    auto_wait,
    decode_seconds,
    fixed_costs,
    forecast,
    prefill_seconds,
    wait_seconds,
)
from offload.hits import HitCurve, known_curve
from offload.memory.budget import plan_slots
from offload.models.spec import spec_from_config
from offload.precision import expert_layout, matrix_bytes
from offload.sizes import ModelSizes
from offload.units import GIB

BY_HAND = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
PUBLISHED = json.loads((Path(__file__).parent / "published_models.json").read_text())
QWEN15, QWEN3, MIXTRAL = PUBLISHED
RATES = MachineRates(
    disk_rates=((1, 1e9), (2, 1.5e9), (4, 2e9)),
    lanes=4,
    kernel_bytes_per_s=20e9,
    memory_bytes_per_s=25e9,
    prompt_bytes_per_s=10e9,
    flops=150e9,
    memory_bytes=32 * GIB,
)
ROOM = replace(RATES, memory_bytes=256 * GIB)


def sizes_of(name):
    entry = PUBLISHED[name]
    return ModelSizes.unread(
        spec_from_config(Path(name), entry["config"]), entry["total_size"], entry["total_size"]
    )


@pytest.mark.parametrize(
    ("name", "expert", "experts", "total", "dense", "kv_4096"),
    [
        (QWEN15, 17_301_504, 1_440, 24_914_165_760, 3_717_402_624, 805_306_368),
        (QWEN3, 9_437_184, 6_144, 57_982_058_496, 3_082_186_752, 402_653_184),
        (MIXTRAL, 352_321_536, 256, 90_194_313_216, 3_211_272_192, 536_870_912),
    ],
)
def test_sizes_of_published_models_are_those_worked_out_by_hand(name, expert, experts, total, dense, kv_4096):
    sizes = sizes_of(name)
    assert sizes.spec.expert_bytes == expert
    assert sizes.spec.total_experts == experts
    assert sizes.experts_bytes == total
    assert sizes.dense_bytes == dense
    assert 4096 * sizes.spec.kv_bytes_per_token == kv_4096
    assert sizes.dense_bytes + sizes.experts_bytes == sizes.download_bytes
    for number in (expert, experts, total, dense, kv_4096):
        assert f"{number:,}" in BY_HAND


@pytest.mark.parametrize(
    ("name", "active"),
    [
        # Dense weights without the embedding table, and a token's experts: docs/plan.md.
        (QWEN15, 3_717_402_624 - 622_329_856 + 96 * 17_301_504),
        (QWEN3, 3_082_186_752 - 622_329_856 + 384 * 9_437_184),
        (MIXTRAL, 3_211_272_192 - 262_144_000 + 64 * 352_321_536),
    ],
)
def test_bytes_that_a_token_reads(name, active):
    sizes = sizes_of(name)
    assert sizes.active_dense_bytes + sizes.active_expert_bytes == active
    assert sizes.to_dict()["active_bytes_per_token"] == active


def test_memory_is_what_the_engine_plans():
    sizes = sizes_of(QWEN15)
    made = forecast(sizes, ROOM, context=4096, kernels="fast", experts_fraction=0.25)
    fixed = fixed_costs(sizes, 4096, "fast", ROOM.lanes)
    assert made.plan == plan_slots(sizes.spec, fixed, sizes.slot_bytes, 0.25)
    assert made.plan.slots == 360
    assert made.share == 0.25
    # The same budget in bytes gives experts what only prompts need.
    same = forecast(sizes, ROOM, context=4096, kernels="fast", budget_bytes=made.plan.budget_bytes)
    assert same.plan.slots == 360 + fixed.lendable_bytes // sizes.slot_bytes > 360
    assert same.plan.slots_with(0) == 360
    assert 0 <= same.plan.lent_bytes <= fixed.lendable_bytes


def test_resident_is_what_stays_so_through_a_long_prompt():
    sizes = sizes_of(QWEN15)
    fixed = fixed_costs(sizes, 4096, "fast", ROOM.lanes)
    whole = fixed.total + 1440 * sizes.slot_bytes
    verdicts = []
    for budget in (whole - fixed.lendable_bytes, whole - 1, whole):
        made = forecast(sizes, ROOM, context=4096, kernels="fast", budget_bytes=budget)
        assert (made.plan.slots, made.share) == (1440, 1.0)
        verdicts.append(made.verdict == "resident")
    assert verdicts == [False, False, True]


def test_a_long_context_costs_slots():
    sizes = sizes_of(QWEN15)
    short = forecast(sizes, ROOM, context=1024, kernels="fast", budget_bytes=12 * GIB)
    long = forecast(sizes, ROOM, context=8192, kernels="fast", budget_bytes=12 * GIB)
    assert long.plan.slots < short.plan.slots
    assert long.tokens_per_s < short.tokens_per_s
    beyond = forecast(sizes, ROOM, context=1 << 20, kernels="fast", budget_bytes=12 * GIB)
    assert beyond == long, "a model takes no longer context than it was made for"


def test_disk_rates_are_those_measured_and_lie_on_lines_between_them():
    assert [RATES.disk_bytes_per_s(threads) for threads in (1, 2, 3, 4, 8)] == [1e9, 1.5e9, 1.75e9, 2e9, 2e9]
    assert replace(RATES, lanes=2).disk_bytes_per_s(4) == 1.5e9, "no more than there are lanes"
    assert replace(RATES, disk_rates=((2, 3e9),)).disk_bytes_per_s(1) == 3e9


def test_speed_is_computing_and_stopping_and_waiting():
    """The example of docs/plan.md."""
    sizes = sizes_of(QWEN15)
    resident = forecast(sizes, ROOM, context=4096, kernels="fast", policy="demand", experts_fraction=1.0)
    computing = 4_756_017_152 / 20e9 + 24 * 0.08e-3 + 0.5e-3 + 151_936 * 0.06e-6
    assert resident.tokens_per_s == pytest.approx(1 / computing)
    assert f"{1000 * computing:.1f}" in BY_HAND

    half = HitCurve(((0.0, 0.5), (1.0, 0.5)), "half of them")
    made = forecast(sizes, ROOM, context=4096, kernels="fast", policy="demand", hits=half, experts_fraction=0.22)
    chances = {missing: count / 16 for missing, count in zip(range(1, 5), (4, 6, 4, 1), strict=True)}
    rates = {1: 1e9, 2: 1.5e9, 3: 1.75e9, 4: 2e9}
    shared = 3 * 2048 * 5632 * 2
    waits = {
        missing: missing * 17_301_504 / rates[missing] - (shared + (4 - missing) * 17_301_504) / 20e9
        for missing in chances
    }
    assert min(waits.values()) > 0
    stall = 24 * sum(chances[missing] * waits[missing] for missing in chances)
    stops = 24 * sum(chances.values()) * 0.35e-3
    reading = 24 * sum(chances[missing] * missing * 17_301_504 / rates[missing] for missing in chances)
    slowed = (1 - stall / reading) * 3 * 48 * 17_301_504 / 20e9
    assert made.misses_per_token == pytest.approx(48)
    assert made.stall_s == pytest.approx(stall)
    assert made.tokens_per_s == pytest.approx(1 / (computing + stops + stall + slowed))
    for number in (f"{1000 * stall:.0f}", f"{1000 * slowed:.0f}", f"{made.tokens_per_s:.2f}"):
        assert number in BY_HAND
    assert decode_seconds(sizes, ROOM, "reference") > 2 * decode_seconds(sizes, ROOM, "fast")


def test_auto_waits_for_a_part_and_pays_for_looking_ahead():
    sizes = sizes_of(QWEN15)
    half = HitCurve(((0.0, 0.5), (1.0, 0.5)), "half of them")
    made = forecast(sizes, ROOM, context=4096, kernels="fast", policy="auto", hits=half, experts_fraction=0.22)
    waits = wait_seconds(sizes, ROOM, "fast", 0.5)
    share = auto_wait(sizes, ROOM, "fast")
    # A read takes 17.3 ms, a layer with its part of the head 10.0 ms, which is 1.73 of it.
    assert share == pytest.approx(0.69 + (0.80 - 0.69) * (1.726 - 1.5) / 2.5, abs=1e-3)
    seconds = decode_seconds(sizes, ROOM, "fast") + waits.stops_s + 24 * 0.15e-3 + share * waits.waiting_s
    slowed = (1 - share * waits.waiting_s / waits.reading_s) * 3 * 48 * 17_301_504 / 20e9
    assert made.stall_s == pytest.approx(share * waits.waiting_s)
    assert made.tokens_per_s == pytest.approx(1 / (seconds + slowed))


def test_a_disk_that_is_faster_than_computing_is_not_waited_for():
    sizes = sizes_of(QWEN15)
    fast = replace(ROOM, disk_rates=((1, 1e12),))
    waits = wait_seconds(sizes, fast, "fast", 0.9)
    assert waits.stops_s > 0 and waits.waiting_s == 0
    assert waits.slowed_s(0.0, fast) == pytest.approx(3 * 9.6 * 17_301_504 / 20e9), "but memory has its part of it"
    assert wait_seconds(sizes, ROOM, "fast", 1.0) == Waits(0, 0, 0, 0)
    assert Waits(0, 0, 0, 0).slowed_s(0.0, fast) == 0


def test_reading_ahead_hides_more_the_faster_the_disk_is():
    sizes = sizes_of(QWEN15)
    shares = [auto_wait(sizes, replace(ROOM, disk_rates=((1, rate),)), "fast") for rate in (1e12, 5e9, 1e9, 2e8)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(AUTO_WAIT[0][1], abs=0.01) and shares[-1] == AUTO_WAIT[-1][1]
    speeds = {
        policy: forecast(
            sizes, ROOM, context=4096, kernels="fast", policy=policy, experts_fraction=0.25
        ).tokens_per_s
        for policy in ("auto", "demand", "lfu")
    }
    assert speeds["auto"] > speeds["demand"] == speeds["lfu"]


def test_what_is_known_of_the_routing_decides():
    sizes = sizes_of(QWEN15)
    flat = HitCurve(((0.0, 0.0), (1.0, 1.0)), "by chance")
    guess, known = (
        forecast(sizes, ROOM, context=4096, kernels="fast", hits=hits, experts_fraction=0.25)
        for hits in (None, flat)
    )
    assert guess.hit_rate == known_curve(sizes.spec).at(0.25) > 0.7
    assert known.hit_rate == 0.25 and known.tokens_per_s < guess.tokens_per_s


def test_the_first_token_waits_for_the_union_of_the_prompts_experts():
    sizes = sizes_of(QWEN15)
    slow = replace(ROOM, disk_rates=((1, 1e8),))
    cold, half = (prefill_seconds(sizes, slow, resident=share) for share in (0.0, 0.5))
    # 40 tokens leave an expert out with probability (56/60)^40 = 6.3 %: 1,349 of the 1,440 are read.
    assert 2 * (cold - half) * 1e8 / 17_301_504 == pytest.approx(1_349, abs=1)
    # What is computed meanwhile costs nothing more.
    assert prefill_seconds(sizes, ROOM, resident=1.0) < prefill_seconds(sizes, ROOM, resident=0.0)
    # A measured cold prompt of 40 tokens took 10 s on a disk of 1.8 GB/s, with these shapes.
    measured = prefill_seconds(sizes, replace(ROOM, disk_rates=((4, 1.8e9),)), resident=0.0)
    assert 10 / 1.6 < measured < 10 * 1.6


@pytest.mark.parametrize(
    ("fraction", "disk", "memory", "verdict"),
    [
        (1.0, 1e9, 256 * GIB, "resident"),
        (0.5, 20e9, 256 * GIB, "usable"),
        (0.25, 1e9, 256 * GIB, "usable"),
        (0.0, 1e9, 256 * GIB, "slow"),
        (1.0, 1e9, 32 * GIB, "resident"),
        (1.0, 1e9, 24 * GIB, "does not fit"),
        (0.0, 1e9, 4 * GIB, "does not fit"),
    ],
)
def test_verdicts(fraction, disk, memory, verdict):
    rates = replace(RATES, disk_rates=((4, disk),), memory_bytes=memory)
    made = forecast(sizes_of(QWEN15), rates, context=4096, kernels="fast", experts_fraction=fraction)
    assert made.verdict == verdict, made.reason
    assert (made.plan is None) == (verdict == "does not fit")
    assert made.reason and "\n" not in made.reason
    assert json.dumps(made.to_dict())


def test_fast_is_from_five_tokens_a_second_on():
    rates = replace(RATES, disk_rates=((1, 20e9),), kernel_bytes_per_s=60e9)
    made = forecast(sizes_of(QWEN15), rates, context=4096, kernels="fast", experts_fraction=0.5)
    assert made.verdict == "fast"
    assert made.tokens_per_s >= 5


def test_a_budget_that_is_too_small_names_the_smallest_that_works():
    sizes = sizes_of(QWEN15)
    smallest = forecast(sizes, RATES, context=4096, kernels="fast", experts_fraction=0.0).plan.budget_bytes
    assert forecast(sizes, RATES, context=4096, kernels="fast", budget_bytes=smallest).plan is not None
    made = forecast(sizes, RATES, context=4096, kernels="fast", budget_bytes=smallest - 1)
    assert made.verdict == "does not fit"
    assert "the least is" in made.reason


def test_experts_that_take_two_reads_need_staging():
    assert sizes_of(QWEN3).staging_bytes == 0
    mixtral = sizes_of(MIXTRAL)
    assert mixtral.staging_bytes > mixtral.spec.expert_bytes
    fixed = fixed_costs(mixtral, 4096, "reference", lanes=2)
    assert fixed.staging_bytes == 2 * mixtral.staging_bytes


def test_tensors_that_are_fewer_than_the_experts_are_not_of_that_configuration():
    sizes = sizes_of(QWEN15)
    with pytest.raises(CorruptCheckpoint, match=r"describes 23\.2 GiB of experts"):
        replace(sizes, tensor_bytes=sizes.experts_bytes)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_model_takes_what_its_pack_would(precision):
    plain = sizes_of(QWEN15)
    sizes = plain.packed_as(precision)
    assert plain.packed_as("bf16") is plain
    assert sizes.expert_bytes == expert_layout(precision, 2048, 1408).nbytes
    assert sizes.slot_bytes % 4096 == 0
    assert 0 <= sizes.slot_bytes - sizes.expert_bytes < 4096
    shapes = [(2048, 2048)] * 4 + [(5632, 2048)] * 2 + [(2048, 5632)]
    layer = sum(matrix_bytes(precision, *shape) for shape in shapes)
    small = 2 * (3 * 2048 + 60 * 2048 + 2048 + 2 * 2048)  # biases, router, gate, norms
    exact = 24 * (layer + small) + 2 * matrix_bytes(precision, 151_936, 2048) + 2 * 2048
    assert sizes.dense_bytes == pytest.approx(exact, rel=0.01)
    table = matrix_bytes(precision, 151_936, 2048)
    assert sizes.active_dense_bytes == pytest.approx(exact - table, rel=0.01)


def test_a_quantised_model_is_faster_in_less_memory():
    by_precision = [sizes_of(QWEN15).packed_as(precision) for precision in ("bf16", "int8", "int4")]
    speeds, slots = [], []
    for sizes in by_precision:
        made = forecast(sizes, ROOM, context=4096, kernels="fast", budget_bytes=8 * GIB)
        speeds.append(made.tokens_per_s)
        slots.append(made.plan.slots)
        assert forecast(sizes, ROOM, context=4096, kernels="fast", budget_bytes=8 * GIB).plan.fixed.dense_bytes == (
            sizes.dense_bytes
        )
    assert speeds == sorted(speeds)
    assert slots == sorted(slots)
    # Transformers' modules unpack all of it for each token.
    assert decode_seconds(by_precision[2], ROOM, "reference") > decode_seconds(by_precision[0], ROOM, "reference")
    # Prompts are computed alike and read less.
    assert prefill_seconds(by_precision[1], ROOM, resident=1.0) == prefill_seconds(
        by_precision[0], ROOM, resident=1.0
    )
    assert prefill_seconds(by_precision[1], ROOM, resident=0.0) < prefill_seconds(
        by_precision[0], ROOM, resident=0.0
    )


def test_families_that_are_not_quantised():
    with pytest.raises(UnsupportedModel, match="of type mixtral, which finemoe does not quantise"):
        sizes_of(MIXTRAL).packed_as("int8")
