"""What recording a trace costs: one engine with every expert resident, recorded and not, in turns.

    python benchmarks/trace_cost.py [--model PATH] [--rounds 7] [--tokens 96]

Each round decodes the same greedy answer once for each of: nothing watching, a recorder without residuals, one
with. The order turns with the rounds. Quoted are medians of the time a token, of the wall clock and of the engine's
thread (which does all the work, and which other programs disturb less), and for each kind of recording the median
over the rounds of its ratio to the unrecorded answer of the same round. What a request takes to be compressed and
written, which happens between answers, is given apart, with its bytes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from offload import Engine, EngineConfig, Sampling
from offload.trace.file import TraceHeader, TraceWriter
from offload.trace.recorder import Recorder, trace_model
from profiles.models import demo_folder

PROMPT = list(range(1000, 1040))
KINDS = {"nothing": None, "without residuals": False, "with residuals": True}


class Times:
    """Seconds of each answer of one kind: of a token by both clocks, and of writing."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.thread: list[float] = []
        self.writing: list[float] = []
        self.nbytes = 0


def measure(engine: Engine, rounds: int, sampling: Sampling, folder: Path) -> None:
    model = trace_model(engine)
    times = {kind: Times() for kind in KINDS}
    with TraceWriter.create(folder / "cost.trace", model, TraceHeader()) as writer:
        answer(engine, sampling, Times())
        for number in range(rounds):
            order = list(KINDS.items())
            for kind, residuals in [*order[number % 3 :], *order[: number % 3]]:
                own = times[kind]
                if residuals is None:
                    answer(engine, sampling, own)
                    continue
                recorder = Recorder(model, residuals=residuals)
                engine.observe(recorder)
                answer(engine, sampling, own)
                engine.unobserve(recorder)
                begin, before = time.thread_time(), writer.nbytes
                writer.append(recorder.take("cost"))
                own.writing.append(time.thread_time() - begin)
                own.nbytes = writer.nbytes - before
    print(f"{'recorded':<20}{'wall, ms/token':>15}{'ratio':>8}{'thread, ms/token':>18}{'ratio':>8}", end="")
    print(f"{'write, ms':>11}{'bytes':>12}")
    nothing = times["nothing"]
    for kind, own in times.items():
        line = f"{kind:<20}{1e3 * statistics.median(own.wall):>15.2f}{ratio(own.wall, nothing.wall):>8.3f}"
        line += f"{1e3 * statistics.median(own.thread):>18.2f}{ratio(own.thread, nothing.thread):>8.3f}"
        if own.writing:
            line += f"{1e3 * statistics.median(own.writing):>11.1f}{own.nbytes:>12,}"
        print(line)


def answer(engine: Engine, sampling: Sampling, times: Times) -> None:
    clocks: list[tuple[float, float]] = []
    engine.forget()
    engine.generate_ids(
        PROMPT, sampling, on_token=lambda token: clocks.append((time.perf_counter(), time.thread_time()))
    )
    for own, first, last in zip((times.wall, times.thread), clocks[0], clocks[-1], strict=True):
        own.append((last - first) / (len(clocks) - 1))


def ratio(some: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    config = EngineConfig(model=arguments.model or demo_folder(), experts_fraction=1.0, threads=1, device="cpu")
    with Engine(config) as engine, tempfile.TemporaryDirectory() as folder:
        measure(engine, arguments.rounds, Sampling(max_new_tokens=arguments.tokens, temperature=0), Path(folder))


if __name__ == "__main__":
    main()
