"""Boards of real engines in this process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from offload import Engine, Sampling
from offload.service.board import BoardReader, list_boards
from offload.service.publish import published
from offload.telemetry.counters import Kind, Phase
from tests.offload.service.test_board import until
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import open_engine

GREEDY = Sampling(max_new_tokens=12, temperature=0)


@pytest.fixture(scope="module", params=["reference", "fast"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", eos_token_id=None)
    with open_engine(folder, 0.5, request.param) as engine:
        yield engine


def test_a_board_says_what_the_engine_says(engine: Engine, tmp_path: Path) -> None:
    before = engine.snapshot()
    with published(engine, tmp_path, command="eval", profile="low") as writer:
        assert writer is not None
        with BoardReader(writer.path) as board:
            facts = board.facts
            assert (facts.pid, facts.command, facts.model) == (os.getpid(), "eval", "tiny")
            assert (facts.layers, facts.experts, facts.top_k) == (3, 8, 2)
            done = engine.generate_ids([5, 6, 7, 8], GREEDY)
            writer.request_ended(done.ttft_s)
            until(lambda: board.next_record == 11 and board.frame().tokens == 11 and board.frame().phase == 0)
            frame, now = board.frame(), engine.snapshot()
            assert frame.tally[Phase.DECODE, Kind.MISSED].tolist() == list(now.decode_layers.missed)
            assert frame.tally[Phase.PREFILL].sum() == now.experts.prefill.selections
            assert frame.bytes_demand == (now.experts.prefill.bytes_demand, now.experts.decode.bytes_demand)
            assert frame.evictions == (now.experts.prefill.evictions, now.experts.decode.evictions)
            assert int((frame.state == 2).sum()) == now.resident
            assert frame.ttft_s == done.ttft_s
            assert frame.memory.slots == now.memory.slots and frame.profile == "low"

            records = board.records(0)
            assert [record.token_id for record in records] == list(done.token_ids[:-1])
            if now.kernels == "fast":
                missed = sum(int((record.kinds == Kind.MISSED).sum()) for record in records)
                assert missed == now.experts.decode.missed - before.experts.decode.missed
            stall = sum(int(record.stall_ns.sum()) for record in records)
            assert stall / 1e9 == pytest.approx(now.experts.decode.stall_s - before.experts.decode.stall_s)
            assert all(len(set(row)) == 2 for record in records for row in record.chosen.tolist())
            assert {int(record.chosen.max()) < 8 for record in records} == {True}
            assert all(record.pass_ns >= record.stall_ns.sum() for record in records)
        assert [reader.facts.command for reader in list_boards(tmp_path)] == ["eval"]
    assert list(tmp_path.iterdir()) == []
    again = engine.generate_ids([5, 6, 7, 8], GREEDY)
    assert again.token_ids == done.token_ids
    assert writer.next_record == 11  # told no more


def test_where_no_board_can_be_made_the_engine_runs_without(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING), published(engine, tmp_path / "file") as writer:
        assert writer is None
        assert engine.generate_ids([5, 6], GREEDY).completion_tokens == 12
    assert "the counters are not published" in caplog.text
