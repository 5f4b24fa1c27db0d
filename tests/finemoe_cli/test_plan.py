"""``finemoe plan``: of a model on a hub nothing but the small files is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offload.units import GIB
from profiles import calibration
from tests.support.checkpoints import tiny_checkpoint
from tests.support.hub_server import hub_server

PUBLISHED = json.loads((Path(__file__).parents[1] / "offload" / "published_models.json").read_text())
MEASURED = {
    "measured_at": "2026-01-01T00:00:00+00:00",
    "memory_bytes_per_s": 20e9,
    "kernel_bytes_per_s": 20e9,
    "prompt_bytes_per_s": 10e9,
    "flops": 200e9,
    "disk_bytes_per_s": 1e9,
    "lanes": 4,
    "disk_rates": [[1, 5e8], [4, 1e9]],
    "direct": True,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", shards=2)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("hub") / "single", family="qwen3_moe")


@pytest.fixture
def calibrated(finemoe):
    """``finemoe`` on a machine that was measured before, whatever the size of experts."""
    cache = Path(finemoe.environment["FINEMOE_CACHE_DIR"])
    cache.mkdir(parents=True)
    measurements = {str(bits): MEASURED | {"record_bytes": 1 << bits} for bits in range(40)}
    (cache / "calibration.json").write_text(
        json.dumps({"format": calibration._FORMAT, "measurements": measurements})
    )
    return finemoe


@pytest.fixture
def hub(calibrated):
    with hub_server() as server:
        calibrated.environment |= {
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": calibrated.environment["FINEMOE_DATA_DIR"],
        }
        yield server


def test_a_model_on_the_hub_is_planned_without_its_weights(calibrated, hub, checkpoint, single):
    hub.add("somebody/tiny", checkpoint)
    planned = calibrated("plan", "somebody/tiny", "--json")
    assert planned.code == 0, planned.err
    assert {request.file for request in hub.requests if request.file} == {
        "config.json",
        "model.safetensors.index.json",
    }
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    data = planned.json
    assert data["commit"] == "a" * 40
    assert data["sizes"]["tensor_bytes"] == index["metadata"]["total_size"]
    assert data["sizes"]["experts_bytes"] == 3 * 8 * 3 * 64 * 32 * 2
    assert [entry["profile"] for entry in data["profiles"]] == ["minimal", "low", "balanced", "roomy", "resident"]
    assert data["profiles"][-1]["verdict"] == "resident"
    assert data["verdict"] == data["plan"]["verdict"]
    assert not (Path(calibrated.environment["FINEMOE_CACHE_DIR"]) / "models").exists()
    shown = calibrated("plan", "somebody/tiny")
    assert shown.out.splitlines()[-1] == f"{data['verdict']} with profile balanced: {data['reason']}"

    # What is here is planned from its own files, to the same sizes.
    here = calibrated("plan", str(checkpoint), "--json").json
    assert here["sizes"] == data["sizes"] | {"download_bytes": 0}

    assert data["calibration"]["measured_at"] == MEASURED["measured_at"]

    hub.forget()
    hub.add("somebody/single", single)
    assert calibrated("plan", "somebody/single", "--json").code == 0
    (header,) = hub.asked("model.safetensors")
    assert header.start == 0
    assert {request.file for request in hub.requests if request.file} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_gives_sizes_and_a_verdict(calibrated, hub, tmp_path, name):
    entry = PUBLISHED[name]
    index = {"metadata": {"total_size": entry["total_size"]}, "weight_map": {"a": "1.safetensors"}}
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "config.json").write_text(json.dumps(entry["config"]))
    (tmp_path / "repo" / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add(f"published/{name}", tmp_path / "repo").listed["1.safetensors"] = entry["total_size"]

    planned = calibrated("plan", f"published/{name}", "--profile", "minimal", "--json")
    data = planned.json
    assert data["sizes"]["tensor_bytes"] == entry["total_size"]
    assert data["sizes"]["download_bytes"] > entry["total_size"]
    assert planned.code == (4 if data["verdict"] == "does not fit" else 0)
    assert not hub.asked("1.safetensors")


def test_a_budget_or_a_profile_changes_what_the_verdict_is_for(calibrated, checkpoint):
    def planned(*options):
        return calibrated("plan", str(checkpoint), *options, "--json")

    half = planned("--budget", "50%", "--context", "128").json
    assert (half["plan"]["for"], half["plan"]["slots"], half["context"]) == ("budget 50%", 12, 128)
    assert planned("--profile", "low").json["plan"]["slots"] == 4
    small = planned("--budget", "1MiB")
    assert (small.code, small.json["verdict"]) == (4, "does not fit")
    assert "the least is" in small.json["reason"] and "--profile resident" in small.json["reason"]
    large = planned("--budget", f"{1 << 20}GiB").json
    assert large["verdict"] == "does not fit"
    assert large["memory_bytes"] < (1 << 20) * GIB


def test_the_machine_is_measured_once_and_again_when_asked(quick_disk, checkpoint):
    first = quick_disk("plan", str(checkpoint), "--json")
    assert first.code == 0, first.err
    assert first.json["calibration"]["disk_bytes_per_s"] > 0
    cache = Path(quick_disk.environment["FINEMOE_CACHE_DIR"])
    assert [path.name for path in cache.iterdir()] == ["calibration.json"]
    kept = cache / "calibration.json"
    written = kept.stat().st_mtime_ns
    assert quick_disk("plan", str(checkpoint), "--recalibrate", "-q").code == 0
    assert kept.stat().st_mtime_ns > written


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "demo"], 3, "the demo is not here yet"),
        (["plan", "nothing"], 3, "no model or folder called 'nothing'"),
        (["plan", "a/b", "--budget", "lots"], 2, "--budget is 'lots'"),
        (["plan", "a/b"], 3, "the hub has no model 'a/b'"),
    ],
)
def test_what_cannot_be_planned(calibrated, hub, arguments, code, said):
    refused = calibrated(*arguments)
    assert (refused.code, said in refused.error) == (code, True), refused.err


def test_a_precision_is_planned_before_it_is_packed(calibrated, checkpoint):
    plans = {
        precision: calibrated("plan", str(checkpoint), "--precision", precision, "--json").json
        for precision in ("bf16", "int4")
    }
    assert {plan["precision"] for plan in plans.values()} == {"bf16", "int4"}
    for field in ("dense_bytes", "experts_bytes"):
        assert plans["int4"]["sizes"][field] < 0.5 * plans["bf16"]["sizes"][field]
    assert "weights int4" in calibrated("plan", str(checkpoint), "--precision", "int4").out
    assert calibrated("plan", str(checkpoint), "--precision", "int5").code == 2
