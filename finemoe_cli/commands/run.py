"""``finemoe run``: one prompt, one answer."""

from __future__ import annotations

from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.answering import answer, open_engine
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output
from finemoe_cli.prompt import read_prompt
from finemoe_cli.signals import interrupts
from offload.models.spec import read_spec
from profiles.environment import prepare_process
from profiles.paths import boards_dir
from profiles.settings import resolve

_OUTPUT = "Output"

app = typer.Typer()

_EPILOG = """
[bold]Examples[/]

  finemoe run "Why is the sky blue?"
  finemoe run --profile low --stats "Name three rivers"
  finemoe run --budget 1GiB --temperature 0 --json "Count to five" | jq .text
  finemoe run "Summarise this:" < notes.txt
"""


@app.command(epilog=_EPILOG)
def run(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to ask. Without it, or with -, it is read from stdin; text piped in follows it.",
            show_default=False,
        ),
    ] = None,
    model: options.RunModel = None,
    profile: options.RunProfile = None,
    budget: options.Budget = None,
    host_budget: options.HostBudget = None,
    context: options.Context = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            metavar="",
            help="Continue the text as it is, without the chat template.",
            rich_help_panel=options.SAMPLING,
        ),
    ] = False,
    kernels: options.Kernels = None,
    precision: options.PrecisionOption = None,
    device: options.Device = None,
    threads: options.Threads = None,
    lanes: options.Lanes = None,
    policy: options.Policy = None,
    no_stream: Annotated[
        bool,
        typer.Option("--no-stream", metavar="", help="Print the answer when it is whole.", rich_help_panel=_OUTPUT),
    ] = False,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            metavar="",
            help="A short table of speed, hits and memory, on stderr.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar="",
            help="Print one JSON object: answer, tokens and all counters.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", metavar="", help="Nothing on stderr but errors.", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Answer one prompt, token by token as it comes.

    With no model configured it uses the demo, which it builds by itself the first time.
    """
    output = Output(as_json=as_json, quiet=quiet)
    resolved = resolve(
        {
            "model": model,
            "profile": profile,
            "budget": budget,
            "host_budget": host_budget,
            "context": context,
            "system": system,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "kernels": kernels,
            "precision": precision,
            "device": device,
            "threads": threads,
            "lanes": lanes,
            "policy": policy,
        }
    )
    question = read_prompt(prompt, output)
    folder = ensure_model(resolved.settings.model, output)
    read_spec(folder)  # What cannot be run is said before torch is imported.
    for warning in prepare_process():
        output.warn(warning)

    asked: str | list[dict[str, str]] = question
    if not raw:
        asked = [{"role": "user", "content": question}]
        if resolved.settings.system:
            asked.insert(0, {"role": "system", "content": resolved.settings.system})
    # Imported before the engine measures what there is besides it.
    from offload.service.publish import published

    profile_in_force = resolved.profile.name if resolved.origins["budget"].kind == "profile" else ""
    engine = open_engine(folder, resolved, output)
    with engine, published(engine, boards_dir(), command="run", profile=profile_in_force):
        interrupts.check()
        said = answer(engine, asked, resolved, output, stream=not (no_stream or as_json))
    said["profile"] = resolved.profile.name
    if as_json:
        output.json(said)
    elif no_stream:
        printer = output.stream()
        printer.write(said["text"])
        printer.end()
    if stats:
        from ui.stats import stats_table

        output.aside(stats_table(said))
    interrupts.check()
