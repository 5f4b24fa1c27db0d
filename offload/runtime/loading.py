"""Building the model without its experts, and reading the dense weights into memory that stays.

The model is made on the meta device with `ArenaExperts` in the place of transformers' experts module, so experts
are never materialised. On the CPU every dense tensor is then read once, straight into one anonymous block of
memory: no page-cache copy, and nothing that the system could drop and read again in the middle of a token. The
block is laid out layer by layer in the order the decode kernels want, and the modules' parameters are views of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offload.errors import CorruptCheckpoint, UnsupportedModel
from offload.memory.pages import huge_pages
from offload.models import ModelSpec
from offload.models.architecture import Architecture
from offload.precision import BF16, Precision, dense_precision
from offload.runtime.experts import ArenaExperts
from offload.runtime.imports import replaced
from offload.store.packed_header import DenseTensor
from offload.store.packed_store import PackedStore
from offload.store.safetensors_index import CheckpointIndex, TensorEntry

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LAYER_PREFIX = "model.layers."

_LAYER_ORDER = (
    ("input_layernorm.weight",),
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    ("self_attn.q_norm.weight",),
    ("self_attn.k_norm.weight",),
    ("self_attn.o_proj.weight",),
    ("post_attention_layernorm.weight",),
    ("mlp.gate.weight",),
    ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
    ("mlp.shared_expert.down_proj.weight",),
    ("mlp.shared_expert_gate.weight",),
)
"""A layer's tensors in the order of the kernels' `at` array. Those of a group lie side by side: one matrix."""

_ALIGN = 32
"""Groups begin at multiples of this many weights: 64 bytes, a cache line."""


@dataclass(frozen=True, slots=True)
class DenseLayout:
    """Where every dense tensor of a model lies in the block, in weights of bfloat16: 2 bytes each, also where
    what lies there is quantised.

    Attributes:
        precision: How matrices are kept.
        begin: First weight of each tensor.
        decoder_layers: Layers, which lie at the beginning of the block.
        layer_size: Weights from one layer to the next; 0 where layers differ in shape.
        group_at: First weight of each group of a layer, relative to the layer's own; -1 where it has none.
        size: Weights in all.
        kernels_fit: Whether every layer has exactly the groups that the decode kernels know.
    """

    precision: Precision
    begin: dict[str, int]
    decoder_layers: int
    layer_size: int
    group_at: tuple[int, ...]
    size: int
    kernels_fit: bool


def dense_layout(
    shapes: dict[str, tuple[int, ...]], decoder_layers: int, precision: Precision = BF16
) -> DenseLayout:
    """Lay out dense tensors of the given shapes: layers first, all other tensors behind them."""
    begin: dict[str, int] = {}
    cursor = 0
    layers: list[tuple[int, ...]] = []
    starts: list[int] = []
    known = {suffix for group in _LAYER_ORDER for suffix in group}
    fits = True
    for layer in range(decoder_layers):
        prefix = f"{LAYER_PREFIX}{layer}."
        names = [name for name in shapes if name.startswith(prefix)]
        unknown = [name for name in names if name.removeprefix(prefix) not in known]
        fits = fits and not unknown
        starts.append(cursor)
        at = []
        for group in (*_LAYER_ORDER, *((name.removeprefix(prefix),) for name in unknown)):
            present = [prefix + suffix for suffix in group if prefix + suffix in shapes]
            at.append(cursor - starts[-1] if present else -1)
            for name in present:
                begin[name] = cursor
                cursor += _room(precision, name, shapes[name])
            cursor = _aligned(cursor)
        layers.append(tuple(at))
    uniform = (
        len(set(layers)) == 1 and len({b - a for a, b in zip(starts, [*starts[1:], cursor], strict=True)}) == 1
    )
    layer_size = cursor // decoder_layers if uniform else 0
    for name, shape in shapes.items():
        if name not in begin:
            begin[name] = cursor
            cursor = _aligned(cursor + _room(precision, name, shape))
    group_at = layers[0][: len(_LAYER_ORDER)]
    return DenseLayout(precision, begin, decoder_layers, layer_size, group_at, cursor, fits and uniform)


def _room(precision: Precision, name: str, shape: tuple[int, ...]) -> int:
    """What a tensor takes, in weights of bfloat16."""
    return DenseTensor(name, dense_precision(precision, name), shape).nbytes // 2


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _aligned(cursor: int) -> int:
    return -(-cursor // _ALIGN) * _ALIGN


class DenseWeights:
    """The dense weights in host memory.

    Attributes:
        layout: Where each tensor lies.
        bits: [layout.size] uint16, all weights: bfloat16 bits, or halves of what is packed.
    """

    def __init__(self, layout: DenseLayout) -> None:
        self.layout = layout
        self.bits: NDArray[np.uint16] = huge_pages(2 * layout.size).view(np.uint16)[: layout.size]

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    @property
    def layers(self) -> NDArray[np.uint16]:
        """[L, layer_size] uint16, one row a layer; only where all layers have the same shape."""
        shape = (self.layout.decoder_layers, self.layout.layer_size)
        return self.bits[: shape[0] * shape[1]].reshape(shape)

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        """The bits of one tensor in bfloat16, as a view."""
        begin = self.layout.begin[name]
        return self.bits[begin : begin + _count(shape)].reshape(shape)

    def bytes_of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The bytes of one tensor as it is kept, as a view."""
        begin = self.layout.begin[name]
        return self.bits[begin : begin + _room(self.layout.precision, name, shape)].view(np.uint8)


def build_model(spec: ModelSpec) -> Any:
    """transformers' model for the checkpoint, on the meta device, with `ArenaExperts` as its experts modules.

    Raises:
        UnsupportedModel: transformers refuses the configuration.
    """
    from accelerate import init_empty_weights
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    try:
        config = AutoConfig.from_pretrained(spec.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its checks raise
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedModel(f"transformers refuses the configuration of {spec.name}: {first_line}") from error
    # transformers can replace classes by itself, but looks through all that it has for them, for half a second.
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    with (
        replaced(module, spec.architecture.experts_class, ArenaExperts),
        init_empty_weights(include_buffers=False),
        no_init_weights(),
    ):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    if (spec.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(spec.folder, local_files_only=True)
    model.tie_weights()
    model.eval()
    model.requires_grad_(False)
    return model


def dense_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by name; tied ones once."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def load_dense(
    model: Any,
    shapes: dict[str, tuple[int, ...]],
    architecture: Architecture,
    source: CheckpointIndex | PackedStore,
    layout: DenseLayout,
    device: torch.device,
    progress: Progress | None = None,
) -> DenseWeights | None:
    """Read every dense weight; returns the block they lie in on the CPU, None on other devices.

    Args:
        model: Whose modules get them.
        shapes: Of its parameters, from before some of its modules were replaced by quantised ones.
        source: The checkpoint, or the pack of a quantised model.

    Raises:
        CorruptCheckpoint: A tensor is missing or has another shape.
        UnsupportedModel: A tensor is not bfloat16.
    """
    precision = layout.precision
    kept = _tensors_of(source)
    keys = {name: _checkpoint_key(architecture, kept, name) for name in shapes}
    for name, shape in shapes.items():
        _check(kept, keys[name], shape)
    read = source.read_dense if isinstance(source, PackedStore) else source.read_tensor
    total = sum(2 * _room(precision, name, shape) for name, shape in shapes.items())
    dense = DenseWeights(layout) if device.type == "cpu" else None
    done = 0
    for name, shape in shapes.items():
        if dense is None:
            content = np.empty(2 * _room(precision, name, shape), np.uint8)
        else:
            content = dense.bytes_of(name, shape)
        read(keys[name], content.data)
        if dense_precision(precision, name) == BF16:
            bits = content.view(np.uint16).reshape(shape)
            _set_parameter(model, name, torch.from_numpy(bits).view(torch.bfloat16).to(device))
        else:
            model.get_submodule(name.removesuffix(".weight")).packed = torch.from_numpy(content).to(device)
        done += content.nbytes
        if progress is not None:
            progress("load", done, total)
    if precision == BF16:
        model.tie_weights()
    elif "lm_head.weight" not in shapes:
        model.lm_head.packed = model.model.embed_tokens.packed
    return dense


def place_on_devices(model: Any) -> Any:
    """Spread the dense weights over several CUDA devices with accelerate. Not yet run on real hardware."""
    from accelerate import dispatch_model, infer_auto_device_map

    device_map = infer_auto_device_map(model, no_split_module_classes=model._no_split_modules)
    return dispatch_model(model, device_map=device_map)


def _tensors_of(source: CheckpointIndex | PackedStore) -> Mapping[str, TensorEntry | DenseTensor]:
    if isinstance(source, PackedStore):
        return {tensor.name: tensor for tensor in source.head.header.dense}
    return source.tensors


def _checkpoint_key(architecture: Architecture, tensors: Collection[str], parameter: str) -> str:
    """The hub's name of a parameter, or transformers' own, which it writes when it saves what it has in memory."""
    hub_key = architecture.hub_key(parameter)
    return hub_key if hub_key in tensors or parameter not in tensors else parameter


def _check(tensors: Mapping[str, TensorEntry | DenseTensor], name: str, shape: tuple[int, ...]) -> None:
    entry = tensors.get(name)
    if entry is None:
        raise CorruptCheckpoint(f"the checkpoint has no tensor {name}", "fetch the model again")

    if tuple(entry.shape) != shape:
        raise CorruptCheckpoint(
            f"{name} has shape {list(entry.shape)}, the configuration says {list(shape)}", "fetch the model again"
        )
    if isinstance(entry, TensorEntry) and entry.dtype != "BF16":
        raise UnsupportedModel(f"{name} is stored as {entry.dtype}", "finemoe reads bfloat16 checkpoints")


def _set_parameter(model: Any, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, torch.nn.Parameter(value, requires_grad=False))
