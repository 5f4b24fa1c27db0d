"""The map: every place says where its experts are, ranked by heat, and hues mean the same everywhere."""

from __future__ import annotations

import asyncio
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.memory.residency import ABSENT, LOADING, RESIDENT
from tests.support.screens import colours, until
from tests.support.synthetic import SyntheticEngine
from tests.ui.panes.test_pictures import PanesApp
from ui.panes.axis import LayerAxis
from ui.panes.expert_map import ABSENT_TIER, FRESH_TIER, LOADING_TIER, MISSED_TIER, RESIDENT_TIER, ExpertMap
from ui.panes.history import FrameHistory
from ui.panes.layer_bars import LayerBars
from ui.panes.pane import KINDS, Pane


def history_of(engine: SyntheticEngine, tokens: int = 10) -> FrameHistory:
    history = FrameHistory()
    for frame in list(engine.run(tokens))[:-1]:
        history.add(frame)
    engine.token(1)
    history.add(engine.frame())
    history.add_records(engine.records(0))
    return history


def test_each_expert_has_its_own_place_where_there_is_room() -> None:
    engine = SyntheticEngine(4, 6, 2, slots=10)
    history = history_of(engine)
    tiers, levels = ExpertMap().places(history, LayerAxis.fit(4, 40), 6)
    assert tiers.shape == levels.shape == (6, 4)
    missed = set(history.just_missed().tolist())
    for layer in range(4):
        order = np.argsort(-history.heat[layer * 6 : layer * 6 + 6], kind="stable")
        for rank, expert in enumerate(order.tolist()):
            number = layer * 6 + expert
            expected = {ABSENT: ABSENT_TIER, LOADING: LOADING_TIER, RESIDENT: RESIDENT_TIER}[
                int(engine.state[number])
            ]
            if engine.fresh[number]:
                expected = FRESH_TIER
            if number in missed:
                expected = MISSED_TIER
            assert tiers[rank, layer] == expected


@given(
    layers=st.integers(1, 20),
    experts=st.integers(1, 40),
    rows=st.integers(1, 50),
    width=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=30)
def test_nothing_that_matters_is_lost_in_a_shared_place(
    layers: int, experts: int, rows: int, width: int, seed: int
) -> None:
    engine = SyntheticEngine(layers, experts, 1, slots=max(1, layers * experts // 2), seed=seed)
    random = np.random.default_rng(seed)
    engine.state = random.integers(0, 3, layers * experts).astype(np.uint8)
    engine.fresh = (random.random(layers * experts) < 0.1).astype(np.uint8)
    history = FrameHistory()
    history.add(engine.frame())
    axis = LayerAxis.fit(layers, width)
    tiers, levels = ExpertMap().places(history, axis, rows)
    assert tiers.shape == levels.shape == (min(rows, experts), axis.groups)
    loading = (engine.state == LOADING).any()
    assert (tiers == LOADING_TIER).any() == loading
    if (engine.state == RESIDENT).all() and not engine.fresh.any():
        assert (tiers == RESIDENT_TIER).all()


def test_hues_mean_the_same_in_the_map_and_in_the_bars() -> None:
    async def run() -> None:
        history = history_of(SyntheticEngine(24, 60, 4), 40)
        app = PanesApp(history, "full")
        async with app.run_test(size=(120, 40)) as pilot:
            await app.ready(pilot)
            for name in KINDS:
                hues = {pane.style(name).color for pane in app.query(Pane)}
                assert len(hues) == 1
            cells = colours(app)
            hues_seen = {fore for line in cells for fore, _ in line} | {back for line in cells for _, back in line}
            expert_map = app.query_one(ExpertMap)
            for name in KINDS:
                colour = expert_map.style(name).color
                assert colour is not None
                assert colour.get_truecolor().hex in hues_seen

    asyncio.run(run())


def test_a_change_of_theme_repaints() -> None:
    async def run() -> None:
        history = history_of(SyntheticEngine(6, 8, 2), 20)
        app = PanesApp(history, "side")
        async with app.run_test(size=(120, 40)) as pilot:
            await app.ready(pilot)
            before = app.query_one(LayerBars).style("resident")
            app.theme = "finemoe-light"
            await until(pilot, lambda: app.query_one(LayerBars).style("resident") != before, "another hue")
            light = app.query_one(ExpertMap).style("resident").color
            assert light is not None
            await until(
                pilot,
                lambda: any(fore == light.get_truecolor().hex for line in colours(app) for fore, _ in line),
                "the map in light colours",
            )

    asyncio.run(run())


def test_hues_differ_for_the_colour_blind() -> None:
    """Machado, Oliveira and Fernandes (2009), severity 1: protanopia, deuteranopia, tritanopia."""
    machado = {
        "none": np.eye(3),
        "protan": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deutan": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritan": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    css = Pane.DEFAULT_CSS
    for prefix in ("& > ", "&:light > "):
        hues = []
        for name in KINDS:
            match = re.search(rf"^\s*{re.escape(prefix)}\.pane--{name} {{ color: #(\w{{6}});", css, re.MULTILINE)
            assert match, name
            hues.append([int(match.group(1)[at : at + 2], 16) / 255 for at in (0, 2, 4)])
        for matrix in machado.values():
            seen = [lab(np.clip(np.asarray(matrix) @ linear(np.array(hue)), 0, 1)) for hue in hues]
            for one in range(4):
                for other in range(one):
                    assert np.linalg.norm(seen[one] - seen[other]) > 25, (prefix, KINDS[one], KINDS[other])


def linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-9))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_it_takes_no_more_lines_than_it_has() -> None:
    async def run() -> None:
        history = history_of(SyntheticEngine(24, 60, 4), 5)
        app = PanesApp(history, "full")
        async with app.run_test(size=(120, 40)) as pilot:
            await app.ready(pilot)
            for height in range(4, 40):
                assert len(app.query_one(ExpertMap).draw(60, height)) <= height

    asyncio.run(run())
