"""Requests, routers and headers as bytes, and back: what is inside the blocks of a trace file.

A payload is a JSON object behind its length, then arrays. The bytes of an array are sorted into planes, all first
bytes of its numbers, all second ones and so on, and each plane is compressed if that pays: the upper bytes of
halves are much alike, the lower ones are noise. Everything is little-endian.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import RouterWeights
from offload.telemetry.counters import Phase
from offload.telemetry.routing import Read
from offload.trace.records import TraceModel, TracePass, TraceRequest

_LENGTH = struct.Struct("<I")
_DTYPES = {name: np.dtype(name) for name in ("<f2", "<f4", "<f8", "<i2", "<i4", "<u2", "|u1")}
_WORTH = 0.95
"""A plane is kept compressed if it is at most this share of what it was."""

Arrays = dict[str, NDArray[Any]]


class BadPayload(ValueError):
    """These bytes are no payload."""


def pack(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A payload of `facts`, whatever JSON can hold, and `arrays`."""
    described, planes = [], []
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        own = _planes(little)
        described.append([name, little.dtype.str, list(little.shape), [len(plane) for plane in own]])
        planes += own
    text = json.dumps({**facts, "arrays": described}, separators=(",", ":")).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *planes])


def facts_of(payload: memoryview) -> dict[str, Any]:
    """The facts alone.

    Raises:
        BadPayload: There are none.
    """
    return _facts(payload)[0]


def unpack(payload: memoryview) -> tuple[dict[str, Any], Arrays]:
    """What `pack` was given.

    Raises:
        BadPayload: It was not made by `pack`.
    """
    facts, at = _facts(payload)
    arrays: Arrays = {}
    try:
        for name, dtype, shape, sizes in facts["arrays"]:
            kind = _DTYPES[dtype]
            if len(sizes) != kind.itemsize or min(shape, default=0) < 0:
                raise BadPayload(f"array {name} is not described right")
            count = math.prod(shape)
            planes = []
            for size in sizes:
                planes.append(_plane(payload[at : at + size], count))
                at += size
            whole = np.stack(planes, axis=1) if planes else np.zeros((count, 0), np.uint8)
            arrays[name] = whole.view(kind).reshape(shape)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise BadPayload(str(error)) from error
    return facts, arrays


def pack_request(request: TraceRequest, model: TraceModel) -> bytes:
    """The payload of one request."""
    passes = request.passes
    facts = {
        "name": request.name,
        "text": request.text,
        "phase": [int(each.phase) for each in passes],
        "position": [each.position for each in passes],
        "tokens": [len(each.token_ids) for each in passes],
        "residual": [each.residual is not None for each in passes],
        "shared": [each.shared is not None for each in passes],
        "reads": [len(each.reads) for each in passes],
    }
    layers, experts, top_k, hidden = model.layers, model.experts, model.top_k, model.hidden
    reads = [read for each in passes for read in each.reads]
    residuals = [each.residual for each in passes if each.residual is not None]
    shared = [each.shared for each in passes if each.shared is not None]
    arrays: Arrays = {
        "token_ids": _join([each.token_ids for each in passes], (0,), np.int32, 0),
        "embedding": _join([each.embedding[None] for each in passes], (0, hidden), np.float16, 0),
        "probabilities": _join([each.probabilities for each in passes], (layers, 0, experts), np.float16, 1),
        "margins": _join([each.margins for each in passes], (layers, 0), np.float16, 1),
        "chosen": _join([each.chosen for each in passes], (layers, 0, top_k), np.int16, 1),
        "residual": _join(residuals, (layers, 0, hidden), np.float16, 1),
        "shared": _join(shared, (layers, 0, hidden), np.float16, 1),
        "seconds": np.array([each.seconds for each in passes], np.float64),
        "stall_s": _join([each.stall_s[None] for each in passes], (0, layers), np.float32, 0),
        "read_expert": np.array([read.expert for read in reads], np.int32),
        "read_demand": np.array([read.demand for read in reads], np.uint8),
        "read_seconds": np.array([read.seconds for read in reads], np.float64),
    }
    return pack(facts, arrays)


def unpack_request(payload: memoryview, model: TraceModel) -> TraceRequest:
    """What `pack_request` was given; its arrays are views of a few large ones.

    Raises:
        BadPayload: It is no request of this model.
    """
    facts, arrays = unpack(payload)
    try:
        return _request(facts, arrays, model)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadPayload(str(error)) from error


def pack_routers(routers: RouterWeights) -> bytes:
    """The payload of a model's routers."""
    return pack({"eps": routers.eps}, {"gate": np.stack(routers.gate), "norm": np.stack(routers.norm)})


def unpack_routers(payload: memoryview) -> RouterWeights:
    """What `pack_routers` was given.

    Raises:
        BadPayload: It holds no routers.
    """
    facts, arrays = unpack(payload)
    try:
        return RouterWeights(list(arrays["gate"]), list(arrays["norm"]), float(facts["eps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadPayload(str(error)) from error


def _request(facts: dict[str, Any], arrays: Arrays, model: TraceModel) -> TraceRequest:
    counts = [int(count) for count in facts["tokens"]]
    total = sum(counts)
    wanted = {
        "token_ids": (total,),
        "embedding": (len(counts), model.hidden),
        "probabilities": (model.layers, total, model.experts),
        "margins": (model.layers, total),
        "chosen": (model.layers, total, model.top_k),
        "stall_s": (len(counts), model.layers),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise BadPayload(f"array {name} has the shape {arrays[name].shape}")
    tokens = _pieces(counts)
    residual = _optional(arrays["residual"], counts, facts["residual"])
    shared = _optional(arrays["shared"], counts, facts["shared"])
    reads = [
        Read(expert, bool(demand), seconds)
        for expert, demand, seconds in zip(
            arrays["read_expert"].tolist(),
            arrays["read_demand"].tolist(),
            arrays["read_seconds"].tolist(),
            strict=True,
        )
    ]
    passes = [
        TracePass(
            phase=Phase(facts["phase"][number]),
            position=int(facts["position"][number]),
            token_ids=arrays["token_ids"][span],
            embedding=arrays["embedding"][number],
            probabilities=arrays["probabilities"][:, span],
            margins=arrays["margins"][:, span],
            chosen=arrays["chosen"][:, span],
            residual=residual[number],
            shared=shared[number],
            seconds=float(arrays["seconds"][number]),
            stall_s=arrays["stall_s"][number],
            reads=tuple(reads[own]),
        )
        for number, (span, own) in enumerate(zip(tokens, _pieces(facts["reads"]), strict=True))
    ]
    return TraceRequest(str(facts["name"]), str(facts["text"]), passes)


def _optional(array: NDArray[Any], counts: Sequence[int], there: Sequence[bool]) -> list[NDArray[Any] | None]:
    """Of each pass what it has of an array [L, N, ...] that only some have."""
    kept = [count if has else 0 for count, has in zip(counts, there, strict=True)]
    if array.shape[1] != sum(kept):
        raise BadPayload(f"{array.shape[1]} tokens are not {sum(kept)}")
    return [array[:, span] if has else None for span, has in zip(_pieces(kept), there, strict=True)]


def _pieces(counts: Sequence[int]) -> list[slice]:
    ends = np.cumsum([0, *counts]).tolist()
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _join(arrays: Sequence[NDArray[Any]], empty: tuple[int, ...], dtype: Any, axis: int) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *arrays], axis=axis, dtype=dtype)


def _facts(payload: memoryview) -> tuple[dict[str, Any], int]:
    try:
        (length,) = _LENGTH.unpack_from(payload)
        end = _LENGTH.size + length
        facts = json.loads(bytes(payload[_LENGTH.size : end]))
    except (struct.error, ValueError, RecursionError) as error:
        raise BadPayload(str(error)) from error
    if not isinstance(facts, dict):
        raise BadPayload("the facts are no object")
    return facts, end


def _planes(array: NDArray[Any]) -> list[bytes]:
    width = array.dtype.itemsize
    split = array.reshape(-1).view(np.uint8).reshape(-1, width)
    return [_compressed(np.ascontiguousarray(split[:, number]).tobytes()) for number in range(width)]


def _compressed(plane: bytes) -> bytes:
    # Of noise there are no repetitions to be found: only the numbers' frequencies are used, and runs of equal ones.
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    small = deflate.compress(plane) + deflate.flush()
    return small if len(small) <= _WORTH * len(plane) else plane


def _plane(data: memoryview, count: int) -> NDArray[np.uint8]:
    """[count]; a plane that was not compressed is as long as it has numbers, and a compressed one is shorter."""
    if len(data) == count:
        return np.frombuffer(data, np.uint8)
    inflate = zlib.decompressobj()
    plane = inflate.decompress(data, max(count, 1))
    if len(plane) != count or not inflate.eof:
        raise BadPayload("a plane does not have its length")
    return np.frombuffer(plane, np.uint8)
