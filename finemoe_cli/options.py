"""Options that several commands have, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

from offload.config import KERNELS, POLICIES
from offload.precision import PRECISIONS

MEMORY = "Model and memory"
SAMPLING = "Sampling"
ENGINE = "Engine"
"""Panels of the help."""


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


def complete_precision() -> list[str]:
    """Precisions of weights, for the shell."""
    return list(PRECISIONS)


def complete_policy() -> list[str]:
    """Policies, for the shell."""
    return list(POLICIES)


def complete_layout() -> list[str]:
    """Layouts of the chat's telemetry, for the shell."""
    from profiles.values import LAYOUT

    return list(LAYOUT.words)


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

# Settings that run and chat take.
RunModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="demo, another pulled model, or a folder in Hugging Face layout.",
        autocompletion=complete_model,
        rich_help_panel=MEMORY,
    ),
]
RunProfile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        metavar="NAME",
        help="Named memory budget; see finemoe profiles.",
        autocompletion=complete_profile,
        rich_help_panel=MEMORY,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SIZE|SHARE",
        help="Memory budget: 900MiB, 25% of the experts, or minimum. Instead of a profile's.",
        rich_help_panel=MEMORY,
    ),
]
HostBudget = Annotated[
    str | None,
    typer.Option(
        "--host-budget",
        metavar="SIZE",
        help="On CUDA: host memory for the process.",
        rich_help_panel=MEMORY,
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="TOKENS", help="Longest prompt and answer together.", rich_help_panel=MEMORY),
]
System = Annotated[
    str | None,
    typer.Option("--system", "-s", metavar="TEXT", help="System prompt.", rich_help_panel=SAMPLING),
]
MaxNewTokens = Annotated[
    str | None,
    typer.Option("--max-new-tokens", "-n", metavar="TOKENS", help="Longest answer.", rich_help_panel=SAMPLING),
]
Temperature = Annotated[
    str | None,
    typer.Option(
        "--temperature",
        "-t",
        metavar="NUMBER",
        help="0 is greedy: always the likeliest token.",
        rich_help_panel=SAMPLING,
    ),
]
TopP = Annotated[
    str | None,
    typer.Option(
        "--top-p",
        metavar="NUMBER",
        help="Sample from the likeliest tokens that make up p.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    str | None,
    typer.Option("--top-k", metavar="NUMBER", help="Sample from the k likeliest tokens.", rich_help_panel=SAMPLING),
]
MinP = Annotated[
    str | None,
    typer.Option(
        "--min-p",
        metavar="NUMBER",
        help="Leave out tokens less likely than this share of the likeliest.",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    str | None,
    typer.Option(
        "--repetition-penalty",
        metavar="NUMBER",
        help="Above 1: tokens that were there already get less likely.",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    str | None,
    typer.Option("--seed", metavar="NUMBER", help="Makes sampling repeatable.", rich_help_panel=SAMPLING),
]
Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        metavar="KIND",
        help="fast: own decode kernels. reference: transformers' modules. auto: fast where it can.",
        autocompletion=complete_kernels,
        rich_help_panel=ENGINE,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Weights: bf16, exact; int8 or int4, if the model is packed so with finemoe pack --bits.",
        autocompletion=complete_precision,
        rich_help_panel=ENGINE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N.",
        autocompletion=complete_device,
        rich_help_panel=ENGINE,
    ),
]
Threads = Annotated[
    str | None,
    typer.Option("--threads", metavar="NUMBER", help="Threads that compute.", rich_help_panel=ENGINE),
]
Lanes = Annotated[
    str | None,
    typer.Option(
        "--lanes",
        metavar="NUMBER",
        help="Threads that read experts; measured if not given.",
        rich_help_panel=ENGINE,
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="How experts are chosen to be read and evicted.",
        autocompletion=complete_policy,
        rich_help_panel=ENGINE,
    ),
]
