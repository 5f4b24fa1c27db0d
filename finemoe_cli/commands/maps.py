"""``finemoe maps``: what policies have learnt about models, expert maps and predictors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finemoe_cli import options
from finemoe_cli.exit_codes import ExitCode
from finemoe_cli.output import Output
from offload.errors import ConfigError, FinemoeError, KnowledgeError, TraceError
from offload.units import format_bytes
from profiles.paths import knowledge_dir

if TYPE_CHECKING:
    from offload.policy.maps import MapStore, StoreModel
    from offload.trace.records import TraceModel

app = typer.Typer(
    name="maps",
    help="What policies predict from, learnt from traces: see, make, exchange and delete it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="""
[bold]Examples[/]

  finemoe maps build demo.trace
  finemoe maps info
  finemoe maps export demo.fmm --model demo
""",
)

Capacity = Annotated[
    int | None,
    typer.Option("--capacity", metavar="NUMBER", min=1, max=32_768, help="Maps to keep at most; 1000 at first."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="The model; the default one if it is not given.",
        autocompletion=options.complete_model,
    ),
]


@app.command()
def info(as_json: options.Json = False) -> None:
    """List what has been learnt, model by model."""
    output = Output(as_json=as_json)
    rows = [_facts(folder) for folder in _folders()]
    if as_json:
        output.json({"path": str(knowledge_dir()), "models": rows})
        return
    if not rows:
        output.note("no maps yet: finemoe maps build TRACE, or run with --policy finemoe")
        return
    output.table(
        ("MODEL", "FINGERPRINT", "MAPS", "OF", "SIZE", "CREATED", "WHERE"),
        [
            (
                row["model"] or "?",
                row["fingerprint"][:16],
                _plain(row["entries"]),
                _plain(row["capacity"]),
                format_bytes(row["bytes"]),
                (row["created"] or "?")[:10],
                row["problem"] or row["path"],
            )
            for row in rows
        ],
    )


@app.command()
def build(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Recorded with finemoe trace record.")],
    capacity: Capacity = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn from recorded traces: expert maps, and predictors from traces with residuals.

    Maps are added to those that are there; predictors are fitted anew from all of the traces together.
    """
    from finemoe_cli.trace_opening import open_trace
    from offload.policy.maps import StoreModel
    from offload.policy.maps.iteration import iterations
    from offload.policy.probe_fitting import TooLittle

    output = Output(as_json=as_json, quiet=quiet)
    built = []
    learners: dict[str, tuple[TraceModel, list[Path]]] = {}
    for path in traces:
        with open_trace(path, output) as trace:
            known = trace.model
            if not known.fingerprint:
                raise TraceError(f"{path} does not say of which model it is", "record it again")
            model = StoreModel(known.layers, known.experts, known.hidden, known.name, known.fingerprint)
            store = _open(model, capacity)
            seen = added = 0
            with output.progress(transient=True, lines=False) as bars:
                for number, request in enumerate(trace):
                    for iteration in iterations(request):
                        seen += 1
                        added += store.add(*iteration)
                    if bars:
                        bars("learn", number + 1, len(trace))
            store.save(_path(model))
            if trace.header.residuals:
                learners.setdefault(known.fingerprint, (known, []))[1].append(path)
            else:
                output.note(f"{path} was recorded without --residuals: no predictors are fitted from it")
            built.append({"trace": str(path), "iterations": seen, "added": added} | _said(store))
            output.note(f"{path}: {seen:,} iterations, {added:,} of them new; {_fill(store)}")
    fitted = []
    for known, paths in learners.values():
        try:
            fitted.append(_fit(known, paths, output))
        except TooLittle as error:
            output.warn(f"{error.message}: {error.hint}")
    if as_json:
        output.json({"built": built, "fitted": fitted})


def _fit(model: TraceModel, paths: list[Path], output: Output) -> dict[str, Any]:
    """Fit predictors from the traces at `paths`, all of `model`, and keep them."""
    from offload.policy.knowledge import PROBES_FILE, Shape, knowledge_folder, save_probes
    from offload.policy.probe_fitting import fit_probes
    from offload.trace.file import Trace

    requests = []
    for path in paths:
        with Trace.open(path) as trace:
            requests += list(trace)
    with output.progress(transient=True, lines=False) as bars:
        probes = fit_probes(model, requests, bars or (lambda stage, done, total: None))
    path = knowledge_folder(knowledge_dir(), model.fingerprint) / PROBES_FILE
    shape = Shape(model.fingerprint, model.name, model.layers, model.experts, model.hidden)
    save_probes(path, shape, probes)
    tokens = int(probes.tokens[0])
    output.note(f"predictors of {model.name}: {format_bytes(probes.memory_bytes)}, from {tokens:,} decoded tokens")
    return {"model": model.name, "tokens": tokens, "bytes": probes.memory_bytes, "path": str(path)}


@app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE [MAPS]",
            help="A file of finemoe maps export; or two .npy files of the paper's demo, embeddings and maps.",
        ),
    ],
    model: Model = None,
    capacity: Capacity = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Add expert maps from files to those of a model."""
    from offload.policy.maps import MapStore
    from offload.policy.maps.paper_files import add_paper_files

    output = Output(as_json=as_json, quiet=quiet)
    if len(files) > 2:
        raise ConfigError(
            f"there are {len(files)} files", "give one, or an .npy file of embeddings and one of maps"
        )
    if len(files) == 2:
        store = _open(_model(model), capacity)
        before = len(store)
        added = add_paper_files(store, *files)
    else:
        if files[0].suffix == ".npy":
            raise ConfigError("there is one .npy file", "give the embeddings and the maps, in this order")
        given = MapStore.load(files[0], fingerprint=_model(model).fingerprint if model else "")
        store = _open(given.model, capacity or given.capacity)
        before = len(store)
        added = store.merge(given)
    store.save(_path(store.model))
    output.note(f"{added:,} new maps; {_fill(store)}")
    if as_json:
        output.json({"before": before, "added": added} | _said(store))


@app.command()
def export(
    to: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write.")],
    model: Model = None,
    force: Annotated[bool, typer.Option("--force", "-f", metavar="", help="Replace a file that is there.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the expert maps of a model to a file, for another machine."""
    from offload.policy.maps import MapStore

    if to.exists() and not force:
        raise ConfigError(f"{to} exists already", "--force writes over it")
    wanted = _model(model)
    if not _path(wanted).exists():
        raise KnowledgeError(f"there are no maps of {wanted.name} yet", "finemoe maps build TRACE learns them")
    store = MapStore.load(_path(wanted), fingerprint=wanted.fingerprint)
    store.export(to)
    Output(quiet=quiet).note(f"wrote {len(store):,} maps to {to}")


@app.command()
def clear(
    model: Model = None,
    every: Annotated[bool, typer.Option("--all", metavar="", help="Of every model.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Delete what has been learnt about a model, also if its files are damaged."""
    from offload.policy.learnt_file import remove

    output = Output(quiet=quiet)
    if every and model is not None:
        raise ConfigError("both --all and --model are given", "give one of the two")
    if every:
        folders, named = _folders(), "everything that was learnt, of all models"
    else:
        wanted = _model(model)
        folder = _path(wanted).parent
        folders, named = [folder] if folder in _folders() else [], f"what was learnt about {wanted.name}"
    if not folders:
        output.note("there is nothing to delete")
        return
    if not yes and not output.confirm(f"delete {named}"):
        raise typer.Exit(ExitCode.FAILURE)
    for path in [path for folder in folders for path in _files(folder)]:
        remove(path)
        output.note(f"deleted {path}")


def _model(name: str | None) -> StoreModel:
    """The model called ``name``, or the default one."""
    from offload.models.spec import read_spec
    from offload.policy.maps import StoreModel
    from offload.store.fingerprint import fingerprint
    from offload.store.safetensors_index import CheckpointIndex
    from profiles.models import find_model
    from profiles.settings import resolve

    name = name or resolve().settings.model
    spec = read_spec(find_model(name))
    found = fingerprint(spec, CheckpointIndex.open(spec.folder))
    return StoreModel(spec.num_layers, spec.num_experts, spec.hidden_size, spec.name, found)


def _open(model: StoreModel, capacity: int | None) -> MapStore:
    """The maps of a model as they are kept, or an empty store."""
    from offload.policy.maps import CAPACITY, MapStore

    path = _path(model)
    if path.exists():
        return MapStore.load(path, fingerprint=model.fingerprint, capacity=capacity)
    return MapStore(model, capacity or CAPACITY)


def _path(model: StoreModel) -> Path:
    from offload.policy.maps import maps_file

    return maps_file(knowledge_dir(), model.fingerprint)


def _files(folder: Path) -> list[Path]:
    """The files of what was learnt that are in a model's folder."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".fmm", ".safetensors"))


def _folders() -> list[Path]:
    """The folders of models that something was learnt about."""
    root = knowledge_dir()
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and _files(folder))


def _facts(folder: Path) -> dict[str, Any]:
    """What ``info`` says of a model's folder; of files that cannot be used, the reason."""
    from offload.policy.maps import MapStore
    from offload.policy.maps.file import FILE_NAME

    facts: dict[str, Any] = {
        "model": "",
        "fingerprint": folder.name,
        "layers": None,
        "experts": None,
        "hidden": None,
        "entries": None,
        "capacity": None,
        "created": None,
        "bytes": sum(path.stat().st_size for path in _files(folder)),
        "path": str(folder),
        "problem": None,
    }
    path = folder / FILE_NAME
    if not path.exists():
        return facts
    try:
        kept = MapStore.load(path)
    except FinemoeError as error:
        return facts | {"problem": error.message}
    model = kept.model
    return facts | {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "layers": model.layers,
        "experts": model.experts,
        "hidden": model.hidden,
        "created": kept.created,
        "entries": len(kept),
        "capacity": kept.capacity,
    }


def _said(store: MapStore) -> dict[str, Any]:
    return {
        "model": store.model.name,
        "entries": len(store),
        "capacity": store.capacity,
        "path": str(_path(store.model)),
    }


def _fill(store: MapStore) -> str:
    return f"{len(store):,} of {store.capacity:,} maps of {store.model.name}"


def _plain(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
