"""The arithmetic of ``finemoe plan``, against the numbers that docs/plan.md works out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offload.errors import CorruptCheckpoint
from offload.forecast import (
    PUBLISHED_HITS,
    MachineRates,
    ModelSizes,
    decode_seconds,
    fixed_costs,
    forecast,
    hit_rate,
    prefill_seconds,
)
from offload.memory.budget import plan_slots
from offload.models.spec import spec_from_config
from offload.units import GIB

BY_HAND = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
PUBLISHED = json.loads((Path(__file__).parent / "published_models.json").read_text())
QWEN15, QWEN3, MIXTRAL = PUBLISHED
RATES = MachineRates(disk_bytes_per_s=1e9, lanes=4, memory_bytes_per_s=20e9, flops=200e9, memory_bytes=32 * GIB)
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
    # The same budget in bytes is the same plan.
    same = forecast(sizes, ROOM, context=4096, kernels="fast", budget_bytes=made.plan.budget_bytes)
    assert same == made


def test_a_long_context_costs_slots():
    sizes = sizes_of(QWEN15)
    short = forecast(sizes, ROOM, context=1024, kernels="fast", budget_bytes=12 * GIB)
    long = forecast(sizes, ROOM, context=8192, kernels="fast", budget_bytes=12 * GIB)
    assert long.plan.slots < short.plan.slots
    assert long.tokens_per_s < short.tokens_per_s
    beyond = forecast(sizes, ROOM, context=1 << 20, kernels="fast", budget_bytes=12 * GIB)
    assert beyond == long, "a model takes no longer context than it was made for"


def test_the_hit_model_goes_through_the_published_points_above_two_working_sets():
    spec = sizes_of(QWEN3).spec
    for share, hits in PUBLISHED_HITS:
        if share >= 2 * spec.top_k / spec.num_experts:
            assert hit_rate(spec, round(share * spec.total_experts)) == pytest.approx(hits, abs=0.003)


@pytest.mark.parametrize("name", [QWEN15, QWEN3, MIXTRAL])
def test_the_hit_model_is_nothing_below_a_working_set_and_never_falls(name):
    spec = sizes_of(name).spec
    rates = [hit_rate(spec, slots) for slots in range(spec.total_experts + 1)]
    assert set(rates[: spec.num_layers * spec.top_k + 1]) == {0.0}
    assert rates == sorted(rates)
    assert rates[-1] == 1.0


def test_speed_is_the_two_costs_added():
    sizes = sizes_of(QWEN15)
    made = forecast(sizes, ROOM, context=4096, kernels="fast", experts_fraction=0.22)
    misses = 96 * (1 - hit_rate(sizes.spec, made.plan.slots))
    seconds = 4_756_017_152 / 20e9 * 1.25 + 24 * 0.1e-3 + misses * 17_301_504 / 1e9
    assert made.misses_per_token == pytest.approx(misses)
    assert made.tokens_per_s == pytest.approx(1 / seconds)
    assert decode_seconds(sizes, ROOM, "reference") > decode_seconds(sizes, ROOM, "fast")
    resident = forecast(sizes, ROOM, context=4096, kernels="fast", experts_fraction=1.0)
    assert resident.tokens_per_s == pytest.approx(1 / decode_seconds(sizes, ROOM, "fast"))


def test_the_first_token_waits_for_the_union_of_the_prompts_experts():
    sizes = sizes_of(QWEN15)
    cold, warm = (prefill_seconds(sizes, ROOM, "fast", resident=share) for share in (0.0, 1.0))
    # 40 tokens leave an expert out with probability (56/60)^40 = 6.3 %: 1,349 of the 1,440 are read.
    assert (cold - warm) * 1e9 / 17_301_504 == pytest.approx(1_349, abs=1)
    # A measured cold prompt of 40 tokens took 10 s on a disk of 1.8 GB/s, with these shapes.
    measured = prefill_seconds(sizes, replace(ROOM, disk_bytes_per_s=1.8e9), "fast", resident=0.0)
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
    rates = replace(RATES, disk_bytes_per_s=disk, memory_bytes=memory)
    made = forecast(sizes_of(QWEN15), rates, context=4096, kernels="fast", experts_fraction=fraction)
    assert made.verdict == verdict, made.reason
    assert (made.plan is None) == (verdict == "does not fit")
    assert made.reason and "\n" not in made.reason
    assert json.dumps(made.to_dict())


def test_fast_is_from_five_tokens_a_second_on():
    rates = replace(RATES, disk_bytes_per_s=20e9, memory_bytes_per_s=60e9)
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
