"""What a model takes, in bytes, in each precision: arithmetic over its configuration, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from offload.errors import CorruptCheckpoint
from offload.models.spec import BYTES_PER_WEIGHT, ModelSpec
from offload.precision import BF16, TILE_ROWS, Precision, check_family, expert_layout, matrix_bytes
from offload.store.base import BLOCK
from offload.units import format_bytes


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model's bytes.

    Attributes:
        spec: Its facts.
        tensor_bytes: All tensors together.
        download_bytes: What there is to fetch; 0 for a model that is here.
        slot_bytes: One slot of the arena.
        staging_bytes: What each reading lane takes beside the slots.
        precision: How the weights are kept. The tensors are always those of the checkpoint.
    """

    spec: ModelSpec
    tensor_bytes: int
    download_bytes: int
    slot_bytes: int
    staging_bytes: int
    precision: Precision = BF16

    def __post_init__(self) -> None:
        if self._plain_dense_bytes <= 0:
            raise CorruptCheckpoint(
                f"{self.spec.name} has {format_bytes(self.tensor_bytes)} of tensors, and its config.json describes "
                f"{format_bytes(self.spec.total_experts * self.spec.expert_bytes)} of experts",
                "the configuration and the weights are not of one model, or not in bfloat16",
            )

    @classmethod
    def unread(cls, spec: ModelSpec, tensor_bytes: int, download_bytes: int) -> ModelSizes:
        """The sizes of a model whose experts lie as the safetensors library writes them: by name, touching.

        Gate, up and down then come in one read that begins within a block. Where up does not follow gate in the
        alphabet, the read goes through the lane's staging buffer.
        """
        gate, up, down = spec.architecture.expert_keys(spec.moe_layers[0], 0)
        order = sorted((gate, up, down))
        covering = -(-spec.expert_bytes // BLOCK) * BLOCK + BLOCK
        if order.index(up) == order.index(gate) + 1:
            return cls(spec, tensor_bytes, download_bytes, covering, 0)
        return cls(spec, tensor_bytes, download_bytes, covering - BLOCK, covering)

    def packed_as(self, precision: Precision) -> ModelSizes:
        """The sizes of the model when it is packed in a precision; as it is in bfloat16.

        Raises:
            UnsupportedModel: A model that finemoe does not quantise.
        """
        if precision == BF16:
            return self
        family = self.spec.architecture
        check_family(precision, self.spec.name, family.model_type, family.fast_kernels)
        record = expert_layout(precision, self.spec.hidden_size, self.spec.expert_size).nbytes
        slot = -(-record // BLOCK) * BLOCK
        return replace(self, precision=precision, slot_bytes=slot, staging_bytes=0)

    @property
    def expert_bytes(self) -> int:
        """One routed expert."""
        if self.precision == BF16:
            return self.spec.expert_bytes
        return expert_layout(self.precision, self.spec.hidden_size, self.spec.expert_size).nbytes

    @property
    def experts_bytes(self) -> int:
        """All routed experts."""
        return self.spec.total_experts * self.expert_bytes

    @property
    def dense_bytes(self) -> int:
        """Everything that is no routed expert and is always in memory.

        Of a quantised model all but the routers is taken for quantised matrices with rows as long as the residual
        stream is wide, which is less than a hundredth off.
        """
        if self.precision == BF16:
            return self._plain_dense_bytes
        spec = self.spec
        routers = spec.total_experts * spec.hidden_size * BYTES_PER_WEIGHT
        return routers + self._packed(max(self._plain_dense_bytes - routers, 0))

    @property
    def _plain_dense_bytes(self) -> int:
        return self.tensor_bytes - self.spec.total_experts * self.spec.expert_bytes

    def _packed(self, plain_bytes: int) -> int:
        """What matrices take that have so many bytes in bfloat16."""
        row = [matrix_bytes(precision, TILE_ROWS, self.spec.hidden_size) for precision in (self.precision, BF16)]
        return plain_bytes * row[0] // row[1]

    @property
    def active_dense_bytes(self) -> int:
        """Dense weights that a token reads: of an embedding table that is not also the head, only a row."""
        table = 0 if self.spec.tied_embeddings else self.spec.vocab_size * self.spec.hidden_size * BYTES_PER_WEIGHT
        return max(self.dense_bytes - self._packed(table), 0)

    @property
    def active_expert_bytes(self) -> int:
        """Routed experts that a token reads."""
        return self.spec.num_layers * self.spec.top_k * self.expert_bytes

    def to_dict(self) -> dict[str, int]:
        """For ``--json``."""
        return {
            "tensor_bytes": self.tensor_bytes,
            "dense_bytes": self.dense_bytes,
            "experts_bytes": self.experts_bytes,
            "expert_bytes": self.expert_bytes,
            "experts": self.spec.total_experts,
            "kv_bytes_per_token": self.spec.kv_bytes_per_token,
            "active_bytes_per_token": self.active_dense_bytes + self.active_expert_bytes,
            "download_bytes": self.download_bytes,
        }
