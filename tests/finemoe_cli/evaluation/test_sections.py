"""Parts of a report that not every run has."""

from __future__ import annotations

from typing import Any

import pytest

from finemoe_cli.evaluation.exact import exactness
from finemoe_cli.evaluation.report import report_md
from finemoe_cli.evaluation.summary import over_seeds
from tests.finemoe_cli.evaluation.test_compare import request
from tests.finemoe_cli.evaluation.test_report import cells, summary


def with_config(made: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = made["config"]["asked"] | {
        name: more.pop(name) for name in list(more) if name in ("arrivals", "online")
    }
    return made | {"config": made["config"] | {"asked": asked} | more}


ROWS = [request("demand@low", number, 0.5 + number, number) for number in range(10)]


def test_a_plain_run_has_none_but_places():
    text = report_md(summary(ROWS))
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## Latency", "## Experts", "## Memory", "## Place in the answer", "## Again"]
    assert "| policy@budget | 1-8 |\n" in text


def test_waiting():
    rows = [row | {"arrival_s": 0.0, "queue_s": float(row["number"])} for row in ROWS]
    text = report_md(with_config(summary(rows), arrivals="at-once"))
    assert "## Waiting\n\nArrivals: at-once." in text
    assert "| demand@low | 4.50 / 8.10 / 8.91 | 52.00 | 9.70 |" in text


def test_learning_is_shown_in_parts():
    text = report_md(with_config(summary(ROWS), online=True))
    shown = text[text.index("## Learning") :]
    assert cells(shown, "demand@low") == ["demand@low", "5.0 %", "25.0 %", "45.0 %", "65.0 %", "85.0 %"]
    assert "## Learning" not in report_md(with_config(summary(ROWS[:3]), online=True))


def test_seeds():
    one, two = (summary(rows)["combinations"][0] for rows in (ROWS[:4], ROWS[4:]))
    groups = over_seeds([one | {"seed": 0}, two | {"seed": 1}])
    text = report_md(summary(ROWS) | {"over_seeds": groups})
    assert "| demand@low | 2 | 4500.0 ± 3535.5 |" in text[text.index("## Over seeds") :]
    assert over_seeds([one]) == []


def test_perplexity():
    made = with_config(summary(ROWS), perplexity={"path": "/texts/a.txt"})
    found = {"perplexity": 7.5, "nll_per_token": 2.0149, "bits_per_byte": None, "tokens": 10}
    made["combinations"][0]["perplexity"] = found
    assert "Of /texts/a.txt." in report_md(made)
    assert "| demand@low | 7.5000 | 2.014900 | - | 10 |" in report_md(made)


def digests(combination: str, number: int, turn: int, *logits: str) -> dict[str, Any]:
    return {
        "combination": combination,
        "seed": 0,
        "conversation": f"talk-{number}",
        "number": number,
        "turn": turn,
        "logits": list(logits),
    }


REPLAYED = [
    digests("resident", 0, 1, "a", "b"),
    digests("resident", 0, 2, "c"),
    digests("resident", 1, 1, "d", "e"),
]


@pytest.mark.parametrize(
    ("logits", "turn", "at"),
    [(("d", "e"), 0, 0), (("d", "x"), 1, 2), (("x", "x"), 1, 1), (("d",), 1, 2), (("d", "e", "f"), 1, 3)],
)
def test_exactness(logits, turn, at):
    rows = [
        *(row | {"combination": "auto@low"} for row in REPLAYED),
        *(row | {"combination": "demand@low"} for row in REPLAYED[:2]),
        digests("demand@low", 1, 1, *logits),
        digests("demand@low", 2, 1, "not replayed yet"),
    ]
    found = exactness([{"name": "auto@low"}, {"name": "demand@low"}], rows, REPLAYED)
    assert (found["requests"], found["exact"], found["different"]) == (6, at == 0, int(at != 0))
    assert found["combinations"] == {"auto@low": True, "demand@low": at == 0}
    text = report_md(summary(ROWS) | {"exact": found})
    if at == 0:
        assert found["first_difference"] is None
        assert (
            "All logits are those of the resident model, to the last bit: 10 forward passes of 6 requests" in text
        )
    else:
        where = {"combination": "demand@low", "conversation": "talk-1", "number": 1, "turn": turn, "pass": at}
        assert found["first_difference"] == where
        assert f"first in turn {turn} of talk-1, forward pass {at}; " in text


def test_nothing_compared_is_no_success():
    found = exactness([{"name": "a"}], [digests("a", 0, 1, "a")], [])
    assert (found["exact"], found["combinations"]) == (None, {"a": None})
    assert "Nothing was compared" in report_md(summary(ROWS) | {"exact": found})
