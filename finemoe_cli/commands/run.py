"""``finemoe run``: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finemoe_cli import options
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output, StdoutClosed
from finemoe_cli.prompt import read_prompt
from finemoe_cli.signals import interrupts
from offload.models.spec import read_spec
from profiles.environment import prepare_process
from profiles.settings import Resolved, resolve

if TYPE_CHECKING:
    from offload import Engine

_MEMORY = "Model and memory"
_SAMPLING = "Sampling"
_ENGINE = "Engine"
_OUTPUT = "Output"

EPILOG = """
[bold]Examples[/]

  finemoe run "Why is the sky blue?"
  finemoe run --profile low --stats "Name three rivers"
  finemoe run --budget 1GiB --temperature 0 --json "Count to five" | jq .text
  finemoe run "Summarise this:" < notes.txt
"""


def run(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to ask. Without it, or with -, it is read from stdin; text piped in follows it.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="demo, another pulled model, or a folder in Hugging Face layout.",
            autocompletion=options.complete_model,
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="NAME",
            help="Named memory budget; see finemoe profiles.",
            autocompletion=options.complete_profile,
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="SIZE|SHARE",
            help="Memory budget: 900MiB, 25% of the experts, or minimum. Instead of a profile's.",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    host_budget: Annotated[
        str | None,
        typer.Option(
            "--host-budget",
            metavar="SIZE",
            help="On CUDA: host memory for the process.",
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="TOKENS", help="Longest prompt and answer together.", rich_help_panel=_MEMORY
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", "-s", metavar="TEXT", help="System prompt.", rich_help_panel=_SAMPLING),
    ] = None,
    max_new_tokens: Annotated[
        str | None,
        typer.Option("--max-new-tokens", "-n", metavar="TOKENS", help="Longest answer.", rich_help_panel=_SAMPLING),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            "--temperature",
            "-t",
            metavar="NUMBER",
            help="0 is greedy: always the likeliest token.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    top_p: Annotated[
        str | None,
        typer.Option(
            "--top-p",
            metavar="NUMBER",
            help="Sample from the likeliest tokens that make up p.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    top_k: Annotated[
        str | None,
        typer.Option(
            "--top-k", metavar="NUMBER", help="Sample from the k likeliest tokens.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    min_p: Annotated[
        str | None,
        typer.Option(
            "--min-p",
            metavar="NUMBER",
            help="Leave out tokens less likely than this share of the likeliest.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        str | None,
        typer.Option(
            "--repetition-penalty",
            metavar="NUMBER",
            help="Above 1: tokens that were there already get less likely.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option("--seed", metavar="NUMBER", help="Makes sampling repeatable.", rich_help_panel=_SAMPLING),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            metavar="",
            help="Continue the text as it is, without the chat template.",
            rich_help_panel=_SAMPLING,
        ),
    ] = False,
    kernels: Annotated[
        str | None,
        typer.Option(
            "--kernels",
            metavar="KIND",
            help="fast: own decode kernels. reference: transformers' modules. auto: fast where it can.",
            autocompletion=options.complete_kernels,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="auto, cpu, cuda or cuda:N.",
            autocompletion=options.complete_device,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option("--threads", metavar="NUMBER", help="Threads that compute.", rich_help_panel=_ENGINE),
    ] = None,
    lanes: Annotated[
        str | None,
        typer.Option(
            "--lanes",
            metavar="NUMBER",
            help="Threads that read experts; measured if not given.",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="How experts are chosen to be read and evicted.",
            autocompletion=options.complete_policy,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
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

    engine = _open(folder, resolved, output)
    with engine:
        interrupts.check()
        answer = _answer(engine, question, resolved, output, raw=raw, stream=not (no_stream or as_json))
    answer["profile"] = resolved.profile.name
    if as_json:
        output.json(answer)
    elif no_stream:
        printer = output.stream()
        printer.write(answer["text"])
        printer.end()
    if stats:
        from ui.stats import stats_table

        output.aside(stats_table(answer))
    interrupts.check()


def _open(folder: Path, resolved: Resolved, output: Output) -> Engine:
    with output.progress(transient=True, lines=False) as progress:
        from offload import Engine

        return Engine(resolved.engine_config(folder), progress)


def _answer(
    engine: Engine, question: str, resolved: Resolved, output: Output, *, raw: bool, stream: bool
) -> dict[str, Any]:
    """The completion as a dictionary. Ctrl-C, and a reader that goes away, end it early."""
    unwritable: list[OSError] = []
    with output.waiting("reading the prompt") as stop_waiting:
        printer = output.stream(before_first=stop_waiting)

        def show(text: str) -> None:
            if unwritable:
                return
            try:
                printer.write(text)
            except OSError as error:
                # The engine is not to see an error that is not its own.
                unwritable.append(error)
                engine.stop()

        on_text = show if stream else None
        with interrupts.stopping(engine.stop):
            if raw:
                completion = engine.complete(question, resolved.sampling(), on_text)
            else:
                messages = [{"role": "user", "content": question}]
                if resolved.settings.system:
                    messages.insert(0, {"role": "system", "content": resolved.settings.system})
                completion = engine.chat(messages, resolved.sampling(), on_text)
    if unwritable:
        if isinstance(unwritable[0], BrokenPipeError):
            raise StdoutClosed
        raise unwritable[0]
    if stream:
        printer.end()
    answer: dict[str, Any] = completion.to_dict()
    return answer
