from __future__ import annotations

import pytest

from offload.errors import ConfigError, ProfileNotFound, StorageError
from profiles import paths, store
from profiles.budget import Budget
from profiles.store import PRESETS, Profile


def write_profile(name: str, text: str) -> None:
    path = store.profile_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_presets_from_smallest_to_everything():
    presets = [store.load_profile(name) for name in PRESETS]
    shares = [profile.budget.experts_fraction for profile in presets]
    assert shares == [0.0, 0.125, 0.25, 0.5, 1.0]
    assert all(profile.is_preset and profile.description for profile in presets)
    assert store.DEFAULT_PROFILE in PRESETS


def test_a_profile_survives_its_file():
    made = Profile(
        name="laptop",
        description='for "trains"\\ and \x7f 🚆',
        budget=Budget(total_bytes=900 << 20),
        host_budget=3 << 30,
        context=8192,
        kernels="reference",
        policy="demand",
        lanes=3,
    )
    path = store.create_profile(made)
    assert store.load_profile("laptop") == made
    assert store.load_profile("laptop").path == path
    assert [profile.name for profile in store.list_profiles().profiles] == [*PRESETS, "laptop"]
    assert store.delete_profile("laptop") == path
    with pytest.raises(ProfileNotFound):
        store.load_profile("laptop")


def test_a_taken_name_is_kept_unless_asked():
    small, large = (Profile("mine", "", Budget(total_bytes=size)) for size in (1 << 20, 1 << 30))
    store.create_profile(small)
    with pytest.raises(ConfigError, match="exists already"):
        store.create_profile(large)
    assert store.load_profile("mine") == small
    store.create_profile(large, replace=True)
    assert store.load_profile("mine") == large
    assert [path.name for path in paths.user_profiles_dir().iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stay_as_they_are(name):
    with pytest.raises(ConfigError, match="preset"):
        store.create_profile(Profile(name, "", Budget(total_bytes=1)), replace=True)
    with pytest.raises(ConfigError, match="preset"):
        store.delete_profile(name)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Upper", "-dash", ".hidden", "a" * 65, "ä", "a\n"])
def test_names_that_are_no_file_names(name):
    with pytest.raises(ConfigError):
        store.create_profile(Profile(name, "", Budget(total_bytes=1)))
    with pytest.raises(ProfileNotFound):
        store.load_profile(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no budget"),
        ('description = "x"', "no budget"),
        ('budget = "25%"\nbugdet = 3', "line 2: unknown key 'bugdet'"),
        ('budget = "lots"', "line 1: budget is 'lots'"),
        ("budget = true", "budget is True"),
        ("budget = 0.25", "budget is 0.25"),
        ("budget = [1]", "budget is [1]"),
        ('budget = "25%"\ncontext = 0', "line 2: context is 0"),
        ('budget = "25%"\ncontext = "8192"\nlanes = 1.5', "line 3: lanes is 1.5"),
        ('budget = "25%"\nkernels = "quick"', "kernels is 'quick'"),
        ('budget = "25%"\npolicy = "psychic"', "policy is 'psychic'"),
        ('budget = "25%"\n[context]\na = 1', "line 2: context is {'a': 1}"),
        ("budget = \n", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_not_hidden(text, said):
    write_profile("mine", text)
    with pytest.raises(ConfigError) as caught:
        store.load_profile("mine")
    assert said in caught.value.message
    assert "mine.toml" in caught.value.message
    catalogue = store.list_profiles()
    assert [profile.name for profile in catalogue.profiles] == list(PRESETS)
    assert [problem.message for problem in catalogue.problems] == [caught.value.message]
    store.delete_profile("mine")


def test_a_file_with_a_presets_name_does_not_replace_it():
    write_profile("low", 'budget = "1GiB"')
    assert store.load_profile("low").is_preset
    (problem,) = store.list_profiles().problems
    assert "preset's name" in problem.message


def test_a_close_name_is_offered():
    with pytest.raises(ProfileNotFound) as caught:
        store.load_profile("balancd")
    assert caught.value.hint == "did you mean 'balanced'?"


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError) as caught:
        store.create_profile(Profile("mine", "", Budget(total_bytes=1)))
    assert paths.CONFIG_VARIABLE in caught.value.hint
    with pytest.raises(ProfileNotFound):
        store.delete_profile("mine")
    assert store.load_profile("low").is_preset
