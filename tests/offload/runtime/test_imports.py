"""A process of finemoe has what it needs of torch, and what it left out can still be had."""

from __future__ import annotations

from offload.child import run_code

CODE = """
import sys
import offload.runtime
import torch

assert "transformers" in sys.modules
left_out = {"torch._meta_registrations", "torch._decomp", "torch._refs"} & set(sys.modules)
assert not left_out, left_out
assert not hasattr(torch, "_meta_registrations")
with torch.device("meta"):  # What models are built of.
    assert torch.nn.Linear(3, 4)(torch.arange(6.0).reshape(2, 3) ** 2).shape == (2, 4)

from torch._meta_registrations import meta_index_Tensor

assert torch._meta_registrations.meta_index_Tensor is meta_index_Tensor
"""


def test_what_torch_knows_of_shapes_in_python_comes_when_it_is_asked_for() -> None:
    assert not run_code(CODE)


GENERATOR = """
import offload.runtime
import torch

assert isinstance(torch.Generator().manual_seed(3), torch.Generator)
import torch._prims.rng_prims  # What would have made it possible.

assert torch.rand(2, generator=torch.Generator().manual_seed(3)).shape == (2,)
"""


def test_random_generators_of_torch_can_be_made() -> None:
    assert not run_code(GENERATOR)
