"""Where the experts' bytes come from never reaches the logits: a pack gives those of transformers, bit for bit."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import torch

from offload.models import read_spec
from offload.models.architectures import ARCHITECTURES
from offload.store.open_store import open_store
from offload.store.packed_format import PACK_NAME, read_head
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine
from tests.support.reference import PlainTransformers

PROMPTS = ([5], list(range(20, 57)))


def packed_checkpoint(folder: Path, **options) -> Path:
    tiny_checkpoint(folder, **options)
    spec, index = read_spec(folder), CheckpointIndex.open(folder)
    write_pack(spec, index, folder / PACK_NAME)
    store = open_store(spec, index)
    store.close()
    assert store.kind == "packed"
    return folder


LAYOUTS = cycle(["per-expert", "fused", "scattered"])
CASES = [
    (family, next(LAYOUTS), shards) for family, shards in zip(sorted(ARCHITECTURES), cycle([1, 3]), strict=False)
]


@pytest.mark.parametrize(("family", "layout", "shards"), CASES)
def test_reference_is_transformers_bit_for_bit(tmp_path: Path, family: str, layout: str, shards: int) -> None:
    folder = packed_checkpoint(tmp_path / "model", family=family, layout=layout, shards=shards, experts=20)
    plain = PlainTransformers(folder)
    expected = [plain.greedy(prompt, 4) for prompt in PROMPTS]
    for fraction in (0.1, 0.5, 1.0):
        with open_engine(folder, fraction, "reference") as engine:
            for prompt, theirs in zip(PROMPTS, expected, strict=True):
                engine.forget()
                assert_same(greedy(engine, prompt, 4), theirs)


def test_fast_is_the_same_from_either_store(tmp_path: Path) -> None:
    folder = packed_checkpoint(tmp_path / "model", expert_size=36)  # a record that ends inside of a block
    with open_engine(folder, 0.25, "fast") as engine:
        packed = [greedy(engine, prompt, 8) for prompt in PROMPTS]
    (folder / PACK_NAME).unlink()
    with open_engine(folder, 0.25, "fast") as engine:
        for prompt, theirs in zip(PROMPTS, packed, strict=True):
            assert_same(greedy(engine, prompt, 8), theirs)


def test_a_swapped_record_is_noticed(tmp_path: Path) -> None:
    folder = packed_checkpoint(tmp_path / "model")
    with open_engine(folder, 1.0, "reference") as engine:
        right = greedy(engine, PROMPTS[1], 4)
    path, head = folder / PACK_NAME, read_head(folder / PACK_NAME)
    content, stride = bytearray(path.read_bytes()), head.header.stride
    one, other = (slice(head.head_bytes + n * stride, head.head_bytes + (n + 1) * stride) for n in (8, 13))
    content[one], content[other] = content[other], content[one]
    path.write_bytes(content)
    with open_engine(folder, 1.0, "reference") as engine:
        wrong = greedy(engine, PROMPTS[1], 4)
    assert not torch.equal(right.logits, wrong.logits)
