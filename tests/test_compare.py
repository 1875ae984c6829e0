"""`stemwise compare`: what it writes, and what it says where evaluations cannot be compared."""

import pytest

import synthetic
from html_tables import Reader
from stemwise import model_file
from stemwise.commands import compare
from stemwise.evaluation import results


@pytest.fixture
def evaluations(tmp_path):
    """Folders of two models on eight songs, whose models and songs are gone."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        made = synthetic.evaluation(tmp_path / name, 8, name, level=4.0 + number, digest=str(number) * 32)
        results.write(made)
    return tmp_path


def test_two_evaluations_become_a_page_and_tables(stemwise, evaluations):
    done = stemwise("compare", "one", "two", "-o", "out")
    assert done.code == 0, done.output
    folder = evaluations / "out"
    assert {path.name for path in folder.iterdir()} == {"report.html", "comparison.csv", "comparison.md"}
    assert (folder / "comparison.md").read_text() in done.output
    page = (folder / "report.html").read_text()
    assert "difference-B" in Reader(page).tables
    # The scores are compared all the same, and why nothing can be heard is said here and there.
    for text in (done.output, page):
        assert "ongs to listen to: /nowhere/one.safetensors: no such model file" in text
    assert "listen" not in stemwise("compare", "one", "two", "-o", "out", "--songs", "0").output


def test_a_model_is_heard_with_the_windows_that_were_scored(small_separator, tmp_path):
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    facts = {
        "checkpoint": str(tmp_path / "model.safetensors"),
        "digest": results.digest(tmp_path / "model.safetensors"),
    }
    heard = [
        compare._model(synthetic.evaluation(tmp_path, 2, "one", overlap=overlap, **facts)).overlap
        for overlap in (None, 0.5)
    ]
    assert heard == [0, 0.5]


def test_models_names_are_printed_without_control_characters(stemwise, tmp_path):
    for number, name in enumerate(("one", "\x1b[31mtwo")):
        made = synthetic.evaluation(tmp_path / str(number), 8, name, digest=str(number) * 32, split=f"split{number}")
        results.write(made)
    done = stemwise("compare", "0", "1", "--songs", "0")
    assert done.code == 0, done.output
    assert "\x1b" not in done.output
    assert "\\x1b[31mtwo: split1" in done.output  # a note
    assert "\\x1b\\[31mtwo − one" in done.output  # a row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "one evaluation has nothing to be compared with"),
        (["one", "./one"], "one: named twice"),
        (["one", "two", "--songs", "-1"], "--songs -1: less than none"),
        (["one", "none"], "none: no such folder"),
        (["one", "empty"], "empty: no evaluation.json, so no evaluation"),
        (["one", "two", "-o", "two"], "-o two: holds an evaluation, whose page this would replace"),
        (["one", "two", "-o", "file"], "-o file: no folder can be made there (File exists). Name another."),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(stemwise, evaluations, arguments, message):
    (evaluations / "empty").mkdir()
    (evaluations / "file").touch()
    done = stemwise("compare", *arguments)
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
