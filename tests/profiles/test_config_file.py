from __future__ import annotations

import pytest

from offload.errors import ConfigError, StorageError
from profiles import paths
from profiles.config_file import remove_setting, store_setting
from profiles.files import read_toml


def test_settings_come_and_go_and_comments_stay():
    path = store_setting("context", "8192")
    path.write_text("# my machine\n" + path.read_text() + "lanes = 2 # slow disk\n")
    store_setting("budget", "25 %")
    store_setting("system", 'be "brief"\nplease')
    store_setting("context", "1024")
    store_setting("host_budget", "2GiB")
    assert read_toml(path) == {
        "context": 1024,
        "lanes": 2,
        "budget": "25%",
        "system": 'be "brief"\nplease',
        "host_budget": "2GiB",
    }
    assert remove_setting("system")
    assert not remove_setting("system")
    assert "# my machine" in path.read_text()
    assert "# slow disk" in path.read_text()


def test_only_settings_with_values_they_can_have():
    with pytest.raises(ConfigError, match="unknown setting 'contex'"):
        store_setting("contex", "5")
    with pytest.raises(ConfigError, match="context is '0'"):
        store_setting("context", "0")
    with pytest.raises(ConfigError, match="unknown setting"):
        remove_setting("contex")
    assert not paths.config_file().exists()


def test_an_unknown_key_can_be_taken_out():
    path = store_setting("context", "8192")
    path.write_text("contex = 1\n" + path.read_text())
    assert remove_setting("contex")
    assert read_toml(path) == {"context": 8192}


def test_a_layout_it_does_not_understand_is_left_alone():
    path = store_setting("context", "8192")
    before = 'system = """\ncontext = 5\n"""\ncontext = 8192\n'
    path.write_text(before)
    with pytest.raises(ConfigError, match="cannot be changed by itself"):
        store_setting("context", "1")
    assert path.read_text() == before


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError):
        store_setting("context", "1")
