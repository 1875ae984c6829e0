"""What may be compared, what is said of it, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

import synthetic
from stemwise.errors import UserError
from stemwise.evaluation import pairing, statistics, tables


def two(tmp_path, songs: int = 8, **other):
    first = synthetic.evaluation(tmp_path / "one", songs, "first", level=4.0, digest="1" * 32)
    return first, synthetic.evaluation(tmp_path / "two", songs, "second", level=5.0, **{"digest": "2" * 32} | other)


def test_songs_are_paired_by_name_whatever_their_order(tmp_path):
    first, second = two(tmp_path)
    turned = replace(second, songs=second.songs[::-1])
    found, expected = pairing.pair([first, turned]), pairing.pair([first, second])
    for stem in first.about.stems:
        np.testing.assert_array_equal(found.difference(1, stem), expected.difference(1, stem))
        np.testing.assert_array_equal(
            found.difference(1, stem), second.values("model", stem) - first.values("model", stem)
        )
    assert found.notes == ()


def test_what_only_one_has_is_left_out_and_said(tmp_path):
    first, second = two(tmp_path)
    fewer = replace(second, songs=second.songs[1:])
    found = pairing.pair([first, fewer])
    assert [song.name for song in found.evaluations[0].songs] == [song.name for song in second.songs[1:]]
    assert found.notes == ("first: 1 song (Song 0) not in the others, and left out.",)
    voice = synthetic.evaluation(tmp_path / "two", 8, "voice", stems=("vocals", "accompaniment"), digest="2" * 32)
    alike = zip(voice.songs, first.songs, strict=True)
    voice = replace(voice, songs=tuple(replace(song, medians=other.medians) for song, other in alike))
    paired = pairing.pair([first, voice])
    assert paired.stems == ("vocals",)
    assert any("accompaniment are not in the others" in note for note in paired.notes)


def test_other_circumstances_are_said(tmp_path):
    first, second = two(tmp_path, solver="torch", sample_rate=16000, split="valid")
    notes = " ".join(pairing.pair([first, second]).notes)
    for words in ("first: museval, second: torch", "first: 44100, second: 16000", "first: test, second: valid"):
        assert words in notes
    same = pairing.pair([first, replace(first, folder=tmp_path / "copy")])
    assert same.notes == ("Two of the evaluations are of the very same model file.",)


def test_unlike_things_are_refused(tmp_path):
    first, second = two(tmp_path)
    renamed = replace(second, songs=tuple(replace(song, name=f"Other {song.name}") for song in second.songs))
    with pytest.raises(UserError, match=r"no song is in all evaluations .*one: musdb18, test"):
        pairing.pair([first, renamed])
    piano = synthetic.evaluation(tmp_path / "two", 8, "second", stems=("piano", "rest"))
    with pytest.raises(UserError, match="no stem is in all evaluations"):
        pairing.pair([first, piano])
    longer = replace(second, songs=(replace(second.songs[0], seconds=207.0), *second.songs[1:]))
    with pytest.raises(UserError, match=r"Song 0: 200\.0 s in .*one, 207\.0 s in .*two"):
        pairing.pair([first, longer])
    older = replace(second, about=replace(second.about, solver="mir_eval"))
    with pytest.raises(UserError, match=r"two kinds .*one: solver=museval; .*two: solver=mir_eval.*BSSEval v3"):
        pairing.pair([first, older])


def test_other_files_under_the_same_name_are_known_by_the_mixtures_score(tmp_path):
    first, second = two(tmp_path)
    second.songs[3].medians["mixture"]["bass"]["SDR"] += 1
    with pytest.raises(UserError, match=r"Song 3: the unprocessed mixture has .* on bass"):
        pairing.pair([first, second])
    # At another rate the score differs by itself.
    assert pairing.pair([first, replace(second, about=replace(second.about, sample_rate=16000))])


def unscored(one, **marks: str):
    """The same without scores of the mixture, and with these marks in place of `same` for every file."""
    files = dict.fromkeys(("", *one.about.stems), "same") | marks
    kept = [replace(song, medians={"model": song.medians["model"]}, marks=files) for song in one.songs]
    return replace(one, songs=tuple(kept))


def test_other_files_are_known_without_a_score_of_the_mixture(tmp_path):
    first, second = (unscored(one) for one in two(tmp_path, songs=5))
    assert pairing.pair([first, second]).notes == ()
    with pytest.raises(UserError, match=r"Song 4: its files in .*one are not those in .*two.*baselines=\[mixture\]"):
        pairing.pair([first, unscored(second, bass="other")])
    # Whose stems are not compared does not matter.
    assert pairing.pair([first, unscored(second, piano="other")])
    # Copies in another format have other files: the score of the mixture says that they sound the same.
    other = replace(two(tmp_path, songs=5)[1], songs=tuple(replace(s, marks={"": "x"}) for s in second.songs))
    mixtures = zip(other.songs, two(tmp_path, songs=5)[0].songs, strict=True)
    heard = replace(other, songs=tuple(replace(s, medians=s.medians | o.medians) for s, o in mixtures))
    assert pairing.pair([two(tmp_path, songs=5)[0], heard]).notes == ()


def test_it_is_said_where_nothing_tells_files_apart(tmp_path):
    first, second = (unscored(one) for one in two(tmp_path, songs=5))
    old = replace(second, songs=tuple(replace(song, marks={}) for song in second.songs))
    [note] = pairing.pair([first, old]).notes
    assert note.startswith("Nothing says that first and second were given the same files of 5 songs (Song 0; Song 1")
    narrow = replace(unscored(second, bass="other"), about=replace(second.about, sample_rate=16000))
    assert any("Nothing says" in note for note in pairing.pair([first, narrow]).notes)
    same = replace(second, about=replace(second.about, sample_rate=16000))
    assert not any("Nothing says" in note for note in pairing.pair([first, same]).notes)


def test_averages_are_over_what_all_have(tmp_path):
    first, second = two(tmp_path, songs=3)
    del second.songs[1].medians["model"]["bass"]
    one, other = pairing.averages([first, second])
    expected = [np.mean([e.values("model", s)[1] for s in ("vocals", "drums", "other")]) for e in (first, second)]
    assert [one[1], other[1]] == pytest.approx(expected)
    assert one[0] == pytest.approx(first.average()[0])


def test_the_mean_of_a_song_is_over_the_stems_that_both_have(tmp_path):
    first, second = two(tmp_path, songs=2)
    second = replace(second, songs=(synthetic.without(second.songs[0], "bass"), second.songs[1]))
    paired = pairing.pair([first, second])
    expected = np.mean([paired.difference(1, stem)[0] for stem in ("vocals", "drums", "other")])
    assert paired.average_difference(1)[0] == pytest.approx(expected)
    assert math.isnan(paired.difference(1, "bass")[0])


def test_verdicts_need_songs_enough_and_an_interval_without_zero(tmp_path):
    first, second = two(tmp_path, songs=30)
    found = pairing.pair([first, second]).differences(1)
    assert [*found] == [*first.about.stems, pairing.OVERALL]
    mean = found[pairing.OVERALL][1]
    assert mean.mean.value == pytest.approx(1.0, abs=0.3)
    assert pairing.verdict(mean, "B", "A") == "B is better"
    assert pairing.verdict(pairing.pair([second, first]).differences(1)[pairing.OVERALL][1], "A", "B") == "B is better"
    few = pairing.pair([replace(one, songs=one.songs[: statistics.FEW - 1]) for one in (first, second)])
    assert pairing.verdict(few.differences(1)[pairing.OVERALL][1], "B", "A") == "too few songs to tell"
    same = pairing.pair([first, replace(first, folder=tmp_path)]).differences(1)["vocals"][1]
    assert (same.better, same.worse, same.equal) == (0, 0, 30)
    assert pairing.verdict(same, "B", "A") == "not told apart"


def test_models_of_the_same_name_get_names_of_their_own(tmp_path):
    one, two = (synthetic.evaluation(tmp_path / name / "evaluation-test", 1, "final") for name in ("x", "y"))
    other = synthetic.evaluation(tmp_path / "z", 1, "other")
    assert [e.about.model for e in pairing.named([one, two, other])] == ["final (1)", "final (2)", "other"]
    third = replace(two, folder=tmp_path / "elsewhere")
    assert [e.about.model for e in pairing.named([one, third])] == ["final (evaluation-test)", "final (elsewhere)"]


def test_the_csv_and_the_markdown_have_the_differences(tmp_path):
    first, second = two(tmp_path, songs=6)
    paired = pairing.pair([first, second])
    lines = [line.split(",") for line in tables.differences_csv(paired).splitlines()]
    assert lines[0] == ["song", "stem", "SDR first", "SDR second", "second - first"]
    assert len(lines) == 1 + 6 * 4
    for song, stem, before, after, apart in lines[1:]:
        place = [s.name for s in first.songs].index(song)
        assert float(before) == pytest.approx(first.values("model", stem)[place], abs=1e-5)
        assert float(apart) == pytest.approx(float(after) - float(before), abs=2e-5)
    text = tables.differences_markdown(paired)
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert f"{paired.differences(1)['bass'][1].mean.value:+.2f}" in next(ln for ln in text.splitlines() if "bass" in ln)
