"""``finemoe bench``: what a model costs on this machine, measured; and models to measure with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.output import Output
from offload.models.synthetic.recipe import DEFAULT_PERSISTENCE, DEFAULT_SKEW, SHAPES, recipe
from offload.units import format_bytes

app = typer.Typer(
    help="Measure what a model costs on this machine, and make models to measure with.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe bench make-model qwen1.5-moe-a2.7b --layers 4 small-qwen
""",
)


def complete_shape() -> list[str]:
    """Shapes of synthetic models, for the shell."""
    return list(SHAPES)


@app.command("make-model")
def make_model(
    shape: Annotated[
        str,
        typer.Argument(
            metavar="SHAPE",
            help=f"The model whose shape it is to have: {' or '.join(SHAPES)}.",
            autocompletion=complete_shape,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    layers: Annotated[
        int | None,
        typer.Option("--layers", metavar="NUMBER", help="Only the first so many layers; otherwise all."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="NUMBER", help="Of all weights.")] = 0,
    skew: Annotated[
        float,
        typer.Option(
            "--skew", metavar="SHARE", help="How much routers prefer the same experts for every token, 0 to 0.7."
        ),
    ] = DEFAULT_SKEW,
    persistence: Annotated[
        float,
        typer.Option(
            "--persistence",
            metavar="SHARE",
            help="How slowly what routers see changes from token to token, 0 to 0.9.",
        ),
    ] = DEFAULT_PERSISTENCE,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint of full size with random weights: a published model's shape, to measure with.

    It takes the time and memory that the real model takes, and talks in made-up words. Interrupted, it leaves
    nothing behind.
    """
    output = Output(as_json=as_json, quiet=quiet)
    wanted = recipe(shape, layers=layers, seed=seed, skew=skew, persistence=persistence)
    from offload.models.synthetic.build import make_model as make

    begin = time.monotonic()
    with output.progress(eta=True) as progress:
        made = make(wanted, out, progress)
    if as_json:
        output.json(
            {
                "shape": made.card.shape,
                "path": str(out),
                "layers": made.card.layers,
                "all_layers": made.card.all_layers,
                "seed": made.card.seed,
                "skew": made.card.skew,
                "persistence": made.card.persistence,
                "bytes": made.nbytes,
                "made": made.changed,
                "seconds": round(time.monotonic() - begin, 3),
            }
        )
        return
    what = f"{made.card.shape}, {made.card.extent}, {format_bytes(made.nbytes)}"
    output.note(f"made {what}" if made.changed else f"{what}, was there already")
    output.line(str(out))
