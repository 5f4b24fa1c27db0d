"""What the process takes before a weight is read: resident memory, import by import.

    python benchmarks/base_memory.py

Each line is a step of opening a model with the fast kernels, and what the step added.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path


def main() -> None:
    from offload.telemetry.process import resident_bytes

    last = 0

    def step(name: str) -> None:
        nonlocal last
        gc.collect()
        now = resident_bytes()
        print(f"{name:44} {now / 2**20:7.1f} MiB  +{(now - last) / 2**20:.1f}")
        last = now

    step("interpreter, psutil")
    import numpy  # noqa: F401

    step("numpy")
    import offload.runtime

    step("torch and transformers, as the engine has them")
    from offload.runtime.compile import compile_kernels

    compile_kernels()
    from offload.absent import import_numba

    import_numba()

    step("numba")
    import offload.runtime.kernels.bf16  # noqa: F401

    step("decode kernels, from the cache")
    from profiles.paths import models_dir

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else models_dir() / "demo"
    from offload.runtime.text import ChatTokenizer

    tokenizer = ChatTokenizer.open(folder)
    step("tokenizer of the model")
    from offload.runtime.libraries import give_back_libraries

    give_back_libraries()
    step("code that only starting needed, given back")
    from offload import Engine, EngineConfig

    del tokenizer
    with Engine(EngineConfig(model=folder, experts_fraction=0.0, context=512)) as engine:
        memory = engine.snapshot().memory
    print(f"{'base of the memory plan':44} {memory.base_bytes / 2**20:7.1f} MiB")


if __name__ == "__main__":
    main()
