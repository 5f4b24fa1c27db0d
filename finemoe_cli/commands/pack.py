"""``finemoe pack``: all experts of a model in one file, one aligned record each."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe_cli import options
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output
from offload.models.spec import ModelSpec, read_spec
from offload.units import format_bytes
from profiles.paths import ensure_folder, packs_dir
from profiles.settings import resolve

if TYPE_CHECKING:
    from offload.store.packed_writer import PackResult
    from offload.store.safetensors_index import CheckpointIndex


def pack(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="demo, another pulled model, or a folder in Hugging Face layout; the configured one if not given.",
            autocompletion=options.complete_model,
            show_default=False,
        ),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Write it there. It is used only where finemoe looks: as experts.finemoe in the model's folder.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Pack anew, whatever is there already.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pack the experts of a model into one file, one aligned, checksummed record each.

    The pack takes as much disk as the experts do, and is used from then on. A run that was interrupted is
    continued by the next one.
    """
    output = Output(as_json=as_json, quiet=quiet)
    folder = ensure_model(resolve({"model": model}).settings.model, output)
    spec = read_spec(folder)
    # What cannot be packed is said before numpy is imported.
    from offload.store.packed_format import PACK_NAME
    from offload.store.packed_writer import write_pack
    from offload.store.safetensors_index import CheckpointIndex

    index = CheckpointIndex.open(folder)
    path = _place(spec, index, output) if output_path is None else output_path
    if path.is_dir():
        path /= PACK_NAME
    begin = time.monotonic()
    with output.progress() as progress:
        result = write_pack(spec, index, path, force=force, progress=progress)
    if as_json:
        output.json(
            {
                "model": spec.name,
                "path": str(result.path),
                "outcome": result.outcome,
                "experts": result.experts,
                "kept": result.kept,
                "bytes": result.nbytes,
                "seconds": round(time.monotonic() - begin, 3),
            }
        )
        return
    output.note(_told(spec, result))
    output.line(str(result.path))


def _place(spec: ModelSpec, index: CheckpointIndex, output: Output) -> Path:
    """In the model's folder, or in the cache where that cannot be written."""
    from offload.store.open_store import pack_in
    from offload.store.packed_format import PACK_NAME

    if os.access(spec.folder, os.W_OK | os.X_OK):
        return spec.folder / PACK_NAME
    output.note(f"{spec.folder} cannot be written; the pack goes into the cache")
    return pack_in(ensure_folder(packs_dir()), spec, index)


def _told(spec: ModelSpec, result: PackResult) -> str:
    if result.outcome == "there":
        return f"{spec.name} is packed already"
    if result.outcome == "confirmed":
        return f"the pack of {spec.name} has an older date, but is still right; it is used again"
    resumed = f", {result.kept:,} of them by an interrupted run" if result.kept else ""
    return f"packed {result.experts:,} experts, {format_bytes(result.nbytes)}{resumed}"
