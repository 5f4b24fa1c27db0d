"""``finemoe plan``: will it run here, and how fast, before anything is downloaded or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from finemoe_cli import options
from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import Output
from offload.units import format_bytes
from profiles.environment import prepare_process
from profiles.settings import resolve

if TYPE_CHECKING:
    from finemoe_cli.plan import Plan
    from offload.forecast import Forecast

app = typer.Typer()

_EPILOG = """
The verdict is one of: [bold]resident[/] (every expert stays in memory), [bold]fast[/] (5 tokens/s or more),
[bold]usable[/] (1 or more), [bold]slow[/], [bold]does not fit[/] (exit code 4).

[bold]Examples[/]

  finemoe plan Qwen/Qwen3-30B-A3B
  finemoe plan demo --budget 900MiB --context 8192
  finemoe plan Qwen/Qwen1.5-MoE-A2.7B-Chat --json | jq .verdict
"""


@app.command(epilog=_EPILOG)
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model that is here, a folder, or a repository owner/name; else the configured one.",
            autocompletion=options.complete_model,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", "-r", metavar="REV", help="Branch, tag or commit of the repository."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            metavar="NAME",
            help="Profile that the verdict is for.",
            autocompletion=options.complete_profile,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="SIZE|SHARE", help="Budget that the verdict is for."),
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", metavar="TOKENS", help="Longest prompt and answer together.")
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option("--kernels", metavar="KIND", help="Decode kernels.", autocompletion=options.complete_kernels),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="Weights: bf16, or int8 or int4 as finemoe pack would make them.",
            autocompletion=options.complete_precision,
        ),
    ] = None,
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", metavar="", help="Measure disk and memory again; otherwise done once."),
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say whether a model runs here and how fast, before anything is downloaded.

    Of a model on the hub only the configuration and the list of tensors are read. Speeds are calculated from
    this machine's disk and memory, which are measured the first time; docs/plan.md says how.
    """
    from finemoe_cli.plan import find_subject, make_plan
    from profiles.calibration import calibrate, kept_calibration

    output = Output(as_json=as_json, quiet=quiet)
    for warning in prepare_process():
        output.warn(warning)
    resolved = resolve(
        {
            "model": model,
            "profile": profile,
            "budget": budget,
            "context": context,
            "kernels": kernels,
            "precision": precision,
        }
    )
    subject = find_subject(resolved.settings.model, revision, output)
    measured = None if recalibrate else kept_calibration(subject.sizes.spec.expert_bytes)
    if measured is None:
        with output.progress(transient=True) as progress:
            measured = calibrate(subject.sizes.spec, progress)
    made = make_plan(subject, resolved, measured)
    if as_json:
        output.json(made.to_dict())
    else:
        _show(made, output)
    if made.chosen.verdict == "does not fit":
        raise typer.Exit(ExitCode.DOES_NOT_FIT)


def _show(made: Plan, output: Output) -> None:
    sizes, spec = made.subject.sizes, made.subject.sizes.spec
    where = f"on the hub at commit {made.subject.commit[:12]}" if made.subject.commit else str(spec.folder)
    layers = f"{spec.num_layers} layers of {spec.num_experts}, {format_bytes(sizes.expert_bytes)} each"
    measured = made.measured
    rate = measured.kernel_bytes_per_s if made.kernels == "fast" else measured.memory_bytes_per_s
    memory = f"{format_bytes(made.memory_bytes)} of memory, weights computed at {format_bytes(rate)}/s"
    disk = f"disk read at {format_bytes(measured.disk_bytes_per_s)}/s; measured {measured.measured_at[:10]}"
    rows = [
        ("model", f"{made.subject.name}, {spec.architecture.model_type}, {where}"),
        ("experts", f"{format_bytes(sizes.experts_bytes)}: {layers}; a token uses {spec.top_k} a layer"),
        ("dense", f"{format_bytes(sizes.dense_bytes)}, always in memory"),
        ("KV cache", f"{format_bytes(made.context * spec.kv_bytes_per_token)} for {made.context} tokens"),
        ("download", format_bytes(sizes.download_bytes) if sizes.download_bytes else "none: it is here"),
        ("machine", f"{memory}; {disk}"),
        ("kernels", f"{made.kernels}; weights {sizes.precision}; policy {made.policy}"),
        ("routing", f"hits are {made.subject.hits.source}"),
    ]
    output.pairs(rows)
    output.line("")
    output.table(
        ("PROFILE", "BUDGET", "EXPERTS IN MEMORY", "HITS", "TOKENS/S", "FIRST TOKEN", "VERDICT"),
        [(name, *_row(one, spec.total_experts)) for name, _, one in made.profiles],
    )
    output.line("")
    output.line(f"{made.chosen.verdict} with {made.label}: {made.chosen.reason}")


def _row(made: Forecast, total: int) -> tuple[str, ...]:
    if made.plan is None:
        return ("-", "-", "-", "-", "-", f"{made.verdict}: {made.reason}")
    return (
        format_bytes(made.plan.budget_bytes),
        f"{made.plan.slots} of {total} ({_percent(made.share)})",
        f"{made.hit_rate:.0%}",
        _number(made.tokens_per_s),
        f"{made.ttft_warm_s:.1f}-{made.ttft_cold_s:.1f} s",
        made.verdict,
    )


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 or not share else f"{share:.1%}"
