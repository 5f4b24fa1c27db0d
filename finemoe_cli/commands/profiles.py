"""``finemoe profiles``: named memory budgets."""

from __future__ import annotations

from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.output import Output
from profiles import store
from profiles.paths import user_profiles_dir
from profiles.settings import check_setting, flag_name, resolve

app = typer.Typer(
    name="profiles",
    help="Named memory budgets: list them, show one, make your own.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe profiles create laptop --budget 900MiB --context 8192
  finemoe run --profile laptop "Hello"
  finemoe config set profile laptop
""",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The profile.", autocompletion=options.complete_profile)]


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """List every profile; the one in force is marked."""
    output = Output(as_json=as_json)
    catalogue = store.list_profiles()
    active = resolve().settings.profile
    if as_json:
        output.json(
            {
                "active": active,
                "profiles": [profile.to_dict() for profile in catalogue.profiles],
                "problems": [problem.message for problem in catalogue.problems],
            }
        )
        return
    output.table(
        ("PROFILE", "", "BUDGET", "DESCRIPTION"),
        [
            (
                profile.name,
                "active" if profile.name == active else "",
                profile.budget.describe(),
                profile.description,
            )
            for profile in catalogue.profiles
        ],
    )
    for problem in catalogue.problems:
        output.warn(problem.message)


@app.command()
def show(name: Name, as_json: options.Json = False) -> None:
    """Show one profile, as its file has it."""
    profile = store.load_profile(name)
    output = Output(as_json=as_json)
    if as_json:
        output.json(profile.to_dict())
        return
    output.note("a preset of finemoe" if profile.path is None else str(profile.path))
    output.line(profile.to_toml().rstrip("\n"))


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    budget: Annotated[
        str,
        typer.Option("--budget", "-b", metavar="SIZE|SHARE", help="900MiB, 25% of the experts, or minimum."),
    ],
    description: Annotated[str, typer.Option("--description", "-d", metavar="TEXT", help="One line.")] = "",
    host_budget: Annotated[
        str | None,
        typer.Option("--host-budget", metavar="SIZE", help="On CUDA: host memory for the process."),
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", metavar="TOKENS", help="Longest conversation.")
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
            help="Weights: bf16, int8, int4.",
            autocompletion=options.complete_precision,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="How experts are read and evicted.",
            autocompletion=options.complete_policy,
        ),
    ] = None,
    lanes: Annotated[
        str | None, typer.Option("--lanes", metavar="NUMBER", help="Threads that read experts.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", metavar="", help="Write over a profile of that name.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a profile of your own."""
    given = {
        "budget": budget,
        "host_budget": host_budget,
        "context": context,
        "kernels": kernels,
        "precision": precision,
        "policy": policy,
        "lanes": lanes,
    }
    checked = {key: check_setting(key, raw, flag_name(key)) for key, raw in given.items() if raw is not None}
    profile = store.Profile(name=name, description=" ".join(description.split()), **checked)  # type: ignore[arg-type]
    path = store.create_profile(profile, replace=replace)
    output = Output(quiet=quiet)
    output.note(f"profile {name}: {profile.budget.describe()}; use it with: finemoe run --profile {name}")
    output.line(str(path))


@app.command()
def delete(name: Name, quiet: options.Quiet = False) -> None:
    """Delete a profile of your own."""
    path = store.delete_profile(name)
    Output(quiet=quiet).note(f"deleted {path}")


@app.command()
def path() -> None:
    """Print the folder of your own profiles."""
    Output().line(str(user_profiles_dir()))
