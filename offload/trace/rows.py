"""A request as a table: one row for each expert that a token chose in a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.trace.records import TracePass, TraceRequest

COLUMNS = (
    "request",
    "pass",
    "phase",
    "position",
    "token_id",
    "layer",
    "rank",
    "expert",
    "probability",
    "margin",
    "read",
    "read_s",
)
"""In this order; ``docs/traces.md`` says what they are."""


def request_rows(request: TraceRequest, experts: int) -> dict[str, NDArray[Any]]:
    """The rows of one request, column by column, by pass, token, layer and rank.

    Args:
        experts: Of a layer.
    """
    tables = [_pass_rows(each, number, experts) for number, each in enumerate(request.passes)]
    count = sum(len(table["rank"]) for table in tables)
    empty = np.zeros(0, np.int64)
    joined = {name: np.concatenate([table[name] for table in tables] or [empty]) for name in COLUMNS[1:]}
    return {"request": np.full(count, request.name, object), **joined}


def _pass_rows(each: TracePass, number: int, experts: int) -> dict[str, NDArray[Any]]:
    layers, tokens, top_k = each.chosen.shape
    shape = (tokens, layers, top_k)
    chosen = each.chosen.transpose(1, 0, 2).astype(np.int64)
    probability = np.take_along_axis(each.probabilities.transpose(1, 0, 2), chosen, axis=2)
    layer = np.broadcast_to(np.arange(layers)[:, None], shape)
    kinds, times = _reads(each, layers * experts)
    ids = layer * experts + chosen
    columns = {
        "pass": np.full(shape, number),
        "phase": np.full(shape, each.phase.name.lower(), object),
        "position": np.broadcast_to(each.position + np.arange(tokens)[:, None, None], shape),
        "token_id": np.broadcast_to(each.token_ids[:, None, None], shape),
        "layer": layer,
        "rank": np.broadcast_to(np.arange(top_k), shape),
        "expert": chosen,
        "probability": probability.astype(np.float32),
        "margin": np.broadcast_to(each.margins.T.astype(np.float32)[:, :, None], shape),
        "read": kinds[ids],
        "read_s": times[ids],
    }
    return {name: values.reshape(-1) for name, values in columns.items()}


def _reads(each: TracePass, total: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Of every expert how it was read during the pass, and the time that took."""
    kinds = np.full(total, "", object)
    times = np.full(total, np.nan)
    for read in each.reads:
        kinds[read.expert] = "demand" if read.demand else "ahead"
        times[read.expert] = read.seconds
    return kinds, times
