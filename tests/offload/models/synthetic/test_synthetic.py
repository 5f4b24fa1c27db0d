"""Synthetic checkpoints: the published shapes to the byte, models that run, routers that do what they are asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from offload import Engine, EngineConfig, Sampling
from offload.errors import ConfigError, PullError, StorageError
from offload.models import read_spec
from offload.models.synthetic import SHAPES, read_card, recipe
from offload.models.synthetic.build import make_model
from offload.models.synthetic.checkpoint import checkpoint_bytes, write_checkpoint
from offload.models.synthetic.tokenizer import word
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.counters import Phase
from tests.support.small_shapes import small_recipe

PUBLISHED = json.loads((Path(__file__).parents[2] / "published_models.json").read_text())
HUB_NAMES = {"qwen1.5-moe-a2.7b": "Qwen1.5-MoE-A2.7B", "qwen3-30b-a3b": "Qwen3-30B-A3B"}


@pytest.fixture(scope="module", params=list(SHAPES))
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / request.param
    make_model(small_recipe(request.param), folder)
    return folder


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes_are_the_published_ones_to_the_byte(shape):
    published = PUBLISHED[HUB_NAMES[shape]]
    assert SHAPES[shape] == published["config"]
    assert checkpoint_bytes(recipe(shape)) == published["total_size"]


def test_transformers_finds_every_tensor_that_it_looks_for_and_no_other(small):
    _, report = AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_no_two_experts_have_the_same_bytes(small):
    index, spec = CheckpointIndex.open(small), read_spec(small)
    seen = set()
    for layer in spec.moe_layers:
        for expert in range(spec.num_experts):
            matrices = []
            for key in spec.architecture.expert_keys(layer, expert):
                data = np.empty(index.tensors[key].nbytes, np.uint8)
                index.read_tensor(key, data.data)
                matrices.append(data.tobytes())
            seen.add(tuple(matrices))
            assert len({len(matrix) for matrix in matrices}) == 1 and len(set(matrices)) == 3
    assert len(seen) == spec.total_experts


def test_the_same_recipe_makes_the_same_bytes_and_another_seed_others(tmp_path):
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        make_model(small_recipe(seed=seed, layers=1), folder)
    weights = [(folder / "model-00001-of-00001.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]


def test_a_part_of_a_model_is_its_first_layers(tmp_path):
    parts = {}
    for layers in (1, 4):
        folder = tmp_path / str(layers)
        make_model(small_recipe(layers=layers), folder)
        parts[layers] = CheckpointIndex.open(folder)
    for key, entry in parts[1].tensors.items():
        data = [np.empty(entry.nbytes, np.uint8) for _ in range(2)]
        parts[1].read_tensor(key, data[0].data)
        parts[4].read_tensor(key, data[1].data)
        assert np.array_equal(*data), key


def test_shards_are_filled_in_turn_and_named_as_the_hub_names_them(tmp_path):
    write_checkpoint(small_recipe(), tmp_path, lambda done, total: None, shard_bytes=10_000_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2
    assert names == [f"model-{n:05}-of-{len(names):05}.safetensors" for n in range(1, len(names) + 1)]
    assert index["metadata"]["total_size"] == checkpoint_bytes(small_recipe())
    assert all((tmp_path / name).stat().st_size < 10_000_000 + 100_000 for name in names)
    # Experts begin anywhere, as in files that the library wrote.
    offsets = [entry.offset % 4096 for entry in CheckpointIndex.open(tmp_path).tensors.values()]
    assert any(offsets)


def test_512_greedy_tokens_are_finite_and_never_repeat(small):
    logits = []
    with Engine(EngineConfig(model=small, experts_fraction=0.25, context=1024, policy="demand")) as engine:
        prompt = AutoTokenizer.from_pretrained(small).encode("Why is the sky blue?")
        done = engine.generate_ids(
            prompt, Sampling(max_new_tokens=512, temperature=0), on_logits=lambda row: logits.append(row)
        )
        chat = engine.chat([{"role": "user", "content": "Hello"}], Sampling(max_new_tokens=8, temperature=0))
    assert len(logits) == 512 and all(bool(torch.isfinite(row).all()) for row in logits)
    assert len(set(done.token_ids)) == 512
    assert set(done.token_ids) <= set(range(256, 1000)), "words only"
    assert chat.finish_reason == "length"
    assert chat.text.split() == [word(token) for token in chat.token_ids]


def test_words_are_all_different():
    assert len({word(number) for number in range(151_936)}) == 151_936


def test_prompts_are_read_byte_by_byte(small):
    tokenizer = AutoTokenizer.from_pretrained(small)
    text = "Grüße, 世界\n"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(chat)[0] == 1001 and tokenizer.encode(chat).count(1002) == 1


def chosen_experts(folder: Path) -> np.ndarray:
    """[T, L, K]: what the routers choose for 250 tokens."""

    class Watcher:
        wants_residual = False

        def __init__(self):
            self.decoding = False
            self.chosen = []

        def begin_pass(self, forward):
            self.decoding = forward.phase == Phase.DECODE
            if self.decoding:
                self.chosen.append([])

        def routed(self, routing):
            if self.decoding:
                self.chosen[-1].append(routing.chosen[0].copy())

        def end_pass(self, outcome):
            pass

    watcher = Watcher()
    with Engine(EngineConfig(model=folder, experts_fraction=1.0, context=512, policy="demand")) as engine:
        engine.observe(watcher)
        engine.generate_ids([40, 41, 42], Sampling(max_new_tokens=250, temperature=0))
    return np.array(watcher.chosen)


def lru_hits(chosen: np.ndarray, share: float, experts: int) -> float:
    """The hit rate of a cache for a share of all experts, once it is warm."""
    tokens, layers, top_k = chosen.shape
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for token, layer in np.ndindex(tokens, layers):
        for expert in chosen[token, layer] + layer * experts:
            if token >= 50:
                hits += int(expert) in cache
            cache[int(expert)] = None
            cache.move_to_end(int(expert))
            if len(cache) > share * layers * experts:
                cache.popitem(last=False)
    return hits / ((tokens - 50) * layers * top_k)


def test_skew_and_persistence_move_the_hit_rate_and_the_defaults_are_in_the_published_range(tmp_path):
    hits = {}
    for name, values in {
        "default": {},
        "fickle": {"persistence": 0.0},
        "skewed": {"skew": 0.35},
    }.items():
        make_model(small_recipe(**values), tmp_path / name)
        chosen = chosen_experts(tmp_path / name)
        hits[name] = [lru_hits(chosen, share, 60) for share in (0.125, 0.25, 0.5)]
    for low, high in (("fickle", "default"), ("default", "skewed")):
        assert all(a < b for a, b in zip(hits[low], hits[high], strict=True)), hits
    # Published: 53 to 67 % at 12, 78 % at 22 and some 92 % at 50 % resident. This small model comes near.
    for measured, published in zip(hits["default"], (0.58, 0.79, 0.92), strict=True):
        assert measured == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"layers": 25}, "layers is 25"),
        ({"skew": 0.9}, "skew is 0.9"),
        ({"skew": float("nan")}, "skew is nan"),
        ({"persistence": -0.1}, "persistence is -0.1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, what):
    with pytest.raises(ConfigError, match=what):
        recipe("qwen1.5-moe-a2.7b", **wrong)
    with pytest.raises(ConfigError, match="no shape 'gpt-4'"):
        recipe("gpt-4")


def test_it_is_made_once_and_nothing_else_is_overwritten(tmp_path):
    target = tmp_path / "deep" / "model"
    first = make_model(small_recipe(layers=2), target)
    assert first.changed and first.card.extent == "2 of 4 layers" and read_card(target) == first.card
    assert first.nbytes > checkpoint_bytes(small_recipe(layers=2))
    assert not make_model(small_recipe(layers=2), target).changed
    with pytest.raises(PullError, match=r"is there already: qwen1\.5-moe-a2\.7b, 2 of 4 layers, seed 0"):
        make_model(small_recipe(layers=1), target)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(PullError, match="something else"):
        make_model(small_recipe(), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"
    # A file that was cut short is not the model any more.
    shard = next(target.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(PullError, match="is there already"):
        make_model(small_recipe(layers=2), target)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(stage, done, total):
        assert stage == "write"
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_model(small_recipe(), tmp_path / "model", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".model.making").mkdir()
    (tmp_path / ".model.making" / "model-00001-of-00001.safetensors").write_bytes(b"half")
    make_model(small_recipe(layers=1), tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {".model.lock", "model"}


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 20 * 10**9))
    with pytest.raises(StorageError, match=r"24 layers, needs 26\.7 GiB, and .* has 18\.6 GiB free"):
        make_model(recipe("qwen1.5-moe-a2.7b"), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


@pytest.mark.slow
def test_a_full_size_layer_takes_little_memory(tmp_path):
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from offload.models.synthetic import recipe\n"
        "from offload.models.synthetic.build import make_model\n"
        "make_model(recipe('qwen1.5-moe-a2.7b', layers=1), Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "m"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 700 * 1024
    assert read_spec(tmp_path / "m").expert_bytes == 17_301_504
