"""Models that were not made for conversations."""

from __future__ import annotations

from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML_TOKENS, tiny_tokenizer


def test_a_model_without_a_chat_template_is_for_raw_text_only(finemoe, tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny-base")
    tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>")
    options = ("--model", str(folder), "--kernels", "reference", "--context", "64", "-n", "4")
    refused = finemoe("run", *options, "Hello")
    assert (refused.code, refused.error) == (1, "the model has no chat template")
    assert "--raw" in refused.err
    continued = finemoe("run", *options, "--raw", "--json", "Hello")
    assert continued.code == 0, continued.err
    assert continued.json["prompt_tokens"] == 5
