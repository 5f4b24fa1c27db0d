"""A sweep: its bound by hand, its points, its figure, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from finemoe_cli.bench.plan import Configuration, Workload
from finemoe_cli.bench.samples import Measured, Opened, Sample
from finemoe_cli.bench.sweep import COLUMNS, as_csv, belady_bytes, points_of
from finemoe_cli.figures.canvas import render
from finemoe_cli.figures.sweep import draw_sweep
from offload.config import EngineConfig
from offload.forecast import Forecast
from offload.memory.budget import FixedCosts, MemoryPlan
from offload.models import read_spec
from offload.store.safetensors_index import CheckpointIndex
from offload.units import MIB
from profiles.hit_curves import kept_curve
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer

WORK = Workload(prompt=40, generate=5, repeats=1, seed=0, cold=False)
ROUTING = [[[[0, 1]], [[2, 3]], [[0, 1]], [[2, 3]]]]
"""One answer of four tokens, one layer: two pairs of four experts take turns."""


def measured(
    slots: int, seconds: float, stall: float, resident: list[int], disk: tuple[float, float] = (10.0, 10.0)
) -> Measured:
    opened = Opened(
        device="cpu", kernels="fast", policy="demand", threads=1, lanes=1, direct=True, store="safetensors",
        load_s=1.0, budget_bytes=slots * 100 * MIB, slots=slots, slot_bytes=MIB,
        record_bytes=MIB, experts=4,
    )  # fmt: skip
    answer = Sample(
        tokens=4, seconds=seconds, selections=8, hits=4, nbytes=4 * MIB, stall_s=stall, major_faults=0,
        minor_faults=0, intervals=[seconds / 4] * 4, token_ids=[1, 2, 3, 4, 5], resident=resident,
    )  # fmt: skip
    prompt = Sample(40, 2.0, 4, 0, 4 * MIB, 0.0, 0, 0)
    return Measured(opened, [prompt], [answer], slots * 90 * MIB, [rate * MIB for rate in disk], ROUTING)


def test_the_bound_reads_what_min_reads_from_where_decoding_began():
    # Two slots hold one pair: each of the other three tokens reads two.
    assert belady_bytes(measured(2, 1.0, 0.5, [0, 1]), ROUTING, 4) == 6 * MIB / 4
    # Nothing resident: all four tokens do. With three slots, one of a pair stays: MIN keeps what comes sooner.
    assert belady_bytes(measured(2, 1.0, 0.5, []), ROUTING, 4) == 8 * MIB / 4
    assert belady_bytes(measured(4, 1.0, 0.5, [0, 1]), ROUTING, 4) == 2 * MIB / 4
    assert belady_bytes(measured(4, 1.0, 0.5, [0, 1, 2, 3]), ROUTING, 4) == 0


def points(tmp_path: Path, disk: tuple[float, float] = (10.0, 10.0)):
    both = [
        (Configuration("demand", f"{share}%", "bf16", EngineConfig(model=tmp_path)), result)
        for share, result in (
            (100, measured(4, 2.0, 0.0, [0, 1, 2, 3], disk)),
            (50, measured(2, 4.0, 1.6, [0, 1], disk)),
        )
    ]
    plan = MemoryPlan(1, FixedCosts(0, 0, 0, 0, 0), 4, 1)
    forecasts = [
        Forecast("resident", "", plan, share=1.0, hit_rate=1.0, tokens_per_s=1.8, ttft_warm_s=1.5),
        Forecast("does not fit", "", None),
    ]
    return points_of(WORK, both, forecasts, ROUTING, 4)


def test_points_have_the_measured_the_bound_and_the_forecast(tmp_path):
    half, whole = points(tmp_path)
    assert (half.budget, half.share, whole.budget, whole.share) == ("50%", 0.5, "100%", 1.0)
    assert (whole.measured_s, whole.compute_s, half.measured_s) == (0.5, 0.5, 1.0)
    assert half.compute_s == pytest.approx(0.6) and half.stall_s == pytest.approx(0.4)
    # Least computing 0.5 s; MIN reads 1.5 MiB a token at 10 MiB a second.
    assert whole.bound_s == 0.5 and half.bound_s == 0.5 and half.belady_mib == 1.5
    assert whole.error == pytest.approx(-0.1) and whole.forecast_tokens_per_s == 1.8
    assert (half.error, half.forecast_s, half.forecast_hit_rate) == (None, None, None)
    assert (whole.ttft_s, whole.forecast_ttft_s) == (2.0, 1.5)


def test_its_own_bound_is_by_what_was_read(tmp_path):
    # 1 MiB a token, at 1 and at 0.6 MiB a second; MIN would have read 1.5 of half the experts and none of all.
    half, whole = points(tmp_path, disk=(1.0, 0.6))
    assert half.own_bound_s == whole.own_bound_s == pytest.approx((1 + 1 / 0.6) / 2)
    assert half.bound_s == pytest.approx(1.5 * half.own_bound_s) and whole.bound_s == 0.5
    assert points(tmp_path)[0].own_bound_s == 0.5, "computing takes longer"


def test_the_figure_shows_the_table_and_is_the_same_every_time(tmp_path):
    drawing = draw_sweep(points(tmp_path), "tiny, demand")
    assert "With 50% a token takes 1000 ms, with 100% 500 ms" in drawing.says
    rows = list(csv.DictReader(as_csv(points(tmp_path)).splitlines()))
    assert [row["budget"] for row in rows] == ["50%", "100%"] and tuple(rows[0]) == COLUMNS
    assert drawing.table() == as_csv(points(tmp_path))
    for panel in drawing.figure.axes:
        for line in panel.get_lines():
            assert all(0 <= x <= panel.get_xlim()[1] for x in line.get_xdata()), "every point is to be seen"
    one, again = (render(draw_sweep(points(tmp_path), "tiny, demand").figure, "svg", "sweep") for _ in range(2))
    assert one == again
    text = "".join(ElementTree.fromstring(one).itertext())
    for words in ("tiny, demand", "measured", "forecast", "bound", "memory budget, GiB", "hit rate"):
        assert words in text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("sweep") / "tiny", layers=2, experts=8)
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|im_end|>", template=CHATML)


def test_a_sweep_writes_its_files_and_teaches_the_plan(quick_disk, tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done = quick_disk(
        "bench", "sweep", str(tiny), "--budgets", "50%,100%", "-n", "12", "-r", "1", "--policy", "demand",
        "--context", "256", "--figure", "svg,png", "-o", str(out), "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == {"sweep.csv", "sweep.json", "sweep.svg", "sweep.png"}
    data = json.loads(done.out)
    assert json.loads((out / "sweep.json").read_text()) == data
    half, whole = data["points"]
    assert (half["budget"], whole["budget"], data["policy"]) == ("50%", "100%", "demand")
    assert whole["hit_rate"] == 1 and whole["belady_mib"] == 0 and half["belady_mib"] <= half["mib_per_token"]
    for point in data["points"]:
        assert point["bound_s"] > 0 and point["measured_s"] > 0
        assert point["error"] == pytest.approx(point["forecast_tokens_per_s"] * point["measured_s"] - 1)
    assert data["hits_source"] == "published for other models"
    assert data["calibration"]["disk_rates"] and data["calibration"]["kernel_bytes_per_s"] > 0
    assert np.isfinite(half["error"])

    # From now on the plan knows this model.
    monkeypatch.setenv("FINEMOE_CACHE_DIR", quick_disk.environment["FINEMOE_CACHE_DIR"])
    curve = kept_curve(read_spec(tiny), CheckpointIndex.open(tiny))
    assert curve is not None and "11 tokens" in curve.source
    planned = quick_disk("plan", str(tiny), "--json")
    assert planned.json["hits"]["source"] == curve.source
    assert [tuple(point) for point in planned.json["hits"]["points"]] == list(curve.points)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "demand,auto"], "one policy and one precision"),
        (["-n", "0"], "a sweep generates tokens"),
        (["--figure", "gif"], "there is no figure 'gif'"),
        (["--budgets", "25%,x"], "x"),
    ],
)
def test_sweeps_that_cannot_be_are_refused(finemoe, tiny, words, said):
    done = finemoe("bench", "sweep", str(tiny), *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err and done.err.count("\n") <= 2
