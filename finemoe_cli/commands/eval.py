"""``finemoe eval``: prompts answered under several policies and budgets, and what that cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import Output, Reported, print_error
from finemoe_cli.signals import interrupts
from offload.errors import ConfigError, FinemoeError, NotFound
from profiles.environment import prepare_process

app = typer.Typer(
    name="eval",
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe eval --limit 20 -n 32
  finemoe eval --policy demand,finemoe,auto --profile low,balanced --out runs/policies
  finemoe eval --dataset lmsys --budget 12.5%,25% --seed 0,1,2
  finemoe eval --online --arrivals poisson:0.2
  finemoe eval --resume runs/policies
  finemoe eval --budget 25% --fail-if "hit_rate<0.6"
  finemoe eval compare runs/before runs/after
""",
)

_WHAT = "What is asked"
_COMPARED = "What is compared"
_OUTPUT = "Output"


def complete_dataset() -> list[str]:
    """Data sets, for the shell."""
    from finemoe_cli.evaluation.prompts import HUB, SAMPLE

    return [SAMPLE, *HUB]


def complete_arrivals() -> list[str]:
    """Arrivals that are no file, for the shell."""
    return ["at-once", "poisson:"]


@app.callback(invoke_without_command=True)
def evaluate(
    invoked: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME|FILE",
            help="sample: the prompts that come with finemoe. lmsys, sharegpt: those, where they are. Or a file.",
            autocompletion=complete_dataset,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="A copy of the data set.", rich_help_panel=_WHAT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="NUMBER",
            min=1,
            help="So many conversations, history and test together.  [default: 64]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="A:B",
            help="Conversations to learn from, and to test with.  [default: 70:30]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            metavar="",
            help="No history: policies begin with nothing, and learn from what is measured.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    turns: Annotated[
        int | None,
        typer.Option(
            "--turns", metavar="NUMBER", min=1, help="So many turns of each at most.", rich_help_panel=_WHAT
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            "--warmup",
            metavar="NUMBER",
            min=0,
            help="Conversations of the history that each engine answers first, uncounted.  [default: 1]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            "--arrivals",
            metavar="HOW|FILE",
            help="at-once, poisson:RATE in conversations a second, or a file of times; waiting then counts.",
            autocompletion=complete_arrivals,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    arrival_scale: Annotated[
        float | None,
        typer.Option(
            "--arrival-scale",
            metavar="NUMBER",
            help="Multiplies the times of that file: 0.001 for milliseconds.  [default: 1]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    check_exact: Annotated[
        bool,
        typer.Option(
            "--check-exact",
            metavar="",
            help="Hold all conversations again with every expert in memory, and compare logits bit by bit.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    perplexity: Annotated[
        Path | None,
        typer.Option(
            "--perplexity",
            metavar="FILE",
            help="Work out the perplexity of this text too.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAMES",
            help="Policies, with commas between; else the one that is set.",
            autocompletion=options.complete_policy,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="NAMES",
            help="Memory budgets by name, with commas between; else the one that is set.",
            autocompletion=options.complete_profile,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="SIZES|SHARES",
            help="Memory budgets, with commas between: 900MiB, 25%, minimum. Instead of profiles.",
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    model: options.RunModel = None,
    context: options.Context = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    seed: Annotated[
        str | None,
        typer.Option(
            "--seed",
            metavar="NUMBERS",
            help="Of the draw, the split and the answers; several with commas between.  [default: 0]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    kernels: options.Kernels = None,
    precision: options.PrecisionOption = None,
    device: options.Device = None,
    threads: options.Threads = None,
    lanes: options.Lanes = None,
    side_by_side: Annotated[
        int | None,
        typer.Option(
            "--side-by-side",
            metavar="NUMBER",
            min=1,
            help="Engines open at once; as many as memory has room for if not given.",
            rich_help_panel=options.ENGINE,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where to keep the run.", rich_help_panel=_OUTPUT),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            help="Go on with a run that was broken off, as it was begun.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="METRIC<NUMBER",
            help="End with exit code 5 if it holds for a combination: 'hit_rate<0.6'. May be repeated.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer prompts under each policy and each budget, and say what that cost.

    Answers are greedy and of at most 128 tokens, if nothing else is said. Each policy and budget has an engine of
    its own; they take turns conversation by conversation. Every request is kept as it ends.
    """
    if invoked.invoked_subcommand is not None:
        return
    from finemoe_cli.evaluation.asking import absolute_arrivals, absolute_data, all_asked, new_folder, settle
    from finemoe_cli.evaluation.folder import RUN, RunFolder
    from finemoe_cli.evaluation.gates import judge, parse_gates

    output = Output(as_json=as_json, quiet=quiet)
    gates = parse_gates(fail_if or [])
    if resume is not None and out is not None:
        raise ConfigError("both --resume and --out are given", "give one of the two")
    if resume is not None and not (resume / RUN).exists():
        raise NotFound(f"there is no run in {resume}", "begin one with --out")
    path = resume or out or new_folder()
    given = {
        "dataset": dataset,
        "data": absolute_data(dataset, data),
        "limit": limit,
        "seed": seed,
        "split": split,
        "online": online or None,
        "arrivals": absolute_arrivals(arrivals),
        "arrival_scale": arrival_scale,
        "check_exact": check_exact or None,
        "perplexity": None if perplexity is None else str(perplexity.absolute()),
        "turns": turns,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "system": system,
        "warmup": warmup,
        "model": model,
        "policy": policy,
        "profile": profile,
        "budget": budget,
        "context": context,
        "kernels": kernels,
        "precision": precision,
        "device": device,
        "threads": threads,
        "lanes": lanes,
    }
    plan = settle(all_asked(given, path, resumed=resume is not None), output)
    for warning in prepare_process():
        output.warn(warning)
    from finemoe_cli.evaluation.sitting import sit

    with RunFolder.open(path) as folder:
        summary = sit(plan, folder, side_by_side, output)
    verdicts = judge(gates, summary["combinations"]) if summary["complete"] else []
    if as_json:
        output.json(summary | {"gates": [asdict(verdict) for verdict in verdicts]})
    else:
        from finemoe_cli.evaluation.summary import table_of

        output.render(table_of(summary))
        output.note(f"kept in {folder.path}")
    interrupts.check()
    if not any(one["requests"] for one in summary["combinations"]):
        raise FinemoeError("no prompt could be answered", f"see {folder.path}")
    failed = [verdict for verdict in verdicts if verdict.failed]
    for verdict in failed:
        value = "not measured" if verdict.value is None else f"{verdict.value:.6g}"
        print_error(f"{verdict.gate}: of {verdict.combination} it is {value}")
    exact = summary["exact"]
    if exact and exact["first_difference"]:
        from finemoe_cli.evaluation.exact import difference_in_words

        print_error(difference_in_words(exact["first_difference"]))
    elif exact and summary["complete"]:
        output.note(f"exact: the logits of {exact['passes']} forward passes are those of the resident model")
    if failed or (exact and exact["first_difference"]):
        raise Reported(ExitCode.GATE_FAILED)


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="Folder of a run; FOLDER:COMBINATION for a part.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="What it is compared with.")],
    seed: Annotated[int, typer.Option("--seed", metavar="NUMBER", min=0, help="Of the bootstrap.")] = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two runs of the same prompts, conversation by conversation.

    Differences are B - A, with the bounds of a 95 % confidence interval.
    """
    from finemoe_cli.evaluation.compare import compare_runs, comparison_json, comparison_rows

    output = Output(as_json=as_json, quiet=quiet)
    comparisons = compare_runs(run_a, run_b, seed)
    if as_json:
        output.json({"comparisons": [comparison_json(one) for one in comparisons]})
        return
    for number, one in enumerate(comparisons):
        if number:
            output.line("")
        output.line(
            f"A: {one.a.combination} of {one.a.run}; B: {one.b.combination} of {one.b.run}; "
            f"{one.conversations} conversations, {100 * one.same_answers:.0f} % of the answers alike"
        )
        output.table(["metric", "A", "B", "B - A", "95 %", "B / A"], comparison_rows(one))
