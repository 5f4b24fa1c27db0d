"""How far the fast kernels are from the float32 truth, beside transformers in bfloat16.

    python -m benchmarks.kernel_error [--model PATH] [--precision bf16] [--tokens 32] [--json FILE]

For each of the test suite's 20 prompts (1 to about 600 tokens) the fast kernels answer greedily; transformers'
own model then goes through the same tokens, once in float32 (the truth) and once in bfloat16, one forward pass a
token as in generation. Reported are the root mean square of the logits' error, and the share of steps at which
the likeliest token is the same. With ``--precision int8`` or ``int4`` it is the quantised model that answers, and
the error is that of the quantised weights. The first logits of an answer are left out: both compute a prompt
alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from offload import Engine, EngineConfig, Sampling
from offload.precision import PRECISIONS
from offload.runtime.text import ChatTokenizer
from profiles.paths import packs_dir
from tests.support.prompts import PROMPTS
from tests.support.reference import PlainTransformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; the pulled demo by default")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the model that answers")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", type=Path, help="also write the figures of each prompt to this file")
    options = parser.parse_args()
    model = options.model
    if model is None:
        from profiles.paths import models_dir

        model = models_dir() / "demo"

    tokenizer = ChatTokenizer.open(model)
    assert tokenizer is not None
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    answers = []
    config = EngineConfig(
        model=model,
        experts_fraction=1.0,
        kernels="fast",
        device="cpu",
        precision=options.precision,
        packs_folder=packs_dir(),
    )
    with Engine(config) as engine:
        for prompt in prompts:
            engine.forget()
            logits: list[torch.Tensor] = []
            done = engine.generate_ids(
                prompt, Sampling(max_new_tokens=options.tokens, temperature=0), on_logits=logits.append
            )
            answers.append((done.token_ids, torch.stack(logits).float()[1:]))

    pieces = [[prompt, *([t] for t in tokens[:-1])] for prompt, (tokens, _) in zip(prompts, answers, strict=True)]
    replays = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        plain = PlainTransformers(model, dtype)
        replays[name] = [torch.stack(plain.replay(piece)[1:]) if len(piece) > 1 else None for piece in pieces]
        del plain

    rows = []
    print(f"{'prompt':>7} {'steps':>6} {'rms fast':>9} {'rms bf16':>9} {'same token as float32: fast, bf16':>34}")
    for prompt, (_, fast), truth, bf16 in zip(
        prompts, answers, replays["float32"], replays["bfloat16"], strict=True
    ):
        if truth is None or bf16 is None:
            continue
        row = {
            "prompt_tokens": len(prompt),
            "steps": len(truth),
            "rms_fast": float((fast - truth).pow(2).mean().sqrt()),
            "rms_bf16": float((bf16 - truth).pow(2).mean().sqrt()),
            "same_fast": float((fast.argmax(1) == truth.argmax(1)).float().mean()),
            "same_bf16": float((bf16.argmax(1) == truth.argmax(1)).float().mean()),
            "same_fast_bf16": float((fast.argmax(1) == bf16.argmax(1)).float().mean()),
        }
        rows.append(row)
        print(
            f"{row['prompt_tokens']:7} {row['steps']:6} {row['rms_fast']:9.4f} {row['rms_bf16']:9.4f} "
            f"{row['same_fast']:25.3f} {row['same_bf16']:8.3f}"
        )
    steps = sum(row["steps"] for row in rows)

    def mean(name: str) -> float:
        return sum(row[name] * row["steps"] for row in rows) / steps

    print(
        f"all {steps} steps: rms fast {mean('rms_fast'):.4f}, bfloat16 {mean('rms_bf16'):.4f}; "
        f"same token as float32: fast {mean('same_fast'):.4f}, bfloat16 {mean('same_bf16'):.4f}; "
        f"fast and bfloat16 {mean('same_fast_bf16'):.4f}"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
