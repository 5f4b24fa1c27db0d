"""``finemoe simulate``: policies, budgets and links tried on a recorded trace, without the model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finemoe_cli import options
from finemoe_cli.figures import FORMATS
from finemoe_cli.output import Output
from finemoe_cli.simulation_arguments import (
    read_budgets,
    read_links,
    read_options,
    read_policies,
    read_split,
    simulated_policies,
)
from offload.errors import ConfigError
from offload.files import check_writable
from profiles.environment import prepare_process
from profiles.files import write_atomically
from profiles.paths import simulations_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from finemoe_cli.simulation import Grid
    from finemoe_cli.simulation_report import Row
    from offload.trace.file import Trace
    from offload.trace.simulator import Timing

app = typer.Typer()

_EPILOG = """
[bold]Examples[/]

  finemoe simulate demo.trace
  finemoe simulate demo.trace --policy demand,auto --budget 12.5%,25% --link 1.5 --orders 1
  finemoe simulate demo.trace --calibrated --budget 25%
  finemoe simulate demo.trace --policy promoe --option promoe.stride=3 --csv runs.csv --figure runs.svg
"""

_WHAT = "What is replayed"
_OUTPUT = "Output"


@app.command(epilog=_EPILOG)
def simulate(
    files: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Recorded with finemoe trace record; of one model.")
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAMES",
            help="Policies, with commas between; all, and belady and oracle, which know the future.",
            autocompletion=simulated_policies,
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option("--budget", metavar="SHARES", help="Shares of the experts, such as 25%, or numbers of slots."),
    ] = "5%,12.5%,25%,50%",
    link: Annotated[
        str | None,
        typer.Option(
            "--link",
            metavar="RATIOS",
            help="Time to move an expert, in times to compute a layer; 0.5,1.5,4 if not given.",
        ),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", metavar="", help="Times as they were recorded, in milliseconds, for --link."),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="POLICY.NAME=VALUE", help="A policy's parameter; may be repeated."),
    ] = None,
    charge: Annotated[
        bool,
        typer.Option("--charge/--no-charge", help="Take the memory of what a policy knows off its budget."),
    ] = True,
    demand_only: Annotated[
        bool,
        typer.Option("--demand-only", metavar="", help="Leave all reads ahead out: what each eviction is worth."),
    ] = False,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="A:B",
            help="Conversations that policies learn from, and that are replayed.",
            rich_help_panel=_WHAT,
        ),
    ] = "70:30",
    replay: Annotated[
        int | None,
        typer.Option(
            "--replay",
            metavar="NUMBER",
            min=1,
            help="Conversations of the second part that each order replays; all if not given.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    history: Annotated[
        bool,
        typer.Option("--history/--no-history", help="Learn from the first part at all.", rich_help_panel=_WHAT),
    ] = True,
    orders: Annotated[
        int,
        typer.Option(
            "--orders",
            metavar="NUMBER",
            min=1,
            help="Orders of the conversations; the first as recorded.",
            rich_help_panel=_WHAT,
        ),
    ] = 3,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="NUMBER", min=0, help="Of the split and the orders.", rich_help_panel=_WHAT),
    ] = 0,
    prefill: Annotated[
        bool | None,
        typer.Option(
            "--prefill/--no-prefill",
            help="Prompts move experts too; not unless --calibrated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="NUMBER", min=1, help="Processes; one for each core if not given."),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write every run as a line of CSV.", rich_help_panel=_OUTPUT),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", metavar="FILE", help="Draw it, as FILE.svg, .png or .pdf.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Replace files that are there.", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Replay a trace under policies, budgets and links, in simulated time.

    The policies, the cache and all counts are the engine's own; computing and reading are numbers.
    """
    output = Output(as_json=as_json, quiet=quiet)
    names = read_policies(policy)
    shares = read_budgets(budget)
    budgets = [one.strip() for one in budget.split(",")]
    if calibrated and link is not None:
        raise ConfigError("both --link and --calibrated are given", "give one of the two")
    ratios = [] if calibrated else read_links(link or "0.5,1.5,4")
    links = ["calibrated"] if calibrated else [f"{ratio:g}" for ratio in ratios]
    given = read_options(option or [], names)
    part = read_split(split)
    _check_targets([path for path in (csv, figure) if path is not None], figure, force=force)
    prefill = calibrated if prefill is None else prefill
    for warning in prepare_process():
        output.warn(warning)

    with ExitStack() as stack:
        with output.waiting("starting"):
            from finemoe_cli import simulation
            from finemoe_cli.simulation_history import describe, learn
            from finemoe_cli.simulation_report import measure, rows_json, rows_of, runs_csv
            from offload.policy.knowledge import Knowledge

            traces = _open(files, stack, output)
        model = traces[0].model
        learnt, orders_of = simulation.split_requests(
            [trace.entries for trace in traces], part, orders, seed, replay
        )
        with output.waiting("making the policies"):
            import offload.policy.kernels.gates  # noqa: F401  Compiled here, once, and not by every process.

            for name, parameters in given.items():  # Before anything is learnt, which may take long.
                simulation.check_policy_options(name, model, Knowledge(), parameters)
        with output.progress(transient=True, lines=False) as bars:
            tell = bars or _nobody
            timings, timed = _timings(traces, ratios, tell)
            known, note = Knowledge(), "nothing was learnt before: --no-history"
            if history and learnt:
                known, note = learn(traces, learnt, simulations_dir(), tell)
            elif history:
                note = "nothing was learnt before: the split leaves no conversation for it"
        tokens = sum(traces[trace].entries[number].decoded_tokens for trace, number in orders_of[0])
        output.note(
            f"{model.name}: learnt from {_count(len(learnt) if history else 0, 'request')}; replaying "
            f"{_count(len(orders_of[0]), 'request')} with {tokens:,} decoded tokens"
        )
        notes = [note] if note else []
        notes += [f"reads: {timed}"] if timed else []
        slots: dict[str, list[int]] = {}
        taken: dict[str, int] = {}
        with output.waiting("making the policies"):
            for name in names:
                said = simulation.check_policy_options(name, model, known, given.get(name, {}))
                notes += [f"{name}: {said}"] if said else []
        for name in dict.fromkeys([*names, *simulation.REFERENCES]):
            slots[name], taken[name] = simulation.slots_for(
                name, shares, model, known, given.get(name, {}), charge=charge
            )
        for one in notes:
            output.note(one)
        grid = simulation.Grid(
            traces=tuple(trace.path for trace in traces),
            held_out=orders_of,
            timings=timings,
            prefill=prefill,
            options=given,
            knowledge=known,
            runs=simulation.plan_runs(names, slots, len(timings), orders, demand_only=demand_only),
        )
    with output.progress(transient=True, lines=False, eta=True) as bars:
        outcomes = simulation.run_grid(
            grid, jobs or len(os.sched_getaffinity(0)), _progress(output, bars, len(grid.runs))
        )
    measured = measure(grid, outcomes)
    rows = rows_of(grid, outcomes, measured, names)
    if csv is not None:
        write_atomically(csv, runs_csv(measured, budgets, links))
    if figure is not None:
        from finemoe_cli.figures.canvas import render

        drawn = _figure(model.name, rows, names, budgets, links)
        write_atomically(figure, render(drawn, figure.suffix[1:], "simulation"))
    if not as_json:
        _print(output, rows, budgets, links, grid, orders)
        return
    output.json(
        {
            "traces": [str(path) for path in files],
            "model": model.name,
            "history_requests": len(learnt) if history else 0,
            "requests": len(orders_of[0]),
            "tokens": tokens,
            "seed": seed,
            "orders": orders,
            "prefill": prefill,
            "demand_only": demand_only,
            "unit": "s" if calibrated else "layers",
            "links": [_timing_json(name, one) for name, one in zip(links, timings, strict=True)],
            "learnt": describe(known),
            "policy_bytes": {name: taken[name] for name in names},
            "notes": notes,
            "rows": rows_json(rows, budgets, links),
        }
    )


def _open(files: Sequence[Path], stack: ExitStack, output: Output) -> list[Trace]:
    from finemoe_cli.trace_opening import open_trace

    traces = [stack.enter_context(open_trace(path, output)) for path in files]
    for trace in traces:
        trace.check_model(traces[0].model.fingerprint)
    return traces


def _timings(
    traces: Sequence[Trace], ratios: Sequence[float], tell: Callable[[str, int, int], None]
) -> tuple[tuple[Timing, ...], str]:
    from offload.trace.simulator import Timing

    if ratios:
        return tuple(Timing(layer_s=1.0, read_s=ratio) for ratio in ratios), ""
    from finemoe_cli.simulation_timing import calibrated

    timing, words = calibrated(traces, tell)
    return (timing,), words


def _progress(output: Output, bars: Callable[[str, int, int], None] | None, total: int) -> Callable[[int], None]:
    """A bar on a terminal; elsewhere a line for each tenth, with the time that is left."""
    began = time.monotonic()
    on_terminal = sys.stderr.isatty()

    def done(count: int) -> None:
        if bars is not None and on_terminal:
            bars("simulating", count, total)
        elif total >= 10 and count * 10 // total != (count - 1) * 10 // total and count < total:
            left = (time.monotonic() - began) / count * (total - count)
            output.note(f"{count} of {total} simulations, {_duration(left)} left")

    return done


def _print(
    output: Output, rows: Sequence[Row], budgets: Sequence[str], links: Sequence[str], grid: Grid, orders: int
) -> None:
    from rich.text import Text

    from finemoe_cli.simulation_report import table_of

    for budget, share in enumerate(budgets):
        for place, name in enumerate(links):
            timing = grid.timings[place]
            of_link = f"an expert takes {name} layers to move"
            if timing.reads_s or timing.recorded_passes:
                of_link = (
                    f"a layer takes {1e3 * timing.layer_s:.2f} ms, an expert {1e3 * timing.read_s:.2f} ms to move "
                    f"({_count(timing.lanes, 'lane')}); times in ms"
                )
            resident = f"{share} of the experts" if share.endswith("%") else f"{share} slots"
            if budget or place:
                output.line("")
            output.render(Text(f"{resident}, {of_link}", "bold"))
            output.render(
                table_of(
                    [row for row in rows if (row.budget, row.link) == (budget, place)],
                    orders=orders,
                    in_ms=links == ["calibrated"],
                    ttft=grid.prefill,
                )
            )


def _figure(
    model: str, rows: Sequence[Row], names: Sequence[str], budgets: Sequence[str], links: Sequence[str]
) -> Figure:
    from finemoe_cli.figures.lines import Panel, Series, draw_lines

    found = {(row.policy, row.budget, row.link): row for row in rows}

    def series(link: int, metric: str) -> list[Series]:
        return [
            Series(name, [found[name, budget, link].metrics[metric].median for budget in range(len(budgets))])
            for name in names
        ]

    ratio = "times as recorded" if links == ["calibrated"] else "{} layers an expert"
    panels = [
        Panel(f"{words}: {ratio.format(link)}", budgets, series(place, metric), highest)
        # Whole layers moved wait so much longer where much is resident that nothing else could be told apart.
        for words, metric, highest in (
            ("Waiting / demand's", "stall_vs_demand", 2.0),
            ("Hit rate", "hit_rate", None),
        )
        for place, link in enumerate(links)
    ]
    return draw_lines(f"{model}: policies by budget", panels, simulated_policies(), columns=max(1, len(links)))


def _timing_json(name: str, timing: Timing) -> dict[str, Any]:
    return {
        "link": name,
        "layer": timing.layer_s,
        "read": timing.read_s,
        "lanes": timing.lanes,
        "recorded_reads": len(timing.reads_s),
    }


def _check_targets(paths: Sequence[Path], figure: Path | None, *, force: bool) -> None:
    """Before anything is computed, which may take long."""
    if figure is not None and figure.suffix.removeprefix(".") not in FORMATS:
        raise ConfigError(f"{figure} is no name of a figure", f"it ends with one of .{', .'.join(FORMATS)}")
    for path in paths:
        if path.exists() and not force:
            raise ConfigError(f"{path} is there already", "choose another name, or say --force")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {path.absolute().parent}", "make it, or choose another place")
        check_writable("the results", path)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _nobody(stage: str, done: int, total: int) -> None:
    """Where nothing is shown."""
