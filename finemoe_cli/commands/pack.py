"""``finemoe pack``: all experts of a model in one file, one aligned record each; quantised, all its weights."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finemoe_cli import options
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output
from offload.errors import ConfigError
from offload.models.spec import ModelSpec, read_spec
from offload.precision import BF16, BITS, Precision
from offload.units import format_bytes
from profiles.paths import ensure_folder, packs_dir
from profiles.settings import resolve

if TYPE_CHECKING:
    from offload.store.packed_writer import PackResult
    from offload.store.safetensors_index import CheckpointIndex

app = typer.Typer()


@app.command()
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
    bits: Annotated[
        int,
        typer.Option(
            "--bits",
            "-b",
            metavar="BITS",
            help="Bits of a weight: 8 or 4 quantise all matrices, to be run with --precision int8 or int4.",
        ),
    ] = 16,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Write it there. It is used only where finemoe looks: in the model's folder, under its own name.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Pack anew, whatever is there already.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pack the experts of a model into one file, one aligned, checksummed record each.

    The pack takes as much disk as the experts do, and is used from then on. With --bits 8 or 4 it holds all weights
    of the model, quantised, and lies beside the other. A run that was interrupted is continued by the next one.
    """
    output = Output(as_json=as_json, quiet=quiet)
    precision = next((name for name, count in BITS.items() if count == bits), None)
    if precision is None:
        raise ConfigError(f"--bits is {bits}", "choose 16, 8 or 4")
    folder = ensure_model(resolve({"model": model}).settings.model, output)
    spec = read_spec(folder)
    # What cannot be packed is said before numpy is imported.
    from offload.store.packed_format import pack_name
    from offload.store.packed_writer import write_pack
    from offload.store.safetensors_index import CheckpointIndex

    index = CheckpointIndex.open(folder)
    path = _place(spec, index, precision, output) if output_path is None else output_path
    if path.is_dir():
        path /= pack_name(precision)
    begin = time.monotonic()
    with output.progress() as progress:
        result = write_pack(spec, index, path, precision, force=force, progress=progress)
    if as_json:
        output.json(
            {
                "model": spec.name,
                "path": str(result.path),
                "outcome": result.outcome,
                "precision": result.precision,
                "experts": result.experts,
                "kept": result.kept,
                "bytes": result.nbytes,
                "error": result.error,
                "seconds": round(time.monotonic() - begin, 3),
            }
        )
        return
    output.note(_told(spec, result))
    if result.error:
        output.note(f"error of the weights: {told_error(result.error)}")
    output.line(str(result.path))


def told_error(error: Mapping[str, float]) -> str:
    """Relative errors of quantised matrices by their kinds, on one line."""
    return ", ".join(f"{kind.replace('_', ' ')} {value:.2%}" for kind, value in error.items())


def _place(spec: ModelSpec, index: CheckpointIndex, precision: Precision, output: Output) -> Path:
    """In the model's folder, or in the cache where that cannot be written."""
    from offload.store.open_store import pack_in
    from offload.store.packed_format import pack_name

    if os.access(spec.folder, os.W_OK | os.X_OK):
        return spec.folder / pack_name(precision)
    output.note(f"{spec.folder} cannot be written; the pack goes into the cache")
    return pack_in(ensure_folder(packs_dir()), spec, index, precision)


def _told(spec: ModelSpec, result: PackResult) -> str:
    quantised = result.precision != BF16
    if result.outcome == "there":
        return f"{spec.name} is packed{f' as {result.precision}' if quantised else ''} already"
    if result.outcome == "confirmed":
        return f"the pack of {spec.name} has an older date, but is still right; it is used again"
    if quantised:
        resumed = f"; {result.kept:,} records were there from an interrupted run" if result.kept else ""
        what = f"{result.experts:,} experts and all other weights as {result.precision}"
    else:
        resumed = f", {result.kept:,} of them by an interrupted run" if result.kept else ""
        what = f"{result.experts:,} experts"
    return f"packed {what}, {format_bytes(result.nbytes)}{resumed}"
