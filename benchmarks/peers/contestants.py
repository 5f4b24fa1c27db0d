"""Who takes part, and how each is set up by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""Built from source by pip, with the instructions that this processor has: ten minutes on two cores, once."""

LLAMA_CPP_BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}
"""Only what takes part."""
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""Virtual machines may name these instructions and not have them; the build for this processor would end at one."""

BUDGET_SHARE = 0.955
"""Of the limit, for finemoe's budget, which it may overstep by 3 %; the rest is page tables and open files."""
ACCELERATE_SPARE = 700 << 20
"""Of the limit, for the interpreter, torch and the module that accelerate is bringing in."""


class NoPeer(Exception):
    """A contestant cannot be set up; the message says why."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One that is measured.

    Attributes:
        name: In tables.
        who: ``finemoe``, ``transformers``, ``accelerate`` or ``llama.cpp``.
        precision: ``bf16``, ``int8``, ``int4``; of llama.cpp ``bf16``, ``q8_0``, ``q4_0``.
        mmap: Whether llama.cpp maps its file, or reads it into memory first.
    """

    name: str
    who: str
    precision: str = "bf16"
    mmap: bool = True


CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("finemoe", "finemoe"),
        Contestant("finemoe-int8", "finemoe", "int8"),
        Contestant("finemoe-int4", "finemoe", "int4"),
        Contestant("llama.cpp", "llama.cpp"),
        Contestant("llama.cpp-no-mmap", "llama.cpp", mmap=False),
        Contestant("llama.cpp-q8_0", "llama.cpp", "q8_0"),
        Contestant("llama.cpp-q4_0", "llama.cpp", "q4_0"),
        Contestant("transformers", "transformers"),
        Contestant("accelerate", "accelerate"),
    )
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants have in common.

    Attributes:
        model: Folder of the checkpoint.
        work: Folder for the peers' files and their Python.
        threads: That compute; finemoe reads with others.
        context: Positions.
        seconds: An answer is cut off after so many.
    """

    model: Path
    work: Path
    threads: int
    context: int
    seconds: float
    policy: str

    def gguf(self, precision: str) -> Path:
        return self.work / f"{self.model.name}-{precision}.gguf"

    def prepare(self, one: Contestant) -> None:
        """Install what `one` needs and write its file.

        Raises:
            NoPeer: It cannot be had.
        """
        if one.who == "llama.cpp":
            self._llama_python()
            self._write_gguf(one.precision)
        if one.who == "finemoe" and one.precision != "bf16":
            self._pack(one.precision)

    def order(self, one: Contestant, prompt: list[int], answer: list[int], limit: int | None) -> dict[str, Any]:
        """What its worker is told."""
        order: dict[str, Any] = {
            "who": one.who,
            "model": str(self.model),
            "prompt": prompt,
            "answer": answer,
            "threads": self.threads,
            "context": self.context,
            "seconds": self.seconds,
        }
        if one.who == "llama.cpp":
            order |= {"file": str(self.gguf(one.precision)), "mmap": one.mmap}
        if one.who == "accelerate":
            assert limit is not None
            order |= {"cpu_bytes": max(limit - ACCELERATE_SPARE, 1), "offload": str(self.work / "offload")}
        if one.who == "finemoe":
            memory = {"experts_fraction": 1.0} if limit is None else {"budget_bytes": int(BUDGET_SHARE * limit)}
            order["engine"] = {"threads": self.threads, "policy": self.policy, **memory}
            if one.precision != "bf16":
                order["engine"]["precision"] = one.precision
        return order

    def command(self, one: Contestant, order: Path) -> list[str]:
        """The worker."""
        if one.who == "llama.cpp":
            return [str(self._llama_python()), str(Path(__file__).with_name("llama_worker.py")), str(order)]
        return [sys.executable, "-m", "benchmarks.peers.python_worker", str(order)]

    def environment(self, one: Contestant) -> dict[str, str]:
        """A worker's: each peer as it is by itself, torch's threads asleep while they wait.

        llama.cpp has hundreds of barriers a token; where its threads slept at each of them it would be slower.
        """
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment if one.who == "llama.cpp" else environment | {"OMP_WAIT_POLICY": "PASSIVE"}

    def drop_from_cache(self) -> None:
        """Make every file cold that a contestant may read."""
        for path in [*self.model.iterdir(), *self.work.iterdir()]:
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _llama_python(self) -> Path:
        place = self.work / "llama.cpp"
        python = place / "bin" / "python"
        ready = place / "ready"  # A build that was killed leaves a Python as well.
        if not ready.exists():
            print(f"building {LLAMA_CPP}; ten minutes, once", file=sys.stderr)
            venv.create(place, clear=True, with_pip=True)
            environment = {**os.environ, **LLAMA_CPP_BUILD}
            if "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"):
                environment |= {"CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX}
            # No cache: a wheel in it may have been built otherwise.
            command = [python, "-m", "pip", "install", "-q", "--no-cache-dir", LLAMA_CPP]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                shutil.rmtree(place)
                raise NoPeer(f"{LLAMA_CPP} cannot be installed: {last_line(done.stderr)}; it needs cmake and C++")
            ready.touch()
        return python

    def _write_gguf(self, precision: str) -> None:
        path = self.gguf(precision)
        if path.exists():
            return
        for other in self.work.glob("*.gguf*"):
            other.unlink()  # One peer file at a time: a full-size one is as large as the model.
        command = [sys.executable, "-m", "benchmarks.peers.gguf_export", str(self.model), str(path)]
        done = subprocess.run([*command, "--precision", precision], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise NoPeer(f"no {precision} file for llama.cpp: {last_line(done.stderr)}")

    def _pack(self, precision: str) -> None:
        command = [sys.executable, "-m", "finemoe_cli", "pack", str(self.model), "--bits", precision[3:], "-q"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise NoPeer(f"no {precision} pack: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """What a process said last."""
    return (text.strip().splitlines() or ["it was killed"])[-1]
