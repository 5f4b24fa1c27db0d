"""Each figure shows what its table says, and its table what the rows say."""

from __future__ import annotations

import csv
import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from finemoe_cli.figures import FIGURES
from finemoe_cli.figures.canvas import Drawing, render, styled
from finemoe_cli.figures.gallery import draw_all
from finemoe_cli.figures.latency import POINTS, distribution
from finemoe_cli.figures.sources import Source, labelled
from offload.errors import NotFound
from offload.telemetry.counters import Phase
from offload.trace.recall import Recall
from tests.finemoe_cli.figures.made_up import KINDS, combination, row, source
from tests.finemoe_cli.figures.reading import texts

RECALL = Recall(3, {"the token before": [0.5, 0.4, None], "expert maps": [0.75, 0.5, 0.25]}, 1 / 6, 40)


def drawing(name: str, *sources: Source, request: str | None = None) -> Drawing:
    (found,), left_out = draw_all([name], sources, request)
    assert not left_out
    return found


def table(found: Drawing) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(found.table())))


def lines(found: Drawing, panel: int = 0) -> list[list[tuple[float, float]]]:
    return [
        list(zip(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float), strict=True))
        for line in found.figure.axes[panel].lines
    ]


def test_policies():
    run = source()
    found = drawing("policies", run)
    cells = table(found)
    for cell in cells:
        (one,) = run.of(cell["policy"], cell["budget"])
        wanted = {
            "hit_rate": one.metrics["decode"]["hit_rate"],
            "tpot_s": one.metrics["tpot_s"]["median"],
            "ttft_s": one.metrics["ttft_s"]["median"],
        }
        assert float(cell["mean"]) == float(cell["min"]) == pytest.approx(wanted[cell["metric"]])
    assert len(cells) == 2 * 2 * 3
    # The smaller budget comes first, and what is drawn is what the table says.
    places = [label.get_text() for label in found.figure.axes[0].get_xticklabels()]
    assert places == ["small", "large"]
    hits = {(c["policy"], c["budget"]): float(c["mean"]) for c in cells if c["metric"] == "hit_rate"}
    drawn = [line for line in lines(found) if len(line) == 2]
    assert [(0.0, hits["finemoe", "small"]), (1.0, hits["finemoe", "large"])] in drawn
    assert {"demand", "finemoe"} <= set(texts(render(found.figure, "svg", "x")))


@pytest.mark.parametrize("name", FIGURES)
def test_axes_and_dotted_lines_say_what_they_are(name):
    found = drawing(name, source(recall=RECALL))
    charts = [ax for ax in found.figure.axes if ax.get_label() != "<colorbar>"]
    assert charts[-1].get_xlabel()
    # Where each panel is of something else, its title says what goes up.
    assert charts[0].get_title(loc="left") if name in ("policies", "entropy") else charts[0].get_ylabel()
    if name not in ("timeline", "maps"):
        assert all(ax.get_xlabel() for ax in charts)
    dotted = {line.get_linestyle() for ax in charts for line in ax.lines if line.get_marker() == "None"}
    said = [text.get_text() for legend in found.figure.legends for text in legend.get_texts()]
    assert bool(dotted) == any(text in said for text in ("by chance", "all experts alike")) or name == "timeline"


def test_seeds_of_a_policy_are_one_point_with_a_range():
    seeds = [combination("demand", "small", first=first) for first in (0, 10)]
    found = drawing("policies", source(combinations=[*seeds, combination("demand", "large")]))
    hits = [one.metrics["decode"]["hit_rate"] for one in seeds]
    cell = next(c for c in table(found) if (c["budget"], c["metric"]) == ("small", "hit_rate"))
    assert (cell["seeds"], float(cell["mean"])) == ("2", pytest.approx(np.mean(hits)))
    assert [float(cell["min"]), float(cell["max"])] == pytest.approx(sorted(hits))


def test_one_budget_is_bars():
    found = drawing("policies", source(combinations=[combination(name, "small") for name in ("demand", "auto")]))
    cells = [float(c["mean"]) for c in table(found) if c["metric"] == "hit_rate"]
    assert [bar.get_height() for bar in found.figure.axes[0].patches] == pytest.approx(cells)


def test_latencies():
    run = source()
    found = drawing("latency", run)
    for metric in ("ttft_s", "itl_s"):
        for one in run.combinations:
            own = [
                c
                for c in table(found)
                if (c["policy"], c["budget"], c["metric"]) == (one.policy, one.place, metric)
            ]
            values = sorted(v for r in one.rows for v in (r["itl_s"] if metric == "itl_s" else [r["ttft_s"]]))
            assert [float(c["seconds"]) for c in own] == values
            assert [float(c["share"]) for c in own] == pytest.approx(np.arange(1, len(values) + 1) / len(values))
    drawn = [line for panel in range(4) for line in lines(found, panel)]
    assert sum(map(len, drawn)) == len(found.rows)


def test_many_values_are_thinned_evenly():
    times, shares = distribution(np.random.default_rng(0).normal(size=10_000).tolist())
    assert len(times) == POINTS and (np.diff(times) >= 0).all() and shares[-1] == 1
    assert np.abs(shares - np.linspace(0, 1, POINTS)).max() < 1e-3


def test_layers():
    run = source()
    for cell in table(drawing("layers", run)):
        (one,) = run.of(cell["policy"], cell["budget"])
        of_layer = {
            kind: sum(r["layers"][cell["phase"]][kind][int(cell["layer"])] for r in one.rows) for kind in KINDS
        }
        hits = of_layer["resident"] + of_layer["prefetched"]
        assert float(cell["hit_rate"]) == pytest.approx(hits / sum(of_layer.values()))


def test_a_layer_that_was_never_asked_is_a_hole():
    one = combination("demand", "small", requests=1)
    for kind in KINDS:
        one.rows[0]["layers"]["decode"][kind][2] = 0
    cells = [c for c in table(drawing("layers", source(combinations=[one]))) if c["phase"] == "decode"]
    assert [c["hit_rate"] == "" for c in cells] == [False, False, True, False]


def test_a_request():
    run = source()
    found = drawing("timeline", run, request="talk-1/1")
    assert found.title == "Request talk-1/1"
    for one in run.combinations:
        said = one.rows[1]
        own = [cell for cell in table(found) if cell["combination"] == one.name]
        assert [float(cell["end_s"]) for cell in own] == said["token_times_s"]
        assert [float(cell["stall_s"]) for cell in own[1:]] == said["passes"]["stall_s"]
        assert [int(cell["late"]) for cell in own[1:]] == said["passes"]["late"]
    assert drawing("timeline", run, request="talk-1").title == "Request talk-1/1"
    with pytest.raises(NotFound, match="has no answered request 'talk-9'"):
        draw_all(["timeline"], [run], "talk-9")


def test_time_in_a_queue_is_not_the_engines():
    one = combination("demand", "small", requests=0)
    rows = [row("demand", "small", 0, queue_s=5.0)]
    cells = table(drawing("timeline", source(combinations=[type(one)("a", "demand", "small", one.metrics, rows)])))
    assert [float(cell["end_s"]) for cell in cells] == pytest.approx(np.array(rows[0]["token_times_s"]) - 5)


def test_many_combinations_are_too_many_for_a_timeline():
    run = source(policies=("demand", "finemoe", "auto", "lfu"))
    found = drawing("timeline", run)
    assert len(found.figure.axes) == 6 and "2 more combinations are left out" in found.says
    assert {cell["combination"] for cell in table(found)} == {one.name for one in run.combinations[:6]}


def test_maps():
    run = source()
    routing = run.routing
    assert routing is not None
    cells = table(drawing("maps", run))
    whole = routing.counts[Phase.DECODE]
    of_all = [float(c["share"]) for c in cells if c["map"] == "3 requests"]
    assert np.reshape(of_all, whole.shape) == pytest.approx(whole / whole.sum(axis=1, keepdims=True))
    titles = list(dict.fromkeys(c["map"] for c in cells))
    assert titles == ["3 requests", "talk-0/1: 9 tokens", "its iteration 2", "its iteration 8"]
    fine = [float(c["share"]) for c in cells if c["map"] == "its iteration 8"]
    kept = routing.shown_map[3].astype(float)
    assert np.reshape(fine, kept.shape) == pytest.approx(kept / kept.sum(axis=1, keepdims=True))


def test_entropies():
    run = source()
    routing = run.routing
    assert routing is not None
    found = drawing("entropy", run)
    cells = table(found)
    for kind, values in (
        ("fine: one token", routing.fine),
        ("coarse: probabilities", routing.coarse),
        ("coarse: choices", routing.chosen),
    ):
        own = [c for c in cells if c["kind"] == kind]
        assert [float(c["x"]) for c in own if c["of"] == "share"] == pytest.approx(sorted(values.ravel().tolist()))
        assert [float(c["y"]) for c in own if c["of"] == "layer"] == pytest.approx(values.mean(axis=0))
    # The axes go from nothing to what equal use of all experts would have.
    even = np.log(routing.experts)
    assert found.figure.axes[0].get_xlim() == pytest.approx((0, 1.05 * even))
    assert found.figure.axes[1].get_ylim() == pytest.approx((0, 1.05 * even))
    steps = table(drawing("entropy-steps", run))
    assert [int(c["tokens"]) for c in steps if c["kind"] == "coarse: choices"] == list(range(1, 10))
    first = {c["kind"]: float(c["entropy"]) for c in steps if c["tokens"] == "1"}
    assert first["fine: one token"] == pytest.approx(first["coarse: probabilities"], abs=1e-5)


def test_distances():
    found = drawing("distance", source(recall=RECALL))
    assert [(c["predictor"], c["layers_ahead"], c["recall"]) for c in table(found)] == [
        ("the token before", "1", "0.5"),
        ("the token before", "2", "0.4"),
        ("expert maps", "1", "0.75"),
        ("expert maps", "2", "0.5"),
        ("expert maps", "3", "0.25"),
        ("chance", "", str(1 / 6)),
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_several_sources_are_told_apart(name):
    """Panels of each data set; a timeline is of one run."""
    sources = [source("sharegpt", recall=RECALL), source("lmsys", recall=RECALL)]
    found = drawing(name, *sources)
    words = " ".join(texts(render(found.figure, "svg", name)))
    if name != "timeline":
        assert {cell["data"] for cell in table(found)} == {"sharegpt", "lmsys"}
        assert "sharegpt" in words and "lmsys" in words


def test_what_cannot_be_drawn_is_left_out():
    nothing = source(combinations=[], routing=None)
    drawings, left_out = draw_all(FIGURES, [nothing])
    assert not drawings and set(left_out) == set(FIGURES)
    assert all("\n" not in why for why in left_out.values())


def test_labels_differ():
    def labels(*named: tuple[str, str]) -> list[str]:
        return [one.label for one in labelled([Source(label, Path(path), [], None, None) for label, path in named])]

    assert labels(("sample", "a"), ("lmsys", "a")) == ["sample", "lmsys"]
    assert labels(("sample", "x/a"), ("sample", "x/b")) == ["sample, a", "sample, b"]
    assert labels(("sample", "x/a"), ("sample", "y/a")) == ["sample, x/a", "sample, y/a"]


def test_words_fit():
    """None lies outside of its figure, and none over another, also where names are long."""
    label = "a data set with a name that is longer than any panel is wide"
    policies = ("mixtral-offloading", "moe-infinity", "layer-lru")
    sources = [source(f"{number}, {label}", policies=policies, recall=RECALL) for number in (1, 2)]
    for name in FIGURES:
        figure = drawing(name, *sources).figure
        with styled():
            figure.draw_without_rendering()
        titles = [ax.title for ax in figure.axes] + [ax._left_title for ax in figure.axes]  # type: ignore[attr-defined]
        words = [title for title in titles if title.get_text()]
        words += [ax.xaxis.label for ax in figure.axes if ax.get_xlabel()]
        words += [text for legend in figure.legends for text in legend.get_texts()]
        boxes = [text.get_window_extent() for text in words]
        for text, box in zip(words, boxes, strict=True):
            assert box.x0 >= -1 and box.y0 >= -1, (name, text)
            assert box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1, (name, text)
        for one, other in combinations(zip(words, boxes, strict=True), 2):
            assert not one[1].padded(-1).overlaps(other[1].padded(-1)), (name, one[0], other[0])
