import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from benchmarks.peers.cap import Cap, CapRefused
from benchmarks.peers.gguf_export import NoGguf, export
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML_TOKENS, tiny_tokenizer

TAKE = "import sys; block = bytearray(int(sys.argv[1])); block[::4096] = b'x' * len(block[::4096])"


@pytest.fixture
def group() -> None:
    try:
        with Cap(64 << 20, "cgroup"):
            pass
    except CapRefused as error:
        pytest.skip(f"control groups cannot be made here: {error}")


@pytest.mark.parametrize(("family", "arch"), [("qwen2_moe", "qwen2moe"), ("qwen3_moe", "qwen3moe")])
def test_exported_weights_are_the_checkpoints(tmp_path: Path, family: str, arch: str) -> None:
    model = tiny_checkpoint(tmp_path / "model", family=family, layers=2)  # type: ignore[arg-type]
    export(model, tmp_path / "out.gguf", "bf16")
    reader = GGUFReader(tmp_path / "out.gguf")
    assert str(reader.fields["general.architecture"].contents()) == arch
    there = {tensor.name: tensor for tensor in reader.tensors}
    here = {name: w for path in model.glob("*.safetensors") for name, w in load_file(path).items()}
    for layer in range(2):
        for which in ("gate", "up", "down"):
            bits = there[f"blk.{layer}.ffn_{which}_exps.weight"].data.view(np.uint16)
            for expert in range(8):
                weights = here[f"model.layers.{layer}.mlp.experts.{expert}.{which}_proj.weight"]
                assert np.array_equal(bits[expert], weights.view(torch.uint16).numpy())
    assert not (tmp_path / "out.gguf.part").exists()


def test_quantised_weights_are_near(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", layers=1)
    export(model, tmp_path / "out.gguf", "q8_0")
    there = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    blocks = there["blk.0.attn_q.weight"].data.reshape(-1, 34)
    read = blocks[:, 2:].view(np.int8) * blocks[:, :2].view(np.float16).astype(np.float32)
    weights = load_file(next(model.glob("*.safetensors")))["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    assert np.abs(read.reshape(weights.shape) - weights).max() < np.abs(weights).max() / 100


def test_a_model_without_counterpart_is_refused(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", layers=1, norm_topk_prob=True)
    with pytest.raises(NoGguf, match="gated shared expert"):
        export(model, tmp_path / "out.gguf", "bf16")
    mixtral = tiny_checkpoint(tmp_path / "mixtral", family="mixtral", layers=1)
    with pytest.raises(NoGguf, match="mixtral"):
        export(mixtral, tmp_path / "out.gguf", "bf16")


def test_the_limit_holds(group: None) -> None:
    with Cap(64 << 20, "cgroup") as cap:
        fits = subprocess.run(cap.command([sys.executable, "-S", "-c", TAKE, str(32 << 20)]))
        beyond = subprocess.run(cap.command([sys.executable, "-S", "-c", TAKE, str(128 << 20)]))
        assert cap.peak_bytes is None or cap.peak_bytes <= 64 << 20
    assert fits.returncode == 0
    assert beyond.returncode == -9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--contestants", "ollama"], "there is no contestant 'ollama'"),
        (["--caps", "much"], "much"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    model = tiny_checkpoint(tmp_path / "model", layers=1)
    place = [] if arguments[0] == "nowhere" else [str(model)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *place, *arguments, "--work", str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_contestants_do_the_same_steps(tmp_path: Path, group: None) -> None:
    model = tiny_checkpoint(tmp_path / "model", layers=2)
    tiny_tokenizer(model, special=CHATML_TOKENS, eos="<|im_end|>")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.peers", str(model), "--contestants", "finemoe,transformers"),
            *("--caps", "1GiB", "--tokens", "6", "--rounds", "1", "--work", str(tmp_path / "work")),
            *("--cap-with", "cgroup"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 1GiB")]
    assert len(rows) == 2
    assert all("100.0 %" in row for row in rows if "finemoe" in row)
