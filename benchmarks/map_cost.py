"""What searching expert maps costs: microseconds a layer, a token, and the store's memory.

    python -m benchmarks.map_cost [--rounds 200]

Full stores of random maps in the shape of three models. ``layer``: following the trajectory by one layer, finding
the nearest entry and taking its prediction; ``8``: the same with eight weighted neighbours. ``token``: what comes
once, the semantic search at its beginning and the new entry at its end, the most redundant one found and replaced.
Medians, on the thread that searches; nothing is compiled.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns

import numpy as np

from offload.policy.maps import MapStore, Matcher, StoreModel

SHAPES = {
    "demo": StoreModel(layers=30, experts=60, hidden=576),
    "Qwen1.5-MoE": StoreModel(layers=24, experts=60, hidden=2048),
    "Qwen3-30B-A3B": StoreModel(layers=48, experts=128, hidden=2048),
}
CAPACITIES = (1000, 4000)


def random_store(model: StoreModel, capacity: int, draw: np.random.Generator) -> MapStore:
    store = MapStore(model, capacity)
    for _ in range(capacity):
        store.add(*random_entry(model, draw))
    return store


def random_entry(model: StoreModel, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    raw = draw.random((model.layers, model.experts), np.float32) ** 4
    return draw.standard_normal(model.hidden, np.float32), raw / raw.sum(axis=1, keepdims=True)


def timed(what: Callable[[], object]) -> float:
    started = perf_counter_ns()
    what()
    return (perf_counter_ns() - started) / 1000


def measure(store: MapStore, neighbours: int, rounds: int, draw: np.random.Generator) -> tuple[float, float]:
    """Median microseconds of a layer, and of what a token pays once."""
    layers = store.model.layers
    matcher = Matcher(store, neighbours)
    of_layers, of_tokens = [], []
    for _ in range(rounds):
        embedding, rows = random_entry(store.model, draw)

        def begin(embedding: np.ndarray = embedding) -> None:
            matcher.begin(embedding)
            matcher.semantic()

        def follow(layer: int, rows: np.ndarray = rows) -> None:
            matcher.observe(rows[layer])
            match = matcher.trajectory()
            assert match is not None
            matcher.predict(match, min(layer + 3, layers - 1))

        once = timed(begin)
        of_layers += [timed(lambda layer=layer: follow(layer)) for layer in range(layers)]  # type: ignore[misc]
        once += timed(lambda e=embedding, r=rows: store.add(e, r, matcher.cosines()))  # type: ignore[misc]
        of_tokens.append(once)
    return median(of_layers), median(of_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="tokens per shape")
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    print(f"{'':16}{'maps':>6}{'MiB':>7}{'layer, us':>11}{'8':>7}{'token, us':>11}")
    for name, model in SHAPES.items():
        for capacity in CAPACITIES:
            store = random_store(model, capacity, draw)
            layer, token = measure(store, 1, options.rounds, draw)
            eight, _ = measure(store, 8, options.rounds, draw)
            size = store.memory_bytes / 2**20
            print(f"{name:16}{capacity:>6}{size:>7.1f}{layer:>11.1f}{eight:>7.1f}{token:>11.0f}", flush=True)


if __name__ == "__main__":
    main()
