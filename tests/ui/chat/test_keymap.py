"""Other keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ui.chat.keymap import ALL_KEYS, APP_KEYS, CHAT_KEYS, MESSAGE_KEYS, key_names, parse_keymap

NAMES = [key.id for key in ALL_KEYS]


def test_a_key_that_is_free():
    assert parse_keymap("experts=f9, quit=ctrl+x") == ({"experts": "f9", "quit": "ctrl+x"}, [])
    assert parse_keymap("") == ({}, [])


def test_a_key_that_is_taken_is_left_where_it_is():
    keymap, problems = parse_keymap("experts=f4")
    assert keymap == {}
    assert problems == ["keymap: f4 is profiles's key already, so experts keeps f3"]


def test_two_keys_can_change_places():
    assert parse_keymap("experts=f4, profiles=f3") == ({"experts": "f4", "profiles": "f3"}, [])


def test_names_that_there_are_not():
    keymap, (problem,) = parse_keymap("explode=f9, quit=ctrl+x")
    assert keymap == {"quit": "ctrl+x"}
    assert "'explode=f9'" in problem


def test_keys_as_people_write_them():
    assert key_names("ctrl+o") == "Ctrl-O"
    assert key_names("f1") == "F1"
    assert key_names("right,right_square_bracket") == "Right, ]"
    assert key_names("e") == "e"
    assert key_names("shift+c") == "Shift-C"


def test_no_key_is_given_twice_from_the_start():
    for group in (CHAT_KEYS, MESSAGE_KEYS):
        keys = [key for one in (*group, *APP_KEYS) for key in one.keys.split(",")]
        assert len(keys) == len(set(keys))


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["f3", "f4", "f9", "e", "x", "ctrl+q", "ctrl+x"])))
def test_no_keymap_gives_a_key_twice(wanted):
    keymap, problems = parse_keymap(", ".join(f"{name}={key}" for name, key in wanted.items()))
    assert len(keymap) + len(problems) == len(wanted)
    for group in (CHAT_KEYS, MESSAGE_KEYS):
        keys = [key for one in (*group, *APP_KEYS) for key in keymap.get(one.id, one.keys).split(",")]
        assert len(keys) == len(set(keys))
