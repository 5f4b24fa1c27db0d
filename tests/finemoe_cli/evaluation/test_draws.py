"""What seeds draw."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finemoe_cli.evaluation.draws import draw_all, parse_seeds
from finemoe_cli.evaluation.plan import DEFAULTS
from offload.errors import ConfigError


def asked(**more: Any) -> dict[str, Any]:
    return dict(DEFAULTS) | {"limit": 10} | more


def test_each_seed_draws_for_itself():
    one, two = draw_all(asked(seed="3,5", arrivals="poisson:1"))
    (alone,) = draw_all(asked(seed="5", arrivals="poisson:1"))
    assert (one.seed, two.seed) == (3, 5)
    assert two == alone
    assert (len(one.history), len(one.test)) == (len(two.history), len(two.test)) == (7, 3)
    assert one.digest != two.digest and one.arrivals != two.arrivals
    assert len(one.arrivals or ()) == 3


def test_the_file_is_the_same_for_all(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "prompt": f"Question {n}"}) + "\n" for n in range(40)))
    one, two = draw_all(asked(data=str(path), seed="0,1"))
    assert one.prompts.path == two.prompts.path == str(path)
    assert {talk.id for talk in [*one.history, *one.test]} != {talk.id for talk in [*two.history, *two.test]}


def test_online_has_no_history():
    (draw,) = draw_all(asked(online=True))
    assert (len(draw.history), len(draw.test), draw.arrivals) == (0, 10, None)
    with pytest.raises(ConfigError, match="both --online and --split are given"):
        draw_all(asked(online=True, split="1:1"))


def test_one_conversation_is_too_few_to_learn_from(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("Hello\n")
    with pytest.raises(
        ConfigError, match=r"one conversation in .*one\.txt, and a history and a test need two"
    ) as raised:
        draw_all(asked(data=str(path)))
    assert "--online" in raised.value.hint
    (draw,) = draw_all(asked(data=str(path), online=True))
    assert len(draw.test) == 1


@pytest.mark.parametrize("text", ["", "1,", "one", "-1", "1.5", "٣", "9" * 19])
def test_no_seeds(text):
    with pytest.raises(ConfigError, match="--seed is '"):
        parse_seeds(text)


def test_a_seed_twice():
    with pytest.raises(ConfigError, match="names a seed twice"):
        parse_seeds("1,01")
    assert parse_seeds(" 2, 0") == [2, 0]
