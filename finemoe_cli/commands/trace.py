"""``finemoe trace``: forward passes, recorded to be replayed and looked at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.answering import open_engine
from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.reader import read_prompts
from finemoe_cli.datasets.sample import load_sample
from finemoe_cli.datasets.skipped import tell_skipped
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output
from finemoe_cli.signals import interrupts
from offload.errors import ConfigError
from offload.files import check_writable
from offload.models.spec import read_spec
from offload.trace.claim import check_not_being_recorded
from offload.units import format_bytes
from profiles.environment import prepare_process
from profiles.settings import resolve

app = typer.Typer(
    name="trace",
    help="Record what routers choose, look at it, and write it out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe trace record --limit 64 --turns 1 -n 48 --out demo.trace
  finemoe trace info demo.trace
  finemoe trace export demo.trace --format csv --out demo.csv
""",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A recorded trace.", show_default=False)]


class Format(StrEnum):
    """What ``export`` writes."""

    CSV = "csv"
    PARQUET = "parquet"


@app.command()
def record(
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Prompts: .txt, .jsonl, .json or .parquet."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="sample: the prompts that come with finemoe.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="NUMBER", min=1, help="So many conversations at most.")
    ] = None,
    turns: Annotated[
        int | None, typer.Option("--turns", metavar="NUMBER", min=1, help="So many turns of each at most.")
    ] = None,
    residuals: Annotated[
        bool,
        typer.Option(
            "--residuals/--no-residuals",
            help="Keep the residual stream of decoded tokens too; probes are learnt from it.",
        ),
    ] = False,
    prompt_residuals: Annotated[
        bool, typer.Option("--prompt-residuals", metavar="", help="And that of prompts: large.")
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Keep the user's messages in the trace.")
    ] = True,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write.")] = Path(
        "finemoe.trace"
    ),
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace a file that is there.")] = False,
    model: options.RunModel = None,
    profile: options.RunProfile = None,
    budget: options.Budget = None,
    policy: options.Policy = None,
    kernels: options.Kernels = None,
    precision: options.PrecisionOption = None,
    device: options.Device = None,
    context: options.Context = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer prompts and record what every router chose.

    Each conversation begins with an empty cache; in its later turns the model's own answers are in the prompt.
    Without --seed it is 0. Interrupted, it keeps the answers that were complete.
    """
    output = Output(as_json=as_json, quiet=quiet)
    resolved = resolve(
        {
            "model": model,
            "profile": profile,
            "budget": budget,
            "policy": policy,
            "kernels": kernels,
            "precision": precision,
            "device": device,
            "context": context,
            "system": system,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
        }
    )
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", "choose another name, or say --force")
    check_writable("the trace", out)  # Before the model is opened, which takes its time.
    if force:
        check_not_being_recorded(out)
    conversations = _conversations(prompts, dataset, limit, output)
    folder = ensure_model(resolved.settings.model, output)
    read_spec(folder)  # What cannot be run is said before torch is imported.
    for warning in prepare_process():
        output.warn(warning)
    engine = open_engine(folder, resolved, output)
    from finemoe_cli.recording import Recording
    from finemoe_cli.recording import record as record_to

    what = Recording(
        conversations=conversations,
        dataset=dataset or (prompts.name if prompts else "sample"),
        turns=turns,
        system=resolved.settings.system,
        sampling=resolved.sampling(),
        residuals=residuals,
        prompt_residuals=prompt_residuals,
        texts=texts,
    )
    with engine:
        interrupts.check()
        began = time.monotonic()
        with output.progress() as bars, interrupts.stopping(engine.stop):
            entries = record_to(
                engine,
                what,
                out,
                replace_file=force,
                profile=resolved.profile.name,
                stopped=lambda: interrupts.seen,
                progress=lambda done: bars("record", done, len(conversations)) if bars else None,
                left_out=output.warn,
            )
    made = {
        "path": str(out),
        "requests": len(entries),
        "prompt_tokens": sum(entry.prompt_tokens for entry in entries),
        "decoded_tokens": sum(entry.decoded_tokens for entry in entries),
        "bytes": out.stat().st_size,
        "seconds": round(time.monotonic() - began, 3),
    }
    output.note(
        f"{made['requests']} requests, {made['prompt_tokens']:,} prompt tokens and {made['decoded_tokens']:,} "
        f"decoded ones in {made['seconds']:.0f} s, {format_bytes(out.stat().st_size)}"
    )
    if as_json:
        output.json(made)
    else:
        output.line(str(out))
    interrupts.check()


@app.command()
def info(
    file: File,
    routing: Annotated[
        bool, typer.Option("--routing/--no-routing", help="Read the requests and work out routing statistics.")
    ] = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a trace holds, and what its routing is like."""
    from finemoe_cli.trace_info import trace_info, trace_table
    from finemoe_cli.trace_opening import open_trace

    output = Output(as_json=as_json, quiet=quiet)
    with open_trace(file, output) as trace, output.waiting("reading the trace"):
        facts = trace_info(trace, routing=routing)
    if as_json:
        output.json(facts)
    else:
        output.pairs(trace_table(facts))


@app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write.", show_default=False)],
    form: Annotated[Format, typer.Option("--format", metavar="FORMAT", help="csv or parquet.")] = Format.CSV,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace a file that is there.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a trace out as a table, one row for each expert that a token chose in a layer."""
    from finemoe_cli.trace_export import export as export_to
    from finemoe_cli.trace_opening import open_trace

    output = Output(quiet=quiet)
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", "choose another name, or say --force")
    with open_trace(file, output) as trace, output.progress() as bars:
        rows = export_to(trace, form.value, out, lambda done: bars("export", done, len(trace)) if bars else None)
    output.note(f"{rows:,} rows, {format_bytes(out.stat().st_size)}")
    output.line(str(out))


def _conversations(
    prompts: Path | None, dataset: str | None, limit: int | None, output: Output
) -> Sequence[Conversation]:
    if prompts is not None and dataset is not None:
        raise ConfigError("both --prompts and --dataset are given", "give one of the two")
    if prompts is None:
        if dataset not in (None, "sample"):
            raise ConfigError(f"there is no dataset '{dataset}'", "sample, or a file of your own with --prompts")
        return load_sample(limit)
    read = read_prompts(prompts, limit)
    tell_skipped(output, prompts, [str(problem) for problem in read.skipped], read.skipped_rows)
    return read.conversations
