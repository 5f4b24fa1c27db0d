"""Options that several commands have, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

from offload.config import KERNELS, POLICIES


def complete_profile() -> list[str]:
    """Profile names, for the shell."""
    from profiles.store import profile_names

    return profile_names()


def complete_model() -> list[str]:
    """Model names, for the shell."""
    from profiles.models import DEMO, pulled_models

    return list(dict.fromkeys([DEMO, *pulled_models()]))


def complete_demo() -> list[str]:
    """What can be pulled by a short name, for the shell."""
    from profiles.models import DEMO

    return [DEMO]


def complete_installed() -> list[str]:
    """Names of models that are there, for the shell."""
    from profiles.models import pulled_models

    return pulled_models()


def complete_setting() -> list[str]:
    """Setting names, for the shell."""
    from profiles.settings import SETTINGS

    return list(SETTINGS)


def complete_kernels() -> list[str]:
    """Kinds of decode kernels, for the shell."""
    return list(KERNELS)


def complete_policy() -> list[str]:
    """Policies, for the shell."""
    return list(POLICIES)


def complete_device() -> list[str]:
    """Devices, for the shell."""
    return ["auto", "cpu", "cuda"]


Json = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Nothing on stderr but errors.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="Model to run: demo, another pulled model, or a folder in Hugging Face layout.",
        autocompletion=complete_model,
    ),
]
