from __future__ import annotations

from offload.telemetry.counters import PhaseCounts
from offload.telemetry.snapshot import Completion, ExpertCounts, IoFacts, MemoryUse
from ui.stats import stats_rows, status_line

MIB = 1 << 20


def completion(**changed: object) -> dict:
    memory = MemoryUse(
        budget_bytes=1024 * MIB,
        peak_bytes=512 * MIB,
        rss_bytes=500 * MIB,
        base_bytes=100 * MIB,
        dense_bytes=240 * MIB,
        kv_bytes=90 * MIB,
        workspace_bytes=0,
        staging_bytes=0,
        arena_bytes=285 * MIB,
        slots=450,
        slot_bytes=664_000,
    )
    prefill = PhaseCounts(selections=1347, missed=1347, bytes_demand=852 * MIB, stall_s=0.25)
    decode = PhaseCounts(
        selections=100,
        resident=50,
        prefetched=25,
        late=5,
        missed=20,
        bytes_demand=8 * MIB,
        bytes_prefetch=4 * MIB,
        stall_s=0.4,
    )
    answer = Completion(
        model="demo",
        device="cpu",
        kernels="fast",
        policy="demand",
        prompt_tokens=36,
        reused_tokens=0,
        completion_tokens=5,
        token_ids=(1, 2, 3, 4, 5),
        text="hello",
        finish_reason="length",
        ttft_s=1.64,
        tpot_s=0.1,
        tokens_per_s=10.0,
        e2e_s=2.04,
        memory=memory,
        io=IoFacts(store="safetensors", note="", direct=False, direct_refused="tmpfs", lanes=1),
        experts=ExpertCounts(prefill, decode),
    ).to_dict()
    return answer | {"profile": "balanced"} | changed


def test_every_number_a_reader_wants():
    rows = dict(stats_rows(completion()))
    assert rows["speed"] == "10.0 tok/s · TTFT 1.64 s · TPOT 100.0 ms · 2.04 s in all"
    assert rows["tokens"] == "36 prompt · 5 answer · cut at the limit"
    assert rows["prefill"] == "hit 0.0% · 1347 missed · 852 MiB read · stall 0.25 s"
    assert rows["decode"] == (
        "hit 75.0% · 50 resident · 25 prefetched · 5 late · 20 missed · 3.00 MiB/token · stall 100.0 ms/token"
    )
    assert rows["memory"] == (
        "peak 512 MiB of 1.00 GiB (50%) · experts 285 MiB in 450 slots · dense 240 MiB · KV 90.0 MiB"
    )
    assert rows["setup"] == (
        "demo · profile balanced · demand policy · fast kernels · cpu · 1 lane · buffered reads (tmpfs)"
    )


def test_an_answer_that_was_stopped_at_once():
    nothing = ExpertCounts(PhaseCounts(), PhaseCounts()).to_dict()
    rows = dict(
        stats_rows(
            completion(
                completion_tokens=0,
                ttft_s=None,
                tpot_s=None,
                tokens_per_s=None,
                finish_reason="stopped",
                experts=nothing,
            )
        )
    )
    assert rows["tokens"] == "36 prompt · 0 answer · stopped"
    assert rows["speed"] == "2.04 s in all"
    assert "decode" not in rows


def test_the_status_line():
    assert status_line(completion()) == "5 tok · 10.0 tok/s · TTFT 1.64 s · hit 75% · balanced"
