"""finemoe, llama.cpp, transformers and accelerate on the same weights, under the same hard limit of memory.

    python -m benchmarks.peers [MODEL_FOLDER] --caps 170%,83%,62%,48% [--contestants finemoe,llama.cpp,...]
        [--tokens 512] [--rounds 2] [--seconds 60] [--work FOLDER] [--json FILE]

A limit is a size, or a share of the size of the checkpoint's weights; it holds for the whole process with its
interpreter, libraries and page cache (``cap.py``). Each measurement is a process of its own, with cold files. All
answer the same prompt and are given the same answer token by token: finemoe's own in bf16 with everything
resident. So each does the same steps with the same experts, whatever it would have said; how often it would have
said the same is `agrees`. Contestants take turns, in another order every round. tok/s is the mean over the
answer's tokens but the first; p50 and p99 are of the times between tokens; an answer is cut off after --seconds.
Whoever reads through the page cache is always at the limit, so what is shown is the process's own resident memory
at its peak.

llama.cpp comes from the package llama-cpp-python, built in a Python of its own in --work, with the model as a GGUF
file (``gguf_export.py``), of which there is one at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.cap import Cap, CapRefused
from benchmarks.peers.contestants import CONTESTANTS, Contestant, NoPeer, Setting, last_line
from offload.errors import FinemoeError
from offload.models.spec import read_spec
from offload.units import format_bytes, parse_bytes
from profiles.paths import cache_dir, models_dir

PROMPT = "Explain how rivers shape the land around them, step by step, and give an example of each step."
LOAD_S = 900
"""Longer than this no contestant may take to load and answer the prompt."""

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a model folder; the pulled demo by default")
    parser.add_argument("--caps", default="170%,83%,62%,48%")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--policy", default="auto", help="of finemoe")
    parser.add_argument("--cap-with", choices=("auto", "cgroup", "balloon"), default="auto")
    parser.add_argument("--work", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--json", type=Path, help="also write every measurement to this file")
    options = parser.parse_args()
    try:
        run(options)
    except (CapRefused, NoPeer, FinemoeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def run(options: argparse.Namespace) -> None:
    model = (options.model or models_dir() / "demo").absolute()
    read_spec(model)
    options.work.mkdir(parents=True, exist_ok=True)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    caps = [_limit(text, size) for text in options.caps.split(",")]
    named = [_contestant(name) for name in options.contestants.split(",")]
    setting = Setting(model, options.work, options.threads, 1024, options.seconds, options.policy)
    prompt = _prompt_ids(model)
    answer = _reference(setting, prompt, options.tokens)
    results: list[Result] = []
    print(f"{model.name}: {format_bytes(size)}; {len(prompt)} + {len(answer)} tokens; {options.threads} threads")
    # Those that share a file go together, since there is one at a time.
    for group in _groups(named):
        there = []
        for one in group:
            try:
                setting.prepare(one)
                there.append(one)
            except NoPeer as error:
                print(f"{one.name}: {error}", file=sys.stderr)
        for number in range(options.rounds):
            turns = [(one, cap) for one in there for cap in caps]
            random.Random(number).shuffle(turns)
            for one, (label, limit) in turns:
                result = measure(setting, one, prompt, answer, limit, options.cap_with)
                result |= {"contestant": one.name, "cap": label, "limit_bytes": limit, "round": number}
                results.append(result)
                print(_line(result), file=sys.stderr, flush=True)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(table(results, [label for label, _ in caps]))


def measure(
    setting: Setting, one: Contestant, prompt: list[int], answer: list[int], limit: int, how: str
) -> Result:
    """One contestant's answer under one limit; `failed` says in words why there is none."""
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        order = Path(folder) / "order.json"
        order.write_text(json.dumps(setting.order(one, prompt, answer, limit)), encoding="utf-8")
        setting.drop_from_cache()
        with Cap(limit, how) as cap:
            worker = subprocess.Popen(
                cap.command(setting.command(one, order)),
                env=setting.environment(one),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            watched = _Resident(worker.pid)
            try:
                out, said = _communicate(worker, watched, LOAD_S + setting.seconds)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.communicate()
                return {"failed": f"no answer after {LOAD_S + setting.seconds:.0f} s", "capped": cap.kind}
            peak = cap.peak_bytes
            facts: Result = {"capped": cap.kind, "peak_bytes": peak, "resident_bytes": watched.peak}
    if worker.returncode != 0:
        return facts | {"failed": _ending(worker.returncode, said)}
    said_last: Result = json.loads(out.strip().splitlines()[-1])
    return facts | said_last | _speeds(said_last, answer)


def _ending(code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return "killed: out of memory"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else last_line(said)


def _communicate(worker: subprocess.Popen[str], watched: _Resident, seconds: float) -> tuple[str, str]:
    for _ in range(int(seconds / 0.5)):
        try:
            return worker.communicate(timeout=0.5)
        except subprocess.TimeoutExpired:
            watched.look()
    raise subprocess.TimeoutExpired(worker.args, seconds)


class _Resident:
    """The peak of a process's own resident memory, as the kernel keeps it."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self.peak: int | None = None

    def look(self) -> None:
        try:
            text = self._path.read_text()
        except OSError:
            return
        for line in text.splitlines():
            if line.startswith("VmHWM:"):
                self.peak = int(line.split()[1]) * 1024


def _speeds(result: Result, answer: Sequence[int]) -> Result:
    times: list[float] = result["token_times_s"]
    steps = [after - before for before, after in pairwise(times)]
    same = [a == b for a, b in zip(result["likeliest"], answer, strict=False)]
    if not steps:
        return {"failed": "only the prompt was answered in time", "ttft_s": times[0] if times else None}
    ordered = sorted(steps)
    return {
        "ttft_s": times[0],
        "tokens": len(times),
        "tokens_per_s": len(steps) / sum(steps),
        "p50_s": statistics.median(steps),
        "p99_s": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "worst_s": ordered[-1],
        "agrees": sum(same) / len(same),
    }


def table(results: Sequence[Result], caps: Iterable[str]) -> str:
    """Markdown: medians over the rounds, a row for each contestant and limit."""
    lines = [
        "| limit | contestant | tok/s | min to max | p99 / p50 | p99, ms | TTFT, s | resident, MiB | agrees |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cap in caps:
        for name in dict.fromkeys(result["contestant"] for result in results):
            here = [result for result in results if result["contestant"] == name and result["cap"] == cap]
            done = [result for result in here if "failed" not in result]
            if not done:
                for result in here[:1]:
                    lines.append(f"| {cap} | {name} | {result['failed']} | | | | | | |")
                continue

            def middle(key: str, rows: list[Result] = done) -> float:
                return statistics.median(row[key] for row in rows)

            rates = [row["tokens_per_s"] for row in done]
            resident = [row["resident_bytes"] / 2**20 for row in done if row["resident_bytes"]]
            lines.append(
                f"| {cap} | {name} | {middle('tokens_per_s'):.2f} | {min(rates):.2f} to {max(rates):.2f} "
                f"| {middle('p99_s') / middle('p50_s'):.1f} | {1e3 * middle('p99_s'):.0f} | {middle('ttft_s'):.2f} "
                f"| {max(resident, default=0):.0f} | {100 * middle('agrees'):.1f} % |"
            )
    return "\n".join(lines)


def _line(result: Result) -> str:
    head = f"round {result['round'] + 1}, {result['cap']}, {result['contestant']}: "
    if "failed" in result:
        return head + result["failed"]
    return head + f"{result['tokens_per_s']:.2f} tok/s, {result['tokens']} tokens, worst {result['worst_s']:.2f} s"


def _groups(named: Sequence[Contestant]) -> list[list[Contestant]]:
    groups: dict[str, list[Contestant]] = {}
    for one in named:
        groups.setdefault(one.precision, []).append(one)
    return list(groups.values())


def _contestant(name: str) -> Contestant:
    if name not in CONTESTANTS:
        raise NoPeer(f"there is no contestant '{name}': {', '.join(CONTESTANTS)}")
    return CONTESTANTS[name]


def _limit(text: str, size: int) -> tuple[str, int]:
    if text.endswith("%"):
        return text, int(size * float(text[:-1]) / 100)
    return text, parse_bytes(text)


def _prompt_ids(model: Path) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(model / "tokenizer.json")).encode(PROMPT).ids
    return ids


def _reference(setting: Setting, prompt: list[int], tokens: int) -> list[int]:
    """finemoe's own answer in bf16, with everything resident or as much as the machine's memory takes."""
    from offload.errors import BudgetTooLarge

    one = CONTESTANTS["finemoe"]
    order = setting.order(one, prompt, [], None) | {"tokens": tokens, "seconds": 1e9}
    for memory in ({"experts_fraction": 1.0}, {"experts_fraction": 0.5}, {"experts_fraction": 0.25}):
        order["engine"] = {"threads": setting.threads, "policy": setting.policy, **memory}
        with tempfile.TemporaryDirectory(dir=setting.work) as folder:
            path = Path(folder) / "order.json"
            path.write_text(json.dumps(order), encoding="utf-8")
            done = subprocess.run(
                setting.command(one, path), env=setting.environment(one), capture_output=True, text=True
            )
        if done.returncode == 0:
            ids: list[int] = json.loads(done.stdout.strip().splitlines()[-1])["likeliest"]
            return ids
        if BudgetTooLarge.__name__ not in done.stderr:
            break
    raise NoPeer(f"finemoe gives no reference: {last_line(done.stderr)}")


if __name__ == "__main__":
    main()
