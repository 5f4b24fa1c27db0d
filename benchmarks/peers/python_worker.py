"""finemoe, transformers and accelerate as contestants: ``python -m benchmarks.peers.python_worker ORDER.json``.

All three run transformers' `generate`, greedily. Each step's logits are looked at, and then the token that the
reference answer has there is made the likeliest: so every contestant does the same steps, whatever it would have
said itself.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Order = dict[str, Any]


def main() -> None:
    order: Order = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    from profiles.environment import prepare_process

    prepare_process()
    result = finemoe(order) if order["who"] == "finemoe" else plain(order)
    print(json.dumps(result))


class Forced:
    """Puts itself around a model's forward.

    Attributes:
        likeliest: The model's own choice at each step.
        times: When each step's logits were there, in seconds of `time.perf_counter`.
    """

    def __init__(self, model: Any, answer: list[int]) -> None:
        self.likeliest: list[int] = []
        self.times: list[float] = []
        self._answer = answer
        self._forward = model.forward
        functools.update_wrapper(self, model.forward)  # `generate` looks at the signature
        model.forward = self
        model.generation_config.eos_token_id = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        self._force(output.logits[0, -1])
        return output

    def around(self, step: Callable[[int], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        """finemoe's decode kernels, which go past the model's forward."""

        def forced(token: int) -> torch.Tensor:
            logits = step(token)
            self._force(logits[0])
            return logits

        return forced

    def _force(self, last: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        step = len(self.likeliest)
        self.likeliest.append(int(last.argmax()))
        if step < len(self._answer):
            last[self._answer[step]] = float("inf")


def finemoe(order: Order) -> dict[str, Any]:
    from offload import Engine, EngineConfig, Sampling

    began = time.perf_counter()
    config = EngineConfig(
        model=Path(order["model"]),
        device="cpu",
        context=order["context"],
        knowledge=None,
        **order["engine"],
    )
    with Engine(config) as engine:
        loaded = time.perf_counter()
        forced = Forced(engine._loaded.model, order["answer"])
        if engine._loaded.step is not None:
            engine._loaded.step = forced.around(engine._loaded.step)
        started = time.perf_counter()

        def enough(token: int) -> None:
            if time.perf_counter() - started > order["seconds"]:
                engine.stop()

        sampling = Sampling(max_new_tokens=max(1, len(order["answer"]) or order["tokens"]), temperature=0)
        done = engine.generate_ids(order["prompt"], sampling, on_token=enough)
        decode = done.experts.decode
        return {
            "load_s": loaded - began,
            "token_times_s": [at - started for at in forced.times],
            "likeliest": forced.likeliest,
            "token_ids": done.token_ids,
            "hit_rate": decode.hit_rate,
            "bytes_read": decode.bytes_demand + decode.bytes_prefetch,
            "stall_s": decode.stall_s,
            "slots": engine.snapshot().memory.slots,
        }


def plain(order: Order) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, MaxTimeCriteria, StoppingCriteriaList

    torch.set_num_threads(order["threads"])
    began = time.perf_counter()
    where: dict[str, Any] = {}
    if order["who"] == "accelerate":
        where = {
            "device_map": "auto",
            "max_memory": {"cpu": order["cpu_bytes"]},
            "offload_folder": order["offload"],
        }
    model = AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.bfloat16, **where)
    loaded = time.perf_counter()
    forced = Forced(model, order["answer"])
    ids = torch.tensor([order["prompt"]])
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(order["answer"]),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(order["seconds"])]),
        )
    return {
        "load_s": loaded - began,
        "token_times_s": [at - started for at in forced.times],
        "likeliest": forced.likeliest,
    }


if __name__ == "__main__":
    main()
