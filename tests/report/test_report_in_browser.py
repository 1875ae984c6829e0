"""Both reports in a browser: no complaint, no request, no page wider than the screen, tables that sort."""

import pytest

import songs
import synthetic
from stemwise.evaluation import pairing
from stemwise.report import comparison, evaluation, page
from stemwise.report.listening import Variant

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    made = [
        synthetic.evaluation(folder / name, 30, name, level=4.0 + number, digest=str(number) * 32)
        for number, name in enumerate(("a model of a rather long name, and more", "second"))
    ]
    made[0].songs[0].medians["model"].pop("vocals")  # no score: it stays below in any order
    return evaluation.write(made[0]), comparison.write(pairing.pair(made), folder / "comparison"), made[0]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_a_desk(open_page, pages, which, scheme):
    for size in (PHONE, {"width": 1280, "height": 900}):
        tab = open_page(pages[which], viewport=size, color_scheme=scheme)
        wide = tab.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        inside = "e => e.getBoundingClientRect().right <= innerWidth + 1"
        assert tab.page.evaluate(f"[...document.querySelectorAll('section > *, figure')].every({inside})")
        shown = "[...document.querySelectorAll('svg.plot')].every(e => e.getBoundingClientRect().height > 40)"
        assert tab.page.evaluate(shown)
        assert tab.page.locator("svg.plot").count() >= 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_and_words_stand_out_from_their_ground(open_page, pages, scheme):
    tab = open_page(pages[0], color_scheme=scheme)
    contrast = """selector => {
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
                .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = light(getComputedStyle(document.body).backgroundColor);
        return Math.min(...[...document.querySelectorAll(selector)].map((element) => {
            const own = light(getComputedStyle(element).fill);
            return (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
        }));
    }"""
    assert tab.page.evaluate(contrast, ".plot text") >= 4.5
    assert tab.page.evaluate(contrast, ".plot .solid, .plot .points, .plot .point") >= 3


def test_a_table_sorts_by_numbers_and_keeps_what_has_none_below(open_page, pages):
    tab, made = open_page(pages[0]), pages[2]
    column = "[...document.querySelectorAll('#song-table tbody tr')].map(row => row.cells[%d].textContent.trim())"
    head = tab.page.locator("#song-table thead th").nth(4)
    assert head.inner_text() == "vocals"
    head.get_by_role("button").focus()
    tab.page.keyboard.press("Enter")
    for order in ("descending", "ascending"):
        assert head.get_attribute("aria-sort") == order
        shown = tab.page.evaluate(column % 4)
        assert shown[-1] == "–"
        numbers = [float(text.replace("−", "-")) for text in shown[:-1]]
        assert numbers == sorted(numbers, reverse=order == "descending")
        head.click()
    tab.page.locator("#song-table thead th").nth(0).click()
    names = tab.page.evaluate(column % 0)
    assert {*names} == {song.name for song in made.songs}
    assert names[:2] == ["Song 29", "Song 28"]
    assert tab.page.locator("#song-table [aria-sort]").count() == 1


def test_every_picture_and_table_has_a_name(open_page, pages):
    for path in pages[:2]:
        tab = open_page(path)
        tree = tab.page.locator("main").aria_snapshot()
        assert "img:" not in tree.replace('img "', "")
        assert tree.count('table "') == tab.page.locator("table").count()


def test_models_are_switched_between_on_the_page_of_a_comparison(open_page, pages, tmp_path):
    names = ["A: first", "B: second"]
    variants = [
        *(Variant("estimate", "vocals", name) for name in names),
        Variant("mixture"),
        Variant("truth", "vocals"),
    ]
    path = tmp_path / page.FILE
    player = songs.record(path, songs.noise(len(variants), seconds=2), "A song (B − A: +1.00 dB)", variants=variants)
    comparison.write(pairing.pair([pages[2], pages[2]]), tmp_path, [player])
    tab = open_page(path)
    versions = tab.page.locator("#listening").get_by_role("radio")
    assert versions.count() == 4
    tab.page.keyboard.press("b")
    assert tab.page.get_by_role("radio", name="B: second").is_checked()
