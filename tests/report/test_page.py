"""The page: complete in itself, inert towards what songs are called, and written at once."""

import re

import pytest
from markupsafe import Markup

from stemwise.errors import UserError
from stemwise.report import page

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_text_is_text_whatever_it_says(tmp_path):
    body = Markup("<p>{}</p>").format(HOSTILE)
    page.write(tmp_path / "a.html", HOSTILE, [page.Section("a", HOSTILE, body)], lead=HOSTILE, facts={"song": HOSTILE})
    text = (tmp_path / "a.html").read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert text.count("&lt;script&gt;alert(1)") == 6  # title, heading, lead, fact, section, body


def test_a_page_names_nothing_outside_of_it(tmp_path):
    page.write(tmp_path / "a.html", "A", [page.Section("a", "A", Markup("")), page.Section("b", "B", Markup(""))])
    text = (tmp_path / "a.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not re.search(r"\b(on\w+|style)=", text)


def test_each_style_and_script_is_inside_once(tmp_path):
    sections = [page.Section(key, key, Markup(""), styles=["page.css"]) for key in "ab"]
    page.write(tmp_path / "a.html", "A", sections)
    assert (tmp_path / "a.html").read_text().count("<style>") == 1


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"a\.html: cannot be written \(No space left"):
        page.write(tmp_path / "a.html", "A", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_text() == "old"


def test_a_name_that_is_no_unicode_can_be_shown(tmp_path):
    page.write(tmp_path / "a.html", "caf\udce9", [])
    assert "caf?" in (tmp_path / "a.html").read_text()
