"""How much of the disk's own rate the stores reach: packed and in place against plain preadv.

    python benchmarks/read_rate.py [MODEL_FOLDER] [--folder DIR] [--lanes N ...]

For the model (the demo if none is given) and for synthetic experts of 17.3 MB, the size of Qwen1.5-MoE's. The
experts of each are read in a random order, the same one for every contestant, past the page cache, by N threads:

    packed    PackedStore.read
    in place  SafetensorsStore.read
    raw       preadv of one record at a time, in a loop, nothing else; from the files of either

Each thread reads one record for one contestant after another, so that what else the machine does meets all of them
alike. A rate is the size of a record times the threads through the mean time of a read; ratios are of means and of
medians. The pack of the model and the synthetic checkpoint with its pack are written into DIR (the cache folder if
not given), 1.2 GB and 3 GB at a time, and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from offload.models.spec import ModelSpec, read_spec
from offload.store.blocks import align_up, aligned_buffer
from offload.store.fingerprint import data_paths
from offload.store.packed_format import read_head
from offload.store.packed_store import PackedStore
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from profiles.paths import cache_dir, models_dir

SYNTHETIC = {"hidden_size": 2048, "moe_intermediate_size": 1408, "num_experts": 44, "num_hidden_layers": 2}

_BYTES = 2 << 30
"""Read for each contestant and number of lanes."""

Read = Callable[[int, memoryview], object]


class Lane(threading.Thread):
    """Reads ``count`` experts for each contestant, and keeps the times, in seconds."""

    def __init__(self, contestants: dict[str, Read], experts: int, slot_bytes: int, count: int, seed: int) -> None:
        super().__init__()
        self.times: dict[str, list[float]] = {name: [] for name in contestants}
        self.failure: Exception | None = None
        self._contestants = list(contestants.items())
        self._experts = experts
        self._count = count
        self._random = random.Random(seed)
        self._slot = memoryview(aligned_buffer(slot_bytes))
        self._slot[:] = bytes(len(self._slot))  # the memory is there before the clock runs

    def run(self) -> None:
        try:
            for _ in range(self._count):
                self._random.shuffle(self._contestants)
                for name, read in self._contestants:
                    expert = self._random.randrange(self._experts)
                    begin = perf_counter()
                    read(expert, self._slot)
                    self.times[name].append(perf_counter() - begin)
        except Exception as error:
            self.failure = error


class RawFiles:
    """Plain direct reads of equal records, one behind another, from one file after another."""

    def __init__(self, paths: Sequence[Path], start: int, record: int) -> None:
        self._fds = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
        self._record = record
        self._places = [
            (fd, place)
            for fd, path in zip(self._fds, paths, strict=True)
            for place in range(start, path.stat().st_size - record + 1, record)
        ]

    def read(self, expert: int, slot: memoryview) -> None:
        fd, place = self._places[expert % len(self._places)]
        if os.preadv(fd, [slot[: self._record]], place) != self._record:
            raise OSError("a short read")

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


def compare(contestants: dict[str, Read], spec: ModelSpec, slot_bytes: int, lanes: int) -> dict[str, list[float]]:
    """The times of every contestant's reads."""
    count = max(8, _BYTES // spec.expert_bytes // lanes)
    threads = [Lane(contestants, spec.total_experts, slot_bytes, count, seed) for seed in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threads:
        if thread.failure is not None:
            raise thread.failure
    return {name: [time for thread in threads for time in thread.times[name]] for name in contestants}


def measure(spec: ModelSpec, folder: Path, lane_counts: Sequence[int]) -> None:
    """Prints a line for each store and number of lanes."""
    index = CheckpointIndex.open(spec.folder)
    path = folder / "pack"
    write_pack(spec, index, path, force=True)
    head = read_head(path)
    packed, in_place = PackedStore.open(spec, index, path), SafetensorsStore.open(spec, index)
    raw_packed = RawFiles([path], head.head_bytes, head.header.stride)
    raw_in_place = RawFiles(sorted(data_paths(index)), 0, align_up(spec.expert_bytes))
    contestants: dict[str, Read] = {
        "raw packed": raw_packed.read,
        "packed": packed.read,
        "raw in place": raw_in_place.read,
        "in place": in_place.read,
    }
    slot_bytes = max(packed.slot_bytes, in_place.slot_bytes)
    try:
        if not (packed.direct and in_place.direct):
            raise SystemExit(f"direct I/O: {packed.direct_refused or in_place.direct_refused}")
        for lanes in lane_counts:
            times = compare(contestants, spec, slot_bytes, lanes)
            for store in ("packed", "in place"):
                print_line(spec, lanes, store, times[store], times[f"raw {store}"])
    finally:
        for opened in (packed, in_place, raw_packed, raw_in_place):
            opened.close()
        path.unlink()


def print_line(spec: ModelSpec, lanes: int, store: str, ours: list[float], raw: list[float]) -> None:
    moved = spec.expert_bytes * lanes / 1e9
    print(
        f"{spec.name:10} {spec.expert_bytes / 1e6:6.2f} MB {lanes:6}  {store:9}"
        f"{moved / statistics.mean(ours):8.2f} {moved / statistics.mean(raw):9.2f}"
        f"{statistics.mean(raw) / statistics.mean(ours):8.3f}"
        f"{statistics.median(raw) / statistics.median(ours):12.3f}",
        flush=True,
    )


def synthetic_model(folder: Path) -> ModelSpec:
    """A checkpoint of nothing but experts, random bytes, one by one as on the hub."""
    config = {"model_type": "qwen2_moe", **SYNTHETIC}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    hidden, wide = SYNTHETIC["hidden_size"], SYNTHETIC["moe_intermediate_size"]
    header, end = {}, 0
    for layer in range(SYNTHETIC["num_hidden_layers"]):
        for expert in range(SYNTHETIC["num_experts"]):
            for name, shape in (("down", (hidden, wide)), ("gate", (wide, hidden)), ("up", (wide, hidden))):
                begin, end = end, end + 2 * hidden * wide
                key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as the safetensors library does
    random_bytes = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(len(header)):
            file.write(random_bytes.bytes(2 * hidden * wide))
        os.fsync(file.fileno())
    return read_spec(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=models_dir() / "demo")
    parser.add_argument("--folder", type=Path, default=cache_dir(), help="where to write; on the disk to measure")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    if shutil.disk_usage(options.folder).free < 6e9:
        raise SystemExit(f"{options.folder} has less than 6 GB free")
    print("model         record  lanes  store        GB/s  raw GB/s   ratio  of medians")
    with tempfile.TemporaryDirectory(prefix="finemoe-read-rate-", dir=options.folder) as scratch:
        measure(read_spec(options.model), Path(scratch), options.lanes)
        measure(synthetic_model(Path(scratch) / "synthetic"), Path(scratch), options.lanes)


if __name__ == "__main__":
    main()
