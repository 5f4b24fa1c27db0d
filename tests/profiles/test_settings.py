from __future__ import annotations

from pathlib import Path

import pytest

from offload.config import EngineConfig, Sampling
from offload.errors import ConfigError, ProfileNotFound
from profiles import paths, store
from profiles.budget import Budget
from profiles.settings import SETTINGS, Settings, resolve


def write_config(text: str) -> Path:
    path = paths.config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_give_the_default_profile():
    resolved = resolve(environment={})
    assert resolved.settings.model == "demo"
    assert resolved.settings.budget == Budget(experts_fraction=0.25)
    assert resolved.origins["budget"].label == "profile balanced"
    assert {origin.kind for name, origin in resolved.origins.items() if name != "budget"} == {"default"}


def test_flag_over_environment_over_file_over_default():
    path = write_config("# mine\ncontext = 1000\n")
    assert resolve(environment={}).settings.context == 1000
    assert resolve(environment={}).origins["context"].label == f"{path}, line 2"
    environment = {"FINEMOE_CONTEXT": "2000"}
    assert resolve(environment=environment).settings.context == 2000
    assert resolve(environment=environment).origins["context"].label == "FINEMOE_CONTEXT"
    resolved = resolve({"context": "3000", "lanes": None}, environment)
    assert resolved.settings.context == 3000
    assert resolved.origins["context"].label == "--context"
    assert resolved.origins["lanes"].kind == "default"


@pytest.mark.parametrize(
    ("flags", "environment", "file", "budget"),
    [
        ({}, {}, 'budget = "1GiB"', "1GiB"),
        ({}, {}, 'profile = "low"\nbudget = "1GiB"', "1GiB"),
        ({}, {"FINEMOE_PROFILE": "low"}, 'budget = "1GiB"', "12.5%"),
        ({"profile": "low"}, {}, 'budget = "1GiB"', "12.5%"),
        ({"profile": "low"}, {"FINEMOE_BUDGET": "1GiB"}, "", "12.5%"),
        ({"budget": "2GiB"}, {"FINEMOE_PROFILE": "low"}, "", "2GiB"),
        ({"profile": "low", "budget": "2GiB"}, {}, "", "2GiB"),
        ({}, {"FINEMOE_PROFILE": "roomy"}, 'profile = "low"', "50%"),
    ],
)
def test_a_profile_counts_as_given_where_it_was_named(flags, environment, file, budget):
    write_config(file)
    assert str(resolve(flags, environment).settings.budget) == budget


def test_what_a_profile_carries_is_in_force():
    store.create_profile(
        store.Profile("mine", "", Budget(total_bytes=1 << 30), context=512, kernels="reference", lanes=2)
    )
    resolved = resolve({"profile": "mine", "lanes": "3"}, {"FINEMOE_CONTEXT": "9"})
    config = resolved.engine_config(Path("model"))
    assert config == EngineConfig(
        model=Path("model"),
        budget_bytes=1 << 30,
        context=512,
        kernels="reference",
        lanes=3,
        packs_folder=paths.packs_dir(),
        knowledge=paths.knowledge_dir(),
    )


def test_a_share_goes_to_the_engine_as_a_fraction():
    config = resolve({"profile": "minimal"}, {}).engine_config(Path("model"))
    assert (config.budget_bytes, config.experts_fraction) == (None, 0.0)


def test_sampling_left_alone_stays_the_models():
    assert resolve(environment={}).sampling() == Sampling()
    drawn = resolve({"temperature": "0", "top_k": "5", "seed": "7"}, {}).sampling()
    assert (drawn.temperature, drawn.top_k, drawn.seed) == (0.0, 5, 7)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("context", "many"),
        ("context", "0"),
        ("context", "1e3"),
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("top_p", "0"),
        ("top_p", "1.5"),
        ("top_k", "0"),
        ("kernels", "quick"),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("lanes", "65"),
        ("budget", "lots"),
        ("host_budget", "25%"),
        ("max_new_tokens", "0"),
        ("policy", "psychic"),
        ("seed", "-1"),
        ("system", " "),
    ],
)
def test_a_value_that_cannot_be_used_says_where_it_was_given(name, raw):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError) as caught:
        resolve({name: raw}, {})
    assert caught.value.message == f"{flag} is {raw!r}"
    assert caught.value.hint
    with pytest.raises(ConfigError, match=f"^FINEMOE_{name.upper()} is "):
        resolve({}, {f"FINEMOE_{name.upper()}": raw})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("context = 8192\nlanes = \n", "line 2"),
        ("context = 8192\ncontxt = 1\n", "line 2: unknown setting 'contxt'"),
        ("[engine]\ncontext = 5\n", "line 1: unknown setting 'engine'"),
        ("context = true\n", "line 1: context is True"),
        ("kernels = 3\n", "line 1: kernels is 3"),
        ("model = 1979-05-27\n", "line 1: model is"),
    ],
)
def test_a_broken_settings_file_names_the_line(text, said):
    path = write_config(text)
    with pytest.raises(ConfigError) as caught:
        resolve(environment={})
    assert str(path) in caught.value.message
    assert said in caught.value.message


def test_a_settings_file_that_is_not_text():
    write_config("")
    paths.config_file().write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        resolve(environment={})


def test_a_missing_profile_is_not_found():
    with pytest.raises(ProfileNotFound):
        resolve({"profile": "nope"}, {})


def test_empty_variables_count_as_unset():
    assert resolve({}, {"FINEMOE_CONTEXT": ""}).origins["context"].kind == "default"


def test_every_setting_is_documented():
    for name, declared in SETTINGS.items():
        assert declared.metadata["about"], name
    assert Settings().budget is None
