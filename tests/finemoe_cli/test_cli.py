"""Help, version, completion, and how every command treats what it cannot use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finemoe_cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from offload import errors

COMMANDS = (
    *("chat", "run", "top", "replay", "pull", "pack", "plan", "doctor", "models", "sessions"),
    *("trace", "simulate", "maps", "bench", "eval", "plot", "profiles", "config"),
)


def test_help_names_the_commands_and_the_exit_codes(finemoe):
    shown = finemoe("--help")
    assert shown.code == 0
    assert all(f" {command} " in shown.out for command in COMMANDS)
    assert all(f"{code.value}" in shown.out for code in MEANINGS)
    assert finemoe().out.split() == finemoe("-h").out.split() == shown.out.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(finemoe, command):
    shown = finemoe(command, "--help")
    assert shown.code == 0
    assert "Usage: finemoe" in shown.out
    assert "\x1b" not in shown.out


def test_version(finemoe):
    shown = finemoe("--version")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("finemoe ")
    assert finemoe("-V").out == shown.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown(finemoe, shell):
    shown = finemoe("--show-completion", shell, env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert shown.code == 0
    assert "_FINEMOE_COMPLETE" in shown.out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("finemoe ", set(COMMANDS)),
        ("finemoe run --profile b", {"balanced"}),
        ("finemoe run --model ", {"demo"}),
        ("finemoe run --kernels ", {"auto", "fast", "reference"}),
        ("finemoe config set cont", {"context"}),
    ],
)
def test_the_shell_is_offered_names(finemoe, words, offered):
    cword = len(words.split(" ")) - 1
    shown = finemoe(env={"_FINEMOE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(cword)})
    assert set(shown.out.split()) == offered


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["runn"], 2, "no such command 'runn'"),
        (["run", "--bogus", "hi"], 2, "--bogus"),
        (["run", "--budget", "lots", "hi"], 2, "--budget is 'lots'"),
        (["run", "--budget", "-1", "hi"], 2, "--budget is '-1'"),
        (["run", "--context", "0", "hi"], 2, "--context is '0'"),
        (["run", "--temperature", "hot", "hi"], 2, "--temperature is 'hot'"),
        (["run", "--kernels", "quick", "hi"], 2, "--kernels is 'quick'"),
        (["run", "--policy", "psychic", "hi"], 2, "--policy is 'psychic'"),
        (["run", "--device", "tpu", "hi"], 2, "--device is 'tpu'"),
        (["run", "--profile", "nope", "hi"], 3, "no profile called 'nope'"),
        (["run", "--model", "nope", "hi"], 3, "no model or folder called 'nope'"),
        (["run", "--model", "/", "hi"], 3, "/ has no config.json"),
        (["run"], 2, "the prompt is empty"),
        (["run", "-"], 2, "the prompt is empty"),
        (["run", "  "], 2, "the prompt is empty"),
        (["pull", "gpt-4"], 3, "'gpt-4' is neither a folder nor a hub repository"),
        (["pull"], 2, "missing argument"),
        (["profiles", "show", "nope"], 3, "no profile called 'nope'"),
        (["profiles", "delete", "nope"], 3, "no profile called 'nope'"),
        (["profiles", "delete", "low"], 2, "'low' is a preset"),
        (["profiles", "create", "low", "--budget", "1GiB"], 2, "'low' is a preset"),
        (["profiles", "create", "A/B", "--budget", "1GiB"], 2, "cannot be the name of a profile"),
        (["profiles", "create", "x", "--budget", "lots"], 2, "--budget is 'lots'"),
        (["config", "set", "nope", "1"], 2, "unknown setting 'nope'"),
        (["config", "set", "context", "no"], 2, "context is 'no'"),
        (["config", "get", "nope"], 2, "unknown setting 'nope'"),
        (["doctor", "--bogus"], 2, "--bogus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_used_is_one_line_and_a_code(finemoe, arguments, code, said):
    shown = finemoe(*arguments)
    assert said in shown.error
    assert shown.code == code


def test_a_model_of_another_kind(finemoe, tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    shown = finemoe("run", "--model", str(tmp_path / "llama"), "hi")
    assert shown.code == 1
    assert "'llama'" in shown.error
    (tmp_path / "llama" / "config.json").write_text("{")
    shown = finemoe("run", "--model", str(tmp_path / "llama"), "hi")
    assert shown.code == 1
    assert "cannot be read" in shown.error


def test_a_broken_settings_file_stops_what_needs_it(finemoe):
    folder = Path(finemoe.environment["FINEMOE_CONFIG_DIR"])
    folder.mkdir()
    (folder / "config.toml").write_text("context = 5\nlanes = = 3\n")
    shown = finemoe("run", "hi")
    assert shown.code == 2
    assert "line 2" in shown.error
    assert finemoe("config", "path").code == 0
    assert finemoe("profiles", "show", "low").code == 0
    looked = finemoe("doctor", "--json")
    assert looked.code == 1
    assert {finding["status"] for finding in looked.json["findings"] if finding["name"] == "settings"} == {"fail"}


def test_an_unwritable_cache_names_the_variable(finemoe, tmp_path):
    (tmp_path / "file").touch()
    elsewhere = {"FINEMOE_CACHE_DIR": str(tmp_path / "file" / "cache")}
    for command in (["pull", "demo"], ["run", "hi"]):
        shown = finemoe(*command, env=elsewhere)
        assert shown.code == 1
        assert "FINEMOE_CACHE_DIR" in shown.err
        assert "cannot write" in shown.error
    (tmp_path / "config").touch()
    shown = finemoe("config", "set", "context", "5")
    assert shown.code == 1
    assert "FINEMOE_CONFIG_DIR" in shown.err


def test_the_traceback_only_when_asked_for(finemoe):
    assert "Traceback" not in finemoe("profiles", "show", "nope").err
    shown = finemoe("profiles", "show", "nope", env={"FINEMOE_DEBUG": "1"})
    assert "Traceback" in shown.err
    assert shown.code == 3


def test_a_profile_from_creation_to_deletion(finemoe):
    made = finemoe("profiles", "create", "laptop", "-b", "900MiB", "--context", "512", "-d", "for trains")
    assert made.code == 0
    path = Path(made.out.strip())
    assert path.parent == Path(finemoe("profiles", "path").out.strip())
    assert finemoe("profiles", "show", "laptop", "--json").json == {
        "name": "laptop",
        "preset": False,
        "description": "for trains",
        "budget": "900MiB",
        "context": 512,
    }
    assert finemoe("profiles", "show", "laptop").out == path.read_text()
    listed = finemoe("profiles", "list", "--json").json
    assert [profile["name"] for profile in listed["profiles"]][-1] == "laptop"
    assert listed["active"] == "balanced"
    assert finemoe("profiles", "list", env={"FINEMOE_PROFILE": "laptop"}).out.splitlines()[-1].split()[:2] == [
        "laptop",
        "active",
    ]
    assert finemoe("profiles", "delete", "laptop", "-q").err == ""
    assert not path.exists()


def test_settings_and_where_they_come_from(finemoe):
    assert finemoe("config", "set", "context", "1234").code == 0
    assert finemoe("config", "set", "profile", "low").code == 0
    shown = finemoe("config", "show", "--origin", "--json", env={"FINEMOE_SEED": "7"}).json
    assert shown["context"] == {
        "value": 1234,
        "origin": "file",
        "where": f"{finemoe('config', 'path').out.strip()}, line 1",
    }
    assert shown["budget"] == {"value": "12.5%", "origin": "profile", "where": "profile low"}
    assert shown["seed"] == {"value": 7, "origin": "environment", "where": "FINEMOE_SEED"}
    assert shown["kernels"]["origin"] == "default"
    assert finemoe("config", "get", "context").out == "1234\n"
    assert finemoe("config", "unset", "context").code == 0
    assert finemoe("config", "get", "context").out == "4096\n"
    table = finemoe("config", "show", "--origin", "--about").out.splitlines()
    assert table[0].split() == ["SETTING", "VALUE", "ORIGIN", "MEANING"]
    assert all(line == line.rstrip() for line in table)


def test_doctor_without_a_model(finemoe):
    looked = finemoe("doctor", "--json")
    assert looked.code == 0
    findings = {finding["name"]: finding for finding in looked.json["findings"]}
    assert looked.json["ok"] is True
    assert findings["memory"]["data"]["total_bytes"] > 0
    assert findings["packages"]["data"]["torch"]
    assert "finemoe pull demo" in findings["model"]["text"]
    assert not Path(finemoe.environment["FINEMOE_CACHE_DIR"]).exists()
    lines = finemoe("doctor").out.splitlines()
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in lines)


def test_doctor_for_a_model_that_is_not_there(finemoe):
    looked = finemoe("doctor", "--model", "nope")
    assert looked.code == 1
    assert next(line for line in looked.out.splitlines() if line.startswith("fail")).split()[1] == "model"


def test_the_gpu_selftest_says_that_there_is_no_gpu(finemoe):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    looked = finemoe("doctor", "--gpu-selftest", "--json")
    assert looked.code == 1
    (finding,) = [finding for finding in looked.json["findings"] if finding["status"] == "fail"]
    assert finding["text"].startswith("no GPU to test")


@pytest.mark.parametrize("arguments", [["--help"], ["profiles", "list"], ["config", "show", "--json"]])
def test_a_reader_that_went_away_is_no_error(finemoe, arguments):
    process = finemoe.start(*arguments)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 0


def test_a_full_disk_behind_stdout_is_an_error(finemoe):
    with Path("/dev/full").open("wb") as full:
        process = finemoe.start("config", "show", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(b"error: ")
    assert b"No space left on device" in err
    assert b"Traceback" not in err


def test_streams_that_are_closed_from_the_start(finemoe):
    command = f'"{sys.executable}" -m finemoe_cli profiles show low >&- 2>&- <&-'
    assert subprocess.run(["sh", "-c", command], env=finemoe.environment, check=False).returncode == 0


def test_an_encoding_that_lacks_characters(finemoe):
    finemoe("profiles", "create", "x", "-b", "1GiB", "-d", "größer 世界")
    ascii_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    assert finemoe("profiles", "list", env=ascii_only).code == 0
    shown = finemoe("profiles", "show", "x", "--json", env=ascii_only)
    assert json.loads(shown.out)["description"] == "größer 世界"


def test_every_error_has_a_code():
    assert exit_code_of(errors.ContextOverflow("x")) == ExitCode.USAGE == 2
    assert exit_code_of(errors.ModelNotFound("x")) == ExitCode.NOT_FOUND == 3
    assert exit_code_of(errors.BudgetTooSmall("x", smallest_bytes=1)) == ExitCode.DOES_NOT_FIT == 4
    assert exit_code_of(errors.BudgetTooLarge("x")) == ExitCode.DOES_NOT_FIT
    assert exit_code_of(errors.CorruptCheckpoint("x")) == ExitCode.FAILURE == 1
    assert exit_code_of(KeyboardInterrupt()) == ExitCode.INTERRUPTED == 130
    assert ExitCode.GATE_FAILED == 5
    assert set(MEANINGS) == set(ExitCode)
