"""The report and the tables of a run, on rows that are made up."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from finemoe_cli.evaluation.breakdown import breakdown_of
from finemoe_cli.evaluation.metrics import metrics_of
from finemoe_cli.evaluation.report import combinations_csv, report_md, requests_csv
from finemoe_cli.evaluation.summary import table_of
from finemoe_cli.output import Output
from tests.finemoe_cli.evaluation.test_compare import request

ROWS = [request("demand@low", number, 0.5 + number, 4) for number in range(3)] + [
    {"combination": "demand@low", "conversation": "a,b", "number": 3, "turn": 1, "turns": 1, "error": "too\nlong"}
]


def summary(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    names = {
        "name": "demand@low",
        "group": "demand@low",
        "seed": 0,
        "policy": "demand",
        "profile": "low",
        "budget": "12.5%",
    }
    machine = {
        "system": "Linux",
        "release": "6",
        "architecture": "x86_64",
        "cpu": "A|B",
        "cpus": 2,
        "memory_bytes": 1,
    }
    return {
        "complete": True,
        "data": {
            "dataset": "lmsys", "source": "bundled sample", "path": "", "note": "", "skipped_rows": 0, "history": 7,
            "test": 3,
        },
        "config": {
            "model": "/models/tiny",
            "asked": {
                "seed": "0", "policy": None, "max_new_tokens": "5", "system": "Be brief.", "online": False,
                "arrivals": None,
            },
            "perplexity": None,
            "sampling": {"max_new_tokens": 5, "temperature": 0.0, "seed": 0},
        },
        "sittings": [{"versions": {"torch": "2"}, "commit": None, "machine": machine, "groups": [["demand@low"]]}],
        "combinations": [
            names
            | {"device": "cpu", "kernels": "fast", "precision": "bf16"}
            | metrics_of(rows)
            | breakdown_of(rows)
        ],
        "over_seeds": [],
        "exact": None,
    } | more  # fmt: skip


def cells(text: str, first: str, nth: int = 0) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in lines[nth].strip("|").split(" | ")]


def test_tables():
    text = report_md(summary(ROWS))
    assert cells(text, "demand@low") == [
        "demand@low",
        "3 (1 errors)",
        "1500.0 / 2300.0 / 2480.0",
        "100.0 / 100.0 / 100.0",
        "100.0 / 100.0 / 100.0",
        "1700.0 / 2500.0 / 2680.0",
        "1.76",
    ]
    assert cells(text, "demand@low", 2)[1:5] == ["40.0 %", "40.0 %", "0.0 %", "60.0 %"]
    assert "finemoe eval --seed=0 --max-new-tokens=5 '--system=Be brief.'\n" in text
    assert "A\\|B, 2 cores" in text


def test_the_sample_does_not_pass_for_another():
    data = summary(ROWS)["data"] | {"note": "lmsys cannot be had (offline)"}
    text = report_md(summary(ROWS, data=data, complete=False))
    assert "**Not lmsys**: lmsys cannot be had (offline)" in text
    assert "**Not complete**" in text
    assert "**Not" not in report_md(summary(ROWS))


def test_of_nothing():
    assert cells(report_md(summary([])), "demand@low")[1:4] == ["0", "- / - / -", "- / - / -"]


def test_combinations():
    (line,) = csv.DictReader(io.StringIO(combinations_csv(summary(ROWS))))
    assert (line["name"], line["requests"], line["errors"]) == ("demand@low", "3", "1")
    assert float(line["ttft_s.median"]) == 1.5
    assert float(line["decode.hit_rate"]) == pytest.approx(0.4)
    assert "hit_rate" not in line and None not in line


def test_requests():
    lines = list(csv.DictReader(io.StringIO(requests_csv(ROWS))))
    assert [line["conversation"] for line in lines] == ["talk-0", "talk-1", "talk-2", "a,b"]
    assert [line["ttft_s"] for line in lines] == ["0.5", "1.5", "2.5", ""]
    assert [line["decode.missed"] for line in lines] == ["6", "6", "6", ""]
    assert [line["error"] for line in lines] == ["", "", "", "too\nlong"]


@pytest.mark.parametrize("note", ["", "lmsys cannot be had"])
def test_the_table_does_not_pass_for_another_data_set(note, capsys):
    of_run = summary(ROWS)
    of_run["data"]["note"] = note
    Output(quiet=True).render(table_of(of_run))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("demand@low")
    assert [line.strip() for line in lines[2:]] == (["prompts: bundled sample, not lmsys"] if note else [])
