"""``finemoe models``: the models that are here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe_cli import options
from finemoe_cli.commands.pack import told_error
from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import Output
from offload.errors import FinemoeError
from offload.models.record import HubRecord
from offload.models.spec import ModelSpec, read_spec
from offload.models.synthetic import read_card
from offload.precision import QUANTISED
from offload.units import format_bytes
from profiles.config_file import store_setting
from profiles.models import (
    InstalledModel,
    find_model,
    installed_model,
    installed_models,
    partial_models,
    remove_model,
)
from profiles.paths import packs_dir
from profiles.settings import resolve

app = typer.Typer(
    name="models",
    help="Models that are here: list them, look into one, check it, remove it, make it the default.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe models list
  finemoe models verify demo
  finemoe models default Qwen/Qwen1.5-MoE-A2.7B-Chat
""",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.", autocompletion=options.complete_installed)]
NameOrPath = Annotated[
    str,
    typer.Argument(metavar="NAME|PATH", help="The model, or a folder.", autocompletion=options.complete_installed),
]


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """List every model; the one that runs where none is named is marked."""
    output = Output(as_json=as_json)
    default = resolve().settings.model
    rows = [_summary(model, default) for model in installed_models()]
    partial = partial_models()
    if as_json:
        output.json({"default": default, "models": rows, "partial": [model.name for model in partial]})
        return
    for model in partial:
        output.note(
            f"{model.name} is here in part, {format_bytes(_bytes_in(model.folder))}: "
            f"finemoe pull goes on with it, finemoe models rm {model.name} deletes it"
        )
    if not rows:
        output.note("no model is here yet: finemoe pull demo")
        return
    output.table(
        ("MODEL", "", "TYPE", "SIZE", "PRECISION", "REVISION", "WHERE"),
        [
            (
                row["name"],
                "default" if row["default"] else "",
                row["model_type"] or "?",
                format_bytes(row["bytes"]),
                row["precision"] or "?",
                (row["commit"] or "")[:12] or "-",
                row["problem"] or row["path"],
            )
            for row in rows
        ],
    )


@app.command()
def show(name: NameOrPath, as_json: options.Json = False) -> None:
    """Show a model's facts, sizes, and whether it is packed."""
    output = Output(as_json=as_json)
    folder = find_model(name)
    facts = _facts(read_spec(folder), _record_of(name))
    if as_json:
        output.json({"name": name, **facts})
        return
    quantised = facts.pop("quantised")
    sizes = ("tensor_bytes", "dense_bytes", "experts_bytes", "expert_bytes", "kv_bytes_per_token")
    output.pairs(
        [
            (key.removesuffix("_bytes").replace("_", " "), format_bytes(value) if key in sizes else _plain(value))
            for key, value in facts.items()
        ]
        + [
            (
                f"packed as {precision}",
                pack["problem"]
                or f"{pack['path']}, {format_bytes(pack['bytes'])}; error {told_error(pack['error'])}",
            )
            for precision, pack in quantised.items()
        ],
    )


@app.command()
def verify(name: NameOrPath, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Check a model: safetensors headers, sizes of pulled files, checksums of its pack.

    The exit code is 1 if something is damaged.
    """
    from offload.store.verify import verify_model

    output = Output(as_json=as_json, quiet=quiet)
    folder = find_model(name)
    with output.progress() as progress:
        report = verify_model(folder, progress, packs_folder=packs_dir())
    problems = [*_wrong_sizes(name, folder), *report.problems]
    if as_json:
        output.json(report.as_dict() | {"name": name, "ok": not problems, "problems": problems})
    else:
        output.findings([("fail", "damaged", problem) for problem in problems])
        for note in report.notes:
            output.note(note)
        if not problems:
            checked = f"{report.experts} packed experts by checksum" if report.experts else "not packed"
            output.findings([("ok", name, f"{report.tensors} tensors lie where they should; {checked}")])
    if problems:
        raise typer.Exit(ExitCode.FAILURE)


@app.command()
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Delete a model. Of a folder that was only given a name, only the name goes."""
    output = Output(quiet=quiet)
    model = installed_model(name)
    size = _bytes_in(model.folder)
    what = (
        f"forget the name {model.name}; {model.folder} stays"
        if model.registered
        else f"delete {model.name}, {format_bytes(size)} in {model.place}"
    )
    if not yes and not output.confirm(what):
        raise typer.Exit(ExitCode.FAILURE)
    remove_model(model)
    output.note(f"forgot {model.name}" if model.registered else f"deleted {model.name}, {format_bytes(size)}")
    if resolve().settings.model in (model.name, model.place.name):
        output.warn(f"{model.name} is still the configured model: finemoe config unset model")


@app.command()
def default(name: NameOrPath, quiet: options.Quiet = False) -> None:
    """Run this model where none is named: keeps it as setting 'model' in the settings file."""
    folder = find_model(name)
    if folder.is_dir():  # The demo is pulled when it is first needed.
        read_spec(folder)
    known = any(name in (model.name, model.place.name) for model in installed_models())
    path = store_setting("model", name if known or not Path(name).is_dir() else str(folder.absolute()))
    Output(quiet=quiet).note(f"model = {name} in {path}")


def _summary(model: InstalledModel, default: str) -> dict[str, Any]:
    """What the list says of a model; a model that cannot be used is listed with the reason."""
    model_type = precision = problem = None
    try:
        spec = read_spec(model.folder)
        model_type = spec.architecture.model_type
        precision = "bfloat16"
    except FinemoeError as error:
        problem = error.message
    record = model.record
    return {
        "name": model.name,
        "default": default in (model.name, model.place.name),
        "model_type": model_type,
        "bytes": _bytes_in(model.folder),
        "precision": precision,
        "path": str(model.folder),
        "registered": model.registered,
        "repo": record.repo if isinstance(record, HubRecord) else None,
        "revision": record.revision if isinstance(record, HubRecord) else None,
        "commit": record.commit if isinstance(record, HubRecord) else None,
        "problem": problem,
    }


def _facts(spec: ModelSpec, record: HubRecord | None) -> dict[str, Any]:
    from offload.store.open_store import find_pack
    from offload.store.safetensors_index import CheckpointIndex

    index = CheckpointIndex.open(spec.folder)
    pack = find_pack(spec, index, packs_dir())
    tensor_bytes = sum(entry.nbytes for entry in index.tensors.values())
    experts_bytes = spec.total_experts * spec.expert_bytes
    card = read_card(spec.folder)
    return {
        "path": str(spec.folder),
        "repo": record.repo if record else None,
        "revision": record.revision if record else None,
        "commit": record.commit if record else None,
        "pulled_at": record.pulled_at if record else None,
        "model_type": spec.architecture.model_type,
        "precision": "bfloat16",
        "layers": spec.decoder_layers,
        "synthetic": f"{card.shape}, {card.extent}" if card else None,
        "expert_layers": spec.num_layers,
        "experts_per_layer": spec.num_experts,
        "experts_per_token": spec.top_k,
        "hidden_size": spec.hidden_size,
        "expert_size": spec.expert_size,
        "shared_expert_size": spec.shared_expert_size,
        "vocab_size": spec.vocab_size,
        "max_context": spec.max_context,
        "tensor_bytes": tensor_bytes,
        "dense_bytes": tensor_bytes - experts_bytes,
        "experts_bytes": experts_bytes,
        "expert_bytes": spec.expert_bytes,
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "packed": str(pack) if pack else None,
        "quantised": {
            precision: _pack_facts(path)
            for precision in QUANTISED
            if (path := find_pack(spec, index, packs_dir(), precision))
        },
    }


def _pack_facts(path: Path) -> dict[str, Any]:
    """What a quantised pack says about itself; why it cannot be used, if it cannot."""
    from offload.store.packed_format import read_head

    try:
        head = read_head(path)
    except FinemoeError as error:
        return {"path": str(path), "bytes": path.stat().st_size, "error": {}, "problem": error.message}
    return {"path": str(path), "bytes": head.file_bytes, "error": dict(head.header.error), "problem": None}


def _record_of(name: str) -> HubRecord | None:
    record = next((m.record for m in installed_models() if name in (m.name, m.place.name)), None)
    return record if isinstance(record, HubRecord) else None


def _wrong_sizes(name: str, folder: Path) -> list[str]:
    """Files of a pulled model that are missing or have another size than they had on the hub."""
    record = _record_of(name)
    if record is None:
        return []
    return [
        f"{folder / file.name} is not as it was pulled: finemoe pull {record.repo}"
        for file in record.files.values()
        if not record.has(folder, file)
    ]


def _bytes_in(folder: Path) -> int:
    """Bytes of the files of a model's folder."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0


def _plain(value: object) -> str:
    return "-" if value is None else str(value)
