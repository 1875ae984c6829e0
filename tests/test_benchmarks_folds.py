"""The folds of MUSDB18: whole artists, every song held out once, the same in any order."""

import itertools
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from stemwise import launch
from stemwise.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SONGS = [
    *(f"Three - {song}" for song in "abc"),
    *(f"Two (Guest) - {song}" for song in "ab"),
    *(f"Band {number} - x" for number in range(9)),
]


@pytest.fixture
def folds(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from quality import folds

    return folds


@pytest.mark.parametrize(
    ("song", "expected"),
    [
        ("The Easton Ellises (Baumi) - SDRNR", "The Easton Ellises"),
        ("The Easton Ellises - Falcon 69", "The Easton Ellises"),
        ("Music Delta - 80s Rock", "Music Delta"),
        ("Side Effects Project - Sing - With Me", "Side Effects Project"),
    ],
)
def test_who_plays_a_song(folds, song, expected):
    assert folds.artist(song) == expected


def test_parts_are_of_whole_artists_and_of_about_the_same_size(folds):
    parts = folds.parts(SONGS, 4)
    assert sorted(itertools.chain(*parts)) == sorted(SONGS)
    assert sorted(map(len, parts)) == [3, 3, 4, 4]
    artists = [{folds.artist(song) for song in part} for part in parts]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(artists, 2))


def test_parts_do_not_depend_on_the_order_of_files(folds):
    shuffled = random.Random(0).sample(SONGS, len(SONGS))
    assert folds.parts(shuffled) == folds.parts(SONGS)


def test_each_song_is_held_out_once_and_trained_on_otherwise(folds):
    splits = [folds.split(SONGS, fold) for fold in range(folds.COUNT)]
    assert sorted(itertools.chain(*(valid for _, valid in splits))) == sorted(SONGS)
    assert all(sorted((*train, *valid)) == sorted(SONGS) for train, valid in splits)


@pytest.mark.parametrize("fold", [-1, 5])
def test_there_are_five_folds(folds, fold):
    with pytest.raises(UserError, match=rf"data\.dataset\.fold={fold}: there are 5 folds"):
        folds.split(SONGS, fold)


def test_the_excerpts_are_42_songs_in_folds_that_a_training_finds(folds, shared_data):
    launch.offer_trainer_arguments()
    held = []
    for fold in range(folds.COUNT):
        own = ("data.dataset._target_=quality.folds.find", f"+data.dataset.fold={fold}")
        with initialize_config_dir(launch.CONF, version_base="1.3"):
            cfg = compose("train", overrides=["experiment=musdb18", *own])
        found = instantiate(cfg.data.dataset)(shared_data / "musdb18-7s")
        train, valid, test = ([track.name for track in found[name].tracks] for name in ("train", "valid", "test"))
        assert (len(train) + len(valid), test) == (42, [])
        assert len(valid) in (8, 9)
        assert not set(map(folds.artist, train)) & set(map(folds.artist, valid))
        held += valid
    assert len(set(held)) == 42  # the two of the official test among them
