"""``finemoe bench``, as a user runs it."""

from __future__ import annotations


def test_a_shape_that_is_not_known_is_refused_in_one_line(finemoe, tmp_path):
    done = finemoe("bench", "make-model", "gpt-4", str(tmp_path / "out"))
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: there is no shape 'gpt-4'\nhint: choose one of qwen1.5-moe-a2.7b, qwen3-30b-a3b\n"


def test_more_layers_than_the_model_has_are_refused(finemoe, tmp_path):
    done = finemoe("bench", "make-model", "qwen3-30b-a3b", str(tmp_path / "out"), "--layers", "49")
    assert done.code == 2
    assert "layers is 49" in done.err and "1 to 48" in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(finemoe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = finemoe("bench", "make-model", "qwen3-30b-a3b", str(tmp_path / "file" / "out"), "--layers", "1")
    assert done.code == 1
    assert done.err.startswith("error: the model cannot be written to ") and done.err.count("\n") == 2
