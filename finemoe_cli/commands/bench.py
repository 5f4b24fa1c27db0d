"""``finemoe bench``: what a model costs on this machine, measured; and models to measure with."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe_cli import options
from finemoe_cli.bench.command_group import MeasuringGroup
from finemoe_cli.figures import FORMATS
from finemoe_cli.lists import chosen
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output
from offload.models.synthetic.recipe import DEFAULT_PERSISTENCE, DEFAULT_SKEW, SHAPES, recipe
from offload.units import format_bytes
from profiles.environment import prepare_process
from profiles.settings import resolve

if TYPE_CHECKING:
    from finemoe_cli.bench.plan import Configuration, Workload
    from finemoe_cli.bench.samples import Measured

app = typer.Typer(
    name="bench",
    cls=MeasuringGroup,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe bench demo
  finemoe bench demo -p 0 -n 64 --policy demand,auto --budget 12.5%,25%
  finemoe bench sweep demo --budgets 6.25%,12.5%,25%,50%,100%
  finemoe bench make-model qwen1.5-moe-a2.7b --layers 4 small-qwen
""",
)


class Form(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    MARKDOWN = "md"
    CSV = "csv"


def complete_shape() -> list[str]:
    """Shapes of synthetic models, for the shell."""
    return list(SHAPES)


Generate = Annotated[
    int, typer.Option("--generate", "-n", metavar="TOKENS", help="Tokens of the generation test; 0 for none.")
]
Repeats = Annotated[int, typer.Option("--repeats", "-r", metavar="NUMBER", help="How often each test is made.")]
Seed = Annotated[int, typer.Option("--seed", metavar="NUMBER", help="Of the tokens that are drawn.")]
Policies = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="NAMES", help="One or several, with commas.", autocompletion=options.complete_policy
    ),
]
Precisions = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAMES", help="bf16, or what the model was packed in; with commas."),
]


@app.callback(invoke_without_command=True)
def bench(
    invoked: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="demo, another pulled model, or a folder; the configured one if not given.",
            autocompletion=options.complete_model,
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        int, typer.Option("--prompt", "-p", metavar="TOKENS", help="Tokens of the prompt test; 0 for none.")
    ] = 512,
    generate: Generate = 128,
    repeats: Repeats = 3,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAMES",
            help="One or several, with commas.",
            autocompletion=options.complete_profile,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="BUDGETS", help="Instead of profiles: sizes or shares, with commas."),
    ] = None,
    policy: Policies = None,
    precision: Precisions = None,
    context: options.Context = None,
    kernels: options.Kernels = None,
    device: options.Device = None,
    threads: options.Threads = None,
    lanes: options.Lanes = None,
    seed: Seed = 0,
    cold: Annotated[
        bool,
        typer.Option("--cold", metavar="", help="Each repeat begins with empty slots and nothing cached."),
    ] = False,
    form: Annotated[
        Form, typer.Option("--format", metavar="KIND", help="How the rows are printed: table, md or csv.")
    ] = Form.TABLE,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure prompts and generation, in the manner of llama-bench, and what waiting for experts has to do with it.

    Each configuration is opened in a process of its own, goes through each test once uncounted, and starts with
    nothing learnt before. Commands of its own: finemoe bench sweep, finemoe bench make-model.
    """
    if invoked.invoked_subcommand is not None:
        return
    output = Output(as_json=as_json, quiet=quiet)
    from finemoe_cli.bench.plan import Workload, configurations

    workload = Workload(prompt=prompt, generate=generate, repeats=repeats, seed=seed, cold=cold)
    folder = _model(model, output)
    asked = {
        "model": model,
        "profile": profile,
        "budget": budget,
        "policy": policy,
        "precision": precision,
        "kernels": kernels,
        "device": device,
        "threads": threads,
        "lanes": lanes,
        "context": context,
    }
    from finemoe_cli.bench.facts import facts_of
    from finemoe_cli.bench.rows import HEADERS, Row, as_csv, as_markdown, cells_of, rows_of

    found = configurations(asked, folder, workload)
    facts = facts_of(folder)
    rows: list[Row] = []
    for one in found:
        rows += rows_of(one, workload, _measured(one, workload, output, routing=False))
    if as_json:
        output.json(facts.to_dict() | {"workload": workload.to_dict(), "rows": [row.to_dict() for row in rows]})
    elif form is Form.CSV:
        output.line(as_csv(facts.flat, rows))
    elif form is Form.MARKDOWN:
        output.line(as_markdown(facts.pairs, rows))
    else:
        output.pairs(facts.pairs)
        output.line("")
        output.table(HEADERS, [cells_of(row) for row in rows])


@app.command()
def sweep(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="demo, another pulled model, or a folder.", autocompletion=options.complete_model
        ),
    ],
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="BUDGETS", help="Shares of the experts, or sizes, with commas.")
    ] = "6.25%,12.5%,25%,50%,75%,100%",
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="NAME", help="Which one.", autocompletion=options.complete_policy),
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="NAME", help="Which one.")] = None,
    generate: Generate = 128,
    repeats: Repeats = 3,
    seed: Seed = 0,
    context: options.Context = None,
    kernels: options.Kernels = None,
    threads: options.Threads = None,
    lanes: options.Lanes = None,
    figures: Annotated[str, typer.Option("--figure", metavar="KINDS", help="svg, png, pdf; with commas.")] = "svg",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the files go; here if not given.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model at several budgets: time a token by memory, with the least that is possible and the forecast.

    Writes sweep.csv, sweep.json and the figure. The machine is calibrated and the forecasts are made before
    anything is measured; what the routers chose is kept, and makes the next forecasts better.
    """
    from finemoe_cli.bench.sweeping import Sweep, write_files

    output = Output(as_json=as_json, quiet=quiet)
    kinds = chosen(figures, FORMATS, "figure")
    folder = _model(model, output)
    asked = {
        "model": model,
        "profile": None,
        "budget": budgets,
        "policy": policy,
        "precision": precision,
        "kernels": kernels,
        "threads": threads,
        "lanes": lanes,
        "context": context,
    }
    run = Sweep(asked, folder, generate=generate, repeats=repeats, seed=seed)
    with output.progress(transient=True, lines=False) as progress:
        run.forecast(progress or _silent)
    for one in run.configurations:
        run.take(one, _measured(one, run.workload, output, routing=one is run.recorded))
    from finemoe_cli.bench.sweep import HEADERS, cells_of

    result = run.finish()
    paths = write_files(result, Path.cwd() if out is None else out, kinds)
    if as_json:
        output.json(result.to_dict())
    else:
        output.pairs(result.facts.pairs)
        output.line("")
        output.table(HEADERS, [cells_of(point) for point in result.points])
    output.note(f"wrote {', '.join(str(path) for path in paths)}")


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


def _model(name: str | None, output: Output) -> Path:
    """The folder of the model to measure, and the process made ready for it."""
    for warning in prepare_process():
        output.warn(warning)
    return ensure_model(resolve({"model": name or None}).settings.model, output)


def _measured(one: Configuration, workload: Workload, output: Output, *, routing: bool) -> Measured:
    """One configuration, with its progress shown under its name."""
    from finemoe_cli.bench.engines import measure

    output.note(f"measuring {one.name}")
    with output.progress(transient=True, lines=False) as progress:
        return measure(one, workload, progress or _silent, routing=routing)


def _silent(stage: str, done: int, total: int) -> None:
    """For those who want to hear nothing."""
