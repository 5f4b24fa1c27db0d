"""The model families that finemoe runs: one module each, listed here.

A family belongs in the list when the equality tests (``tests/offload/runtime/test_families.py``) pass for it.
"""

from __future__ import annotations

from offload.models.architecture import Architecture
from offload.models.deepseek_v2 import DEEPSEEK_V2
from offload.models.mixtral import MIXTRAL
from offload.models.olmoe import OLMOE
from offload.models.phimoe import PHIMOE
from offload.models.qwen2_moe import QWEN2_MOE
from offload.models.qwen3_moe import QWEN3_MOE

_FAMILIES = (QWEN2_MOE, QWEN3_MOE, MIXTRAL, PHIMOE, OLMOE, DEEPSEEK_V2)

ARCHITECTURES: dict[str, Architecture] = {family.model_type: family for family in _FAMILIES}
"""Every family by its ``model_type``."""
