"""The player in a real browser: what is heard, what the keys and the mouse do, and what a screen reader is told."""

import base64
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

import songs
from stemwise.report.listening import Variant
from stemwise.report.sound import RATE

LONG = RATE // 10  # samples that are looked for
HERE = Path(__file__).parent
HOSTILE = '"></script><script>document.title="taken"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def waveforms():
    return songs.noise()


@pytest.fixture(scope="module")
def song(tmp_path_factory, waveforms) -> Path:
    path = tmp_path_factory.mktemp("page") / "A song # 100%: ü.html"
    return songs.write(path, songs.record(path, waveforms))


class Heard:
    """What reached the loudspeakers, sample by sample, and the song's waveforms to find it in."""

    def __init__(self, page, waveforms) -> None:
        frames, coded = page.evaluate("recorded()")
        blocks = np.frombuffer(base64.b64decode(coded), np.int16).reshape(-1, 128) / 8192
        self.samples = np.full(frames[-1] + 128, np.nan)  # the tap itself may miss some while it starts
        for frame, block in zip(frames, blocks, strict=True):
            self.samples[frame : frame + 128] = block
        self.known = songs.at_rate_of_sound(waveforms, 44100)

    def at(self, frame: int, after: int = 0) -> tuple[int, np.ndarray]:
        """Where in the song (in samples) what is heard from `frame` on comes from, and the gain of each variant.

        `after` is a place that it cannot be far behind: the search ends 2 s later.
        """
        part = self.samples[frame : frame + LONG]
        known = self.known[:, after : after + 2 * RATE + LONG] if after else self.known
        size = 1 << (known.shape[1] + LONG).bit_length()
        spectra = np.fft.rfft(known, size) * np.conj(np.fft.rfft(part, size))
        place = int(np.abs(np.fft.irfft(spectra, size)[:, : known.shape[1] - LONG]).max(0).argmax())
        gains = np.linalg.lstsq(known[:, place : place + LONG].T, part, rcond=None)[0]
        return after + place, gains


def seconds(tab) -> float:
    minutes, rest = tab.page.locator(".now").first.text_content().split(":")
    return 60 * int(minutes) + float(rest)


def plays(tab) -> None:
    expect(tab.page.locator(".now").first).to_have_text(re.compile(r"0:0(0\.[2-9]|[1-9])"))


def seek(tab, part: float) -> None:
    lane = tab.page.locator(".lane").first
    box = lane.bounding_box()
    lane.click(position={"x": part * box["width"], "y": 10})


def test_all_variants_are_heard_at_the_same_position(open_page, song, waveforms):
    tab = open_page(song, script=(HERE / "tap.js").read_text(), bypass_csp=True)
    seek(tab, 0.5)  # 8 s: the second chunk begins 2 s later
    tab.page.keyboard.press("Space")
    tab.page.wait_for_function(f"frame() > {0.4 * RATE}")
    # mixture, vocals, drums; vocals, drums: what is to be heard after each key
    expected = {
        "b": (0, 1, 1, 0, 0),
        "1": (0, 1, 0, 0, 0),
        "c": (0, 0, 0, 1, 0),
        "a": (1, 0, 0, 0, 0),
        "2": (0, 0, 0, 0, 1),  # a stem of the version that had been heard before the mixture
        "0": (0, 0, 0, 1, 1),
        "Shift+2": (0, 0, 0, 1, 0),
        "m": (0, 0, 0, 1, 1),
    }
    times = {}
    for key in expected:
        tab.page.keyboard.press(key)
        times[key] = tab.page.evaluate("now()") + RATE // 10
        tab.page.wait_for_function(f"frame() > {times[key] + 0.25 * RATE}")
    heard = Heard(tab.page, waveforms)
    begin = times["b"]
    place = heard.at(begin)[0]
    for key, frame in times.items():
        found, gains = heard.at(frame, place + frame - begin - RATE)
        assert abs((found - place) - (frame - begin)) < 0.02 * RATE, key
        np.testing.assert_allclose(gains, expected[key], atol=0.15, err_msg=key)
    # All of it is one stream: also where one chunk ends and the next begins, nothing is missing or twice.
    assert 8 * RATE < place < 10 * RATE < place + times["m"] - begin
    frames = range(begin, times["m"], RATE // 10)
    shifts = {heard.at(frame, place + frame - begin - RATE)[0] - frame for frame in frames}
    assert max(shifts) - min(shifts) <= 1


def test_switches_say_what_is_heard(open_page, song):
    tab = open_page(song)
    group = tab.page.get_by_role("group", name="vocals")
    solo, mute = group.get_by_role("button", name="Solo vocals"), group.get_by_role("button", name="Mute vocals")
    solo.click()
    assert solo.get_attribute("aria-pressed") == "true"
    assert tab.page.get_by_role("radio", name="Estimates").is_checked()  # of a mixture nothing can be left out
    assert tab.page.locator(".shown").text_content() == "vocals, Estimates"
    assert tab.page.locator(".spectrogram img").get_attribute("alt") == "Spectrogram of vocals, Estimates, up to 20 kHz"
    mute.click()
    assert (solo.get_attribute("aria-pressed"), mute.get_attribute("aria-pressed")) == ("false", "true")
    heard = [not re.search("unheard", lane.get_attribute("class")) for lane in tab.page.locator(".lane").all()]
    assert heard == [False, False, True]
    tab.page.get_by_role("radio", name="Truth").check(force=True)
    assert tab.page.locator(".shown").text_content() == "drums, Truth"
    tab.page.keyboard.press("1")
    tab.page.get_by_role("button", name="Solo drums").click(modifiers=["Shift"])
    assert [button.get_attribute("aria-pressed") for button in tab.page.locator(".solo").all()] == ["true", "true"]
    tab.page.get_by_role("link").first.focus()  # where keys are the browser's
    tab.page.keyboard.press("0")
    assert solo.get_attribute("aria-pressed") == "true"
    tab.page.evaluate("() => document.activeElement.blur()")
    tab.page.keyboard.press("0")
    assert solo.get_attribute("aria-pressed") == "false"
    assert mute.get_attribute("aria-pressed") == "false"


def test_the_position_is_chosen_by_mouse_and_keys(open_page, song):
    tab = open_page(song)
    seek(tab, 0.5)
    assert seconds(tab) == pytest.approx(8, abs=0.1)
    cursors = [cursor.bounding_box()["x"] for cursor in tab.page.locator(".cursor").all()]
    assert max(cursors) - min(cursors) < 0.5
    box = tab.page.locator(".spectrogram").bounding_box()
    tab.page.mouse.move(box["x"] + 10, box["y"] + 10)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 200, steps=4)
    assert seconds(tab) == pytest.approx(4, abs=0.1)
    tab.page.mouse.up()
    for key, expected in {"ArrowRight": 9, "Shift+ArrowLeft": 8, "ArrowLeft": 3, "Home": 0}.items():
        tab.page.keyboard.press(key)
        assert seconds(tab) == pytest.approx(expected, abs=0.15), key
    tab.page.get_by_role("slider", name="Position").focus()
    tab.page.keyboard.press("ArrowRight")
    assert seconds(tab) == pytest.approx(5, abs=0.1)
    assert tab.page.get_by_role("slider").get_attribute("aria-valuetext") == "5 s of 16 s"
    assert len([url for url in tab.requests if url.endswith(".js")]) == 0  # no sound before it is wanted


def test_it_plays_and_pauses_and_ends(open_page, song):
    tab = open_page(song)
    button = tab.page.get_by_role("button", name="Play")
    button.click()
    plays(tab)
    assert tab.page.get_by_role("button", name="Pause").is_visible()
    assert {url.rsplit("/", 1)[1] for url in tab.requests if url.endswith(".js")} <= {"0.js", "1.js"}
    tab.page.keyboard.press("Space")
    at = seconds(tab)
    time.sleep(0.2)
    assert seconds(tab) == at > 0
    seek(tab, 0.97)
    button.focus()
    tab.page.keyboard.press("Space")
    expect(tab.page.get_by_role("button", name="Play")).to_be_visible()
    assert seconds(tab) == 0


def test_one_song_plays_at_a_time(open_page, tmp_path, waveforms):
    players = [songs.record(tmp_path / "a.html", waveforms[..., :44100], title=title) for title in ("One", "Two")]
    tab = open_page(songs.write(tmp_path / "a.html", *players))
    first, second = tab.page.locator(".player").all()
    first.get_by_role("button", name="Play").click()
    second.get_by_role("button", name="Play").click()
    assert "playing" not in first.get_attribute("class")
    second.get_by_role("button", name="Solo drums").click()
    assert first.get_by_role("button", name="Solo drums").get_attribute("aria-pressed") == "false"


def test_a_screen_reader_hears_names(open_page, song):
    tab = open_page(song)
    said = tab.page.locator("body").aria_snapshot()
    for line in (
        'heading "A page" [level=1]',
        'region "Listening"',
        'article "A song"',
        'button "Play"',
        'group "Version that is heard"',
        'radio "Mixture" [checked]',
        'radio "Truth"',
        'img "Spectrogram of Mixture, up to 20 kHz"',
        'group "drums"',
        'button "Solo drums"',
        'button "Mute drums"',
        'slider "Position"',
    ):
        assert line in said


def test_names_of_songs_stems_and_systems_are_only_names(open_page, tmp_path, waveforms):
    variants = [Variant("mixture"), Variant("estimate", HOSTILE, HOSTILE), Variant("estimate", "vocals", HOSTILE)]
    path = tmp_path / "javascript:alert(1)%2f<b>&'.html"
    player = songs.record(path, waveforms[:3, :, :44100], title=HOSTILE, variants=variants)
    tab = open_page(songs.write(path, player, title=HOSTILE))
    tab.page.keyboard.press("1")
    tab.page.keyboard.press("Space")
    plays(tab)
    assert tab.page.title() == f"{HOSTILE} · stemwise"
    assert tab.page.locator(".stem-head h4 span").first.text_content() == HOSTILE
    assert tab.page.locator("img").count() == 1
    assert tab.page.locator("img").evaluate("image => image.naturalWidth") > 0


def test_a_name_that_is_no_unicode_is_only_a_name(open_page, tmp_path, waveforms):
    path = tmp_path / os.fsdecode(b"caf\xe9.html")
    tab = open_page(songs.write(path, songs.record(path, waveforms[..., :44100])))
    tab.page.keyboard.press("Space")
    plays(tab)


def test_sound_that_is_gone_is_said_to_be(open_page, tmp_path, waveforms):
    player = songs.record(tmp_path / "a.html", waveforms[..., :44100])
    (player.folder / "0.js").unlink()
    tab = open_page(songs.write(tmp_path / "a.html", player))
    tab.page.keyboard.press("Space")
    said = "Cannot play: its sound is not in a_files. Keep that folder beside the page."
    expect(tab.page.get_by_role("status")).to_have_text(said)
    assert tab.page.get_by_role("button", name="Play").is_visible()
    assert [problem for problem in tab.problems if "ERR_FILE_NOT_FOUND" not in problem] == []
    tab.problems.clear()


# The contrast of every text with what it stands on (WCAG 2.2, 1.4.3); of an icon with its button.
CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) =>
    e.checkVisibility() && !e.closest("script, .unseen, .skip, .kilohertz")
    && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page, song, scheme):
    tab = open_page(song, color_scheme=scheme)
    tab.page.keyboard.press("1")
    tab.page.keyboard.press("Shift+2")
    found = tab.page.evaluate(CONTRASTS)
    assert len(found) > 20
    assert [item for item in found if item[0] < 4.5] == []


def test_a_phone_shows_all_of_it(open_page, song):
    tab = open_page(song, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in tab.page.locator(".solo").all():
        button.tap()
        assert button.get_attribute("aria-pressed") == "true"
    lane = tab.page.locator(".lane").first
    lane.tap(position={"x": lane.bounding_box()["width"] / 2, "y": 5})
    assert seconds(tab) == pytest.approx(8, abs=0.2)


def test_whoever_uses_the_tab_key_sees_where_they_are(open_page, song):
    tab = open_page(song)
    seen = []
    for _ in range(9):
        tab.page.keyboard.press("Tab")
        seen.append(
            tab.page.evaluate(
                """() => { const e = document.activeElement.matches("[type=radio]")
                  ? document.activeElement.nextElementSibling : document.activeElement;
                  return [e.className || e.textContent, getComputedStyle(e).outlineStyle]; }"""
            )
        )
    assert [name for name, _ in seen[1:2]] == ["play"]
    assert [name for name, _ in seen[3:7]] == ["solo", "mute", "solo", "mute"]
    assert {style for _, style in seen[:8]} == {"solid"}
