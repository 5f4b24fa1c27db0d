"""Decode speed on the demo model: plain transformers, the two kernel sets, and a 25 % arena against its bound.

    python benchmarks/decode_speed.py [--model PATH] [--rounds 5] [--tokens 64] [--json FILE]

Every measurement is a process of its own with one thread; the contestants take turns, so that a machine whose
speed drifts is unfair to nobody. Quoted are medians over the rounds and the ratios between them.

- ``transformers``: AutoModelForCausalLM, everything resident, its own generate.
- ``reference`` / ``fast``: finemoe with all experts resident; a warm-up answer fills the arena first.
- ``fast 25 %``: a quarter of the experts resident, demand reads only. Its bound is compute + bytes / raw disk
  rate: compute is the time a token of ``fast`` takes in the same round, and the raw rate is what as many plain
  threads read from the same files in records of the same size, measured just before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPT = "Explain in a few sentences why the sky is blue and why sunsets are red."


def measure_transformers(model: Path, tokens: int) -> dict[str, Any]:
    import time

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    for _ in range(2):
        clock = Clock()
        net.generate(
            **ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=clock,
            temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
    # The first call of the streamer is the prompt's, the second the first token's.
    return {"s_per_token": (clock.times[-1] - clock.times[1]) / (len(clock.times) - 2)}


def measure_finemoe(model: Path, tokens: int, kernels: str, fraction: float) -> dict[str, Any]:
    from offload import Engine, EngineConfig, Sampling
    from offload.models import read_spec
    from offload.store.calibrate import measure_read_rate
    from offload.store.open_store import open_store
    from offload.store.safetensors_index import CheckpointIndex

    rate = 0.0
    lanes = None
    if fraction < 1:
        store = open_store(read_spec(model), CheckpointIndex.open(model))
        calibration = measure_read_rate(store, seconds_each=1.0)
        rate, lanes = calibration.bytes_per_second, calibration.lanes
        store.close()
    config = EngineConfig(
        model=model, experts_fraction=fraction, kernels=kernels, threads=1, lanes=lanes, device="cpu"
    )
    sampling = Sampling(max_new_tokens=tokens, temperature=0)
    with Engine(config) as engine:
        for _ in range(2):
            result = engine.chat([{"role": "user", "content": PROMPT}], sampling)
    assert result.tpot_s is not None
    decode = result.experts.decode
    steps = result.completion_tokens - 1
    return {
        "s_per_token": result.tpot_s,
        "hit_rate": decode.hit_rate,
        "bytes_per_token": decode.bytes_demand / steps,
        "stall_s_per_token": decode.stall_s / steps,
        "raw_bytes_per_s": rate,
        "lanes": result.io.lanes,
        "direct": result.io.direct,
    }


CONTESTANTS = ("transformers", "reference", "fast", "fast-25")


def child(name: str, model: Path, tokens: int) -> dict[str, Any]:
    if name == "transformers":
        return measure_transformers(model, tokens)
    if name == "fast-25":
        return measure_finemoe(model, tokens, "fast", 0.25)
    return measure_finemoe(model, tokens, name, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; the pulled demo by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.model
    if model is None:
        from profiles.paths import models_dir

        model = models_dir() / "demo"
    if options.child:
        print(json.dumps(child(options.child, model, options.tokens)))
        return

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for round_number in range(options.rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--child", name, "--model", str(model)]
            command += ["--tokens", str(options.tokens)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"round {round_number + 1}: {name} {1 / results[name][-1]['s_per_token']:.1f} tok/s",
                file=sys.stderr,
            )

    seconds = {name: statistics.median(run["s_per_token"] for run in runs) for name, runs in results.items()}
    print(f"{'':14} {'tok/s':>7} {'min':>7} {'max':>7} {'x transformers':>15}")
    for name, runs in results.items():
        rates = [1 / run["s_per_token"] for run in runs]
        ratio = seconds["transformers"] / seconds[name]
        print(f"{name:14} {1 / seconds[name]:7.1f} {min(rates):7.1f} {max(rates):7.1f} {ratio:15.2f}")
    ratios = []
    for resident, quarter in zip(results["fast"], results["fast-25"], strict=True):
        bound = resident["s_per_token"] + quarter["bytes_per_token"] / quarter["raw_bytes_per_s"]
        ratios.append(quarter["s_per_token"] / bound)
    last = results["fast-25"][-1]
    print(
        f"fast at 25 %: hit rate {last['hit_rate']:.3f}, {last['bytes_per_token'] / 2**20:.1f} MiB a token, "
        f"stall {1000 * last['stall_s_per_token']:.1f} ms a token, {last['lanes']} lanes, "
        f"raw {statistics.median(run['raw_bytes_per_s'] for run in results['fast-25']) / 1e9:.2f} GB/s, "
        f"direct I/O {'yes' if last['direct'] else 'no'}"
    )
    print(
        f"time a token / (compute + bytes / raw rate): median {statistics.median(ratios):.2f}, "
        f"min {min(ratios):.2f}, max {max(ratios):.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
