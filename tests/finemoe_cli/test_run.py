"""``finemoe run`` with the demo: answers, the ways to ask, and the ways to be cut short."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

GREEDY = ("--temperature", "0", "--context", "512")
LONG = ("run", *GREEDY, "-n", "400", "Tell a long story about a fox.")


@pytest.fixture(autouse=True)
def demo(with_demo):
    """Every test here has the demo."""


def test_one_object_with_the_answer_and_what_it_cost(finemoe, demo_model):
    ask = ("run", *GREEDY, "-n", "8", "--system", "You are a pirate.", "Name three rivers.")
    shown = finemoe(*ask, "--json", "-p", "low")
    assert (shown.code, shown.err) == (0, "")
    answer = shown.json
    assert answer["profile"] == "low"
    assert answer["prompt_tokens"] == tokens_of(demo_model, system="You are a pirate.", user="Name three rivers.")
    assert answer["completion_tokens"] == len(answer["token_ids"]) <= 8
    assert answer["finish_reason"] in ("stop", "length")
    assert {"budget_bytes", "peak_bytes", "dense_bytes", "kv_bytes", "arena_bytes", "slots", "slot_bytes"} <= set(
        answer["memory"]
    )
    for phase in ("prefill", "decode"):
        counts = answer["experts"][phase]
        kinds = ("resident", "prefetched", "late", "missed")
        assert counts["selections"] == sum(counts[kind] for kind in kinds)
    streamed = finemoe(*ask, "--stats", "-p", "minimal")
    assert (streamed.code, streamed.out) == (0, answer["text"] + "\n")
    stats = [line.split()[0] for line in streamed.err.splitlines()]
    assert stats == ["speed", "tokens", "prefill", "decode", "memory", "setup"]


def test_bytes_that_are_not_text_are_replaced_and_told_once(finemoe):
    shown = finemoe("run", *GREEDY, "-n", "1", "--no-stream", stdin=b"What is \xff\xfe in Latin-1?")
    assert shown.code == 0
    assert shown.err == "warning: the prompt is not all UTF-8; what is not was replaced\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--budget", "1MiB"], 4, "MiB"),
        (["--context", "4", "a prompt of more than four tokens"], 2, ""),
        (["--device", "cuda:99"], 2, "cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit(finemoe, arguments, code, said):
    shown = finemoe("run", *arguments, *(["hi"] if len(arguments) == 2 else []))
    assert said in shown.error
    assert shown.code == code


def test_an_unwritable_kernel_cache_is_told_and_worked_around(finemoe, tmp_path):
    (tmp_path / "file").touch()
    broken = {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "kernels")}
    shown = finemoe("run", *GREEDY, "-n", "2", "--kernels", "reference", "Hello", env=broken)
    assert shown.code == 0
    assert shown.err.count("warning: ") == 1


def test_ctrl_c_keeps_what_was_said(finemoe):
    process = finemoe.start(*LONG)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"interrupted\n")
    assert len(first + rest) < 600
    assert rest.endswith(b"\n")


def test_ctrl_c_still_prints_the_object(finemoe):
    master, slave = pty.openpty()
    process = finemoe.start(*LONG, "--json", stderr=slave)
    os.close(slave)
    shown = b""
    while b"reading the prompt" not in shown:
        shown += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    shown += os.read(master, 65536)
    os.close(master)
    assert process.returncode == 130
    assert shown.endswith(b"interrupted\r\n")
    answer = json.loads(out)
    assert answer["finish_reason"] == "stopped"
    assert answer["completion_tokens"] < 100


def test_a_second_ctrl_c_ends_it_at_once(finemoe):
    process = finemoe.start(*LONG)
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.parametrize("after", [0.5, 2.0])
def test_ctrl_c_while_loading(finemoe, after):
    process = finemoe.start(*LONG)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_a_reader_that_goes_away_ends_the_answer(finemoe):
    process = finemoe.start(*LONG)
    process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_on_a_terminal_text_streams_and_nothing_is_left_of_the_progress(finemoe):
    """A real terminal on all three streams: bars come and go, the answer comes in pieces, the table follows."""
    master, slave = pty.openpty()
    process = finemoe.start(
        "run", *GREEDY, "-n", "12", "--stats", "Name three rivers.", stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    pieces = []
    while select.select([master], [], [], 120)[0]:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(master)
    assert process.wait(60) == 0
    screen = b"".join(pieces).decode()
    assert "loading the model" in screen
    assert "reading the prompt" in screen
    assert "tok/s" in screen
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h"), "the cursor is still hidden"
    assert len(pieces) > 12


def test_settings_reach_the_engine(finemoe):
    folder = Path(finemoe.environment["FINEMOE_CONFIG_DIR"])
    folder.mkdir()
    (folder / "config.toml").write_text('kernels = "reference"\nmax_new_tokens = 3\ntemperature = 0.0\n')
    answer = finemoe("run", "--json", "Hello", env={"FINEMOE_PROFILE": "low"}).json
    assert (answer["kernels"], answer["completion_tokens"], answer["profile"]) == ("reference", 3, "low")
    assert answer["memory"]["slots"] == 60 * 30 // 8


def tokens_of(model, **messages):
    """How many tokens a conversation is by the model's own template."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    conversation = [{"role": role, "content": content} for role, content in messages.items()]
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
