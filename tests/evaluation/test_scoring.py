import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from html_tables import Reader
from stemwise import index, model_file, signals
from stemwise.cache.fingerprints import fingerprint
from stemwise.catalogue import songs as songs_of
from stemwise.errors import UserError
from stemwise.evaluation import bss_eval, documents, results, scoring, solvers
from stemwise.evaluation.documents import METRICS
from stemwise.report import listening, page

STEMS = ["vocals", "accompaniment"]
SUMS = {"accompaniment": "rest"}


@pytest.fixture
def model_path(small_separator, tmp_path):
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    return tmp_path / "model.safetensors"


def two_songs(root: Path, silent: bool = False) -> list:
    """Two songs of three seconds; in the second, the voice is silent if asked."""
    random = np.random.default_rng(0)
    lines = ["vocals_path,accompaniment_path"]
    for number in range(2):
        waves = 0.1 * random.standard_normal((2, 24000))
        if silent and number == 1:
            waves[0] = 0
        for stem, wave in zip(STEMS, waves, strict=True):
            soundfile.write(root / f"{number} {stem}.wav", wave, 8000)
        lines.append(",".join(f"{number} {stem}.wav" for stem in STEMS))
    (root / "test.csv").write_text("\n".join(lines))
    checked = index.check(index.read(root / "test.csv", root), STEMS, SUMS)
    return songs_of(checked, STEMS, SUMS)


def test_scores_are_musevals_own(small_separator, tmp_path):
    import museval

    generator = torch.Generator().manual_seed(0)
    references = 0.1 * torch.randn(2, 1, 24000, generator=generator)
    estimates = references + 0.05 * torch.randn(2, 1, 24000, generator=generator)
    document = solvers.score(references, estimates, STEMS, 8000)
    SDR, ISR, SIR, SAR = museval.evaluate(
        references.transpose(1, 2).numpy(), estimates.transpose(1, 2).numpy(), win=8000, hop=8000
    )
    assert [target["name"] for target in document["targets"]] == STEMS
    for row, target in enumerate(document["targets"]):
        for name, expected in (("SDR", SDR), ("ISR", ISR), ("SIR", SIR), ("SAR", SAR)):
            found = [frame["metrics"][name] for frame in target["frames"]]
            np.testing.assert_allclose(found, expected[row], atol=1e-4)
    frames = document["targets"][0]["frames"]
    assert [(frame["time"], frame["duration"]) for frame in frames] == [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)]


def test_the_documents_are_read_by_museval(model_path, tmp_path):
    import museval

    scoring.evaluate(model_path, two_songs(tmp_path), tmp_path / "scores", ["mixture"], workers=0)
    table = museval.aggregate.json2df(json.loads((tmp_path / "scores/model/0 vocals.json").read_text()), "song")
    assert set(table["target"]) == set(STEMS)


def test_a_second_run_scores_nothing_again(model_path, small_separator, tmp_path, monkeypatch):
    songs = two_songs(tmp_path)
    first = scoring.evaluate(model_path, songs, tmp_path / "scores", ["mixture", "oracle"], workers=0)
    called = []
    score = solvers.score
    monkeypatch.setattr(solvers, "score", lambda *a: called.append(1) or score(*a))
    second = scoring.evaluate(model_path, songs, tmp_path / "scores", ["mixture", "oracle"], workers=0)
    assert second.values == first.values
    assert not called
    # Another model is scored again, the baselines are not.
    small_separator.unets[0].last.bias.data += 1
    model_file.save(small_separator, model_path, {})
    scoring.evaluate(model_path, songs, tmp_path / "scores", ["mixture", "oracle"], workers=0)
    assert len(called) == 2
    # A document that was cut off while it was written is as none.
    (tmp_path / "scores/mixture/0 vocals.json").write_text('{"targets": [')
    scoring.evaluate(model_path, songs, tmp_path / "scores", ["mixture", "oracle"], workers=0)
    assert len(called) == 3


def test_another_overlap_is_another_model_and_the_same_oracle(model_path, small_separator, tmp_path, monkeypatch):
    songs, folder, called = two_songs(tmp_path), tmp_path / "scores", []
    score = solvers.score
    monkeypatch.setattr(solvers, "score", lambda *a: called.append(1) or score(*a))

    def scored(**options):
        called.clear()
        return scoring.evaluate(model_path, songs, folder, ["mixture", "oracle"], workers=0, **options).values["model"]

    without = scored()
    assert len(called) == 6
    assert scored(overlap=0.0) == without
    assert not called
    half = scored(overlap=0.5)
    assert len(called) == 2
    assert half != without
    small_separator.overlap = 0.5
    model_file.save(small_separator, model_path, {})
    assert scored() == half
    assert len(called) == 2


def test_songs_in_parallel_score_the_same(model_path, tmp_path):
    songs = two_songs(tmp_path)
    alone = scoring.evaluate(model_path, songs, tmp_path / "one", [], workers=0)
    together = scoring.evaluate(model_path, songs, tmp_path / "two", [], workers=2)
    assert alone.values == together.values


@pytest.mark.parametrize("workers", [1, 4])
def test_a_song_alone_has_all_threads_of_this_process(model_path, tmp_path, monkeypatch, workers):
    """Not those of a forked one, which would wait for threads that were left behind."""
    here = []
    monkeypatch.setattr(scoring, "_start_worker", lambda *_: pytest.fail("was forked"))
    monkeypatch.setattr(bss_eval, "evaluate", counted(bss_eval.evaluate, here))
    scoring.evaluate(model_path, two_songs(tmp_path)[:1], tmp_path / "one", [], workers=workers, solver="torch")
    assert len(here) == 1


def counted(function, calls):
    def wrapped(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return wrapped


@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_a_song_in_parts_scores_the_same(model_path, tmp_path, solver):
    songs = two_songs(tmp_path)
    baselines = ["mixture", "oracle"]
    alone = scoring.evaluate(model_path, songs, tmp_path / "one", baselines, workers=1, solver=solver)
    assert scoring._jobs(songs, ("model", *baselines), 3)[0][1] == ("model",)
    parts = scoring.evaluate(model_path, songs, tmp_path / "two", baselines, workers=3, solver=solver)
    assert parts.values == alone.values


def test_long_songs_come_first_and_results_in_order(model_path, tmp_path):
    songs = two_songs(tmp_path)
    later = [replace(songs[0], seconds=1.0), replace(songs[1], seconds=2.0)]
    assert scoring._jobs(later, ("model",), 1) == [(1, ("model",)), (0, ("model",))]
    first = scoring.evaluate(model_path, songs, tmp_path / "one", [], workers=0)
    second = scoring.evaluate(model_path, later, tmp_path / "two", [], workers=2)
    assert first.values == second.values


def test_the_solvers_agree_and_their_documents_name_them(model_path, tmp_path):
    songs, v4 = two_songs(tmp_path), (solvers.MUSEVAL, solvers.TORCH)
    found = {
        solver: scoring.evaluate(model_path, songs, tmp_path / solver, ["mixture"], workers=0, solver=solver)
        for solver in v4
    }
    for stem in STEMS:
        for metric in ("SDR", "ISR", "SIR"):  # the mixture has no artifacts: its SAR is that of rounding
            for variant in ("model", "mixture"):
                expected = found["museval"].values[variant][stem][metric]
                assert found["torch"].values[variant][stem][metric] == pytest.approx(expected, abs=1e-3)
    for solver in v4:
        document = json.loads((tmp_path / solver / "model/0 vocals.json").read_text())
        assert document["solver"] == solver
        assert ("museval_version" in document) == (solver == "museval")
    frames = [
        [frame | {"metrics": [*frame["metrics"]]} for frame in document["targets"][0]["frames"]]
        for document in (json.loads((tmp_path / s / "model/0 vocals.json").read_text()) for s in v4)
    ]
    assert frames[0] == frames[1]


def test_one_solvers_scores_are_not_taken_for_the_others(model_path, tmp_path, monkeypatch):
    songs, called = two_songs(tmp_path), []
    score = solvers.score
    monkeypatch.setattr(solvers, "score", lambda *a: called.append(a[-1]) or score(*a))
    for solver in ("museval", "torch", "torch"):
        scoring.evaluate(model_path, songs, tmp_path / "scores", [], workers=0, solver=solver)
    assert called == ["museval"] * 2 + ["torch"] * 2


def test_museval_scores_from_before_there_was_a_solver_are_still_good(model_path, tmp_path, monkeypatch):
    songs = two_songs(tmp_path)
    first = scoring.evaluate(model_path, songs, tmp_path / "scores", [], workers=0)
    settings, signals = model_file.load(model_path).spectrogram, (songs[0].mixture, *songs[0].stems)
    files = [[(fingerprint(cell.path), cell.stream, cell.channel) for cell in cells] for cells in signals]
    digest = hashlib.blake2b(model_path.read_bytes(), digest_size=16).hexdigest()
    parts = json.dumps([digest, settings.channels, STEMS, files])
    path = tmp_path / "scores/model/0 vocals.json"
    document = json.loads(path.read_text())
    assert document.pop("solver") == "museval"
    assert document["stemwise"] == hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    path.write_text(json.dumps(document))
    monkeypatch.setattr(solvers, "score", None)
    assert scoring.evaluate(model_path, songs, tmp_path / "scores", [], workers=0).values == first.values


def test_reading_ahead_of_a_device_scores_the_same(model_path, tmp_path):
    songs = two_songs(tmp_path)
    results = []
    for place, run in (("one", scoring._read_ahead), ("two", scoring._in_processes)):
        order = scoring._jobs(songs, ("model",), 1)
        jobs = scoring._Songs(model_path, songs, tmp_path / place, order, "torch", torch.device("cpu"))
        results.append([(number, found["model"]["targets"]) for number, found in run(jobs, 0)])
    assert results[0] == results[1]
    assert len(results[0]) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_scores_as_the_processor(model_path, tmp_path):
    songs = two_songs(tmp_path)
    found = [
        scoring.evaluate(model_path, songs, tmp_path / device, ["oracle"], solver="torch", device=device).values
        for device in ("cpu", "cuda")
    ]
    for variant in ("model", "oracle"):
        for stem in STEMS:
            for metric in METRICS:
                assert found[1][variant][stem][metric] == pytest.approx(found[0][variant][stem][metric], abs=1e-2)


def test_silent_references_are_named_and_not_scored(model_path, tmp_path):
    scores = scoring.evaluate(model_path, two_songs(tmp_path, silent=True), tmp_path / "scores", ["oracle"], workers=0)
    assert list(scores.silent.values()) == [["vocals"]]
    assert len(scores.values["model"]["vocals"]["SDR"]) == 1
    assert len(scores.values["model"]["accompaniment"]["SDR"]) == 2


def test_a_model_remembers_what_its_stems_are_sums_of(stemwise, train, songs, tmp_path):
    assert train("+stem_sums.rhythm=[drums,bass]", "stem_names=[vocals,rhythm]", "trainer.max_steps=1").code == 0
    keys = ["data=csv", f"data.root={songs}", f"data.test={songs}/test.csv", "baselines=[]", "workers=0"]
    for checkpoint in ("model.safetensors", "checkpoints/last.ckpt"):
        done = stemwise("evaluate", f"checkpoint=run/{checkpoint}", *keys)
        assert done.code == 0, done.output
        assert "| rhythm | model |" in done.output


def test_the_command_prints_and_writes_the_table(stemwise, train, songs, tmp_path):
    assert train("stems=2", "trainer.max_steps=1").code == 0
    keys = ["data=csv", f"data.root={songs}", f"data.test={songs}/test.csv", "data.num_workers=0", "workers=0"]
    done = stemwise("evaluate", "checkpoint=run/model.safetensors", *keys)
    assert done.code == 0, done.output
    folder = tmp_path / "run/evaluation-test"
    files = {"scores.md", "scores.json", "scores.csv", "evaluation.json", "report.html", "report_files"}
    assert {path.name for path in folder.iterdir()} == {"model", "mixture", "oracle"} | files
    assert "| accompaniment | oracle |" in done.output
    assert "museval, dB, median" in done.output
    faster = stemwise("evaluate", "checkpoint=run/model.safetensors", *keys, "solver=torch", "device=cpu")
    assert faster.code == 0, faster.output
    assert "BSSEval v4 (solver=torch), dB" in faster.output
    assert (tmp_path / "run/evaluation-test-torch/scores.json").exists()
    assert_they_compare_as_equal(stemwise, "run/evaluation-test", "run/evaluation-test-torch")
    other = ("solver=torch", "device=cpu", "baselines=[]", "listening_songs=1")
    assert stemwise("evaluate", "checkpoint=run/model.safetensors", *keys, *other, "overlap=0.5").code == 0
    overlapping = results.read(tmp_path / "run/evaluation-test-torch-overlap0.5")
    assert (overlapping.about.model, overlapping.about.overlap) == ("run, overlap 0.5", 0.5)
    wrong = stemwise("evaluate", "checkpoint=run/model.safetensors", *keys, "overlap=1")
    assert (wrong.code, "overlap=1: not a share of the window" in wrong.output) == (2, True)
    assert_a_report_of_one_song(folder)
    table = (folder / "scores.md").read_text().partition("\n\nMedian over")[0]
    assert table in done.output
    assert stemwise("evaluate", "checkpoint=run/checkpoints/last.ckpt", *keys, "output=again").code == 0
    # A string is a list of one; no baselines are none.
    assert stemwise("evaluate", "checkpoint=run/model.safetensors", *keys, "output=one", "baselines=mixture").code == 0
    assert list(json.loads((tmp_path / "one/scores.json").read_text())) == ["model", "mixture"]
    assert stemwise("evaluate", "checkpoint=run/model.safetensors", *keys, "output=none", "baselines=[]").code == 0
    assert list(json.loads((tmp_path / "none/scores.json").read_text())) == ["model"]


def assert_a_report_of_one_song(folder):
    """The page, the CSV and the JSON say what the song's own documents say."""
    found = results.read(folder)
    [song] = found.songs
    for variant in ("model", "mixture", "oracle"):
        document = json.loads((folder / variant / song.file).read_text())
        assert song.medians[variant] == documents.medians(document)
    share = json.loads((folder / "model" / song.file).read_text())["above_band"]
    assert song.above == share
    assert all(0 <= value < 0.01 for value in share.values())  # tones below 2 kHz, of which the model sees all
    shown = Reader((folder / "report.html").read_text()).tables["headline"]
    assert shown[1][0] == ["run"]
    assert [cell[0] for cell in shown[1][1:3]] == [
        f"{song.medians['model'][stem]['SDR']:.2f}".replace("-", "−") for stem in found.about.stems
    ]
    assert len((folder / "scores.csv").read_text().splitlines()) == 1 + 3 * 2
    assert len(list((folder / "report_files").iterdir())) == 1


def assert_they_compare_as_equal(stemwise, one, two):
    """Two solvers agree on one model; its song is there to be heard."""
    done = stemwise("compare", one, two, "-o", "comparison")
    assert done.code == 0, done.output
    assert "computed by (run (evaluation-test): museval, run (evaluation-test-torch): torch)" in done.output
    assert "the very same model file" in done.output
    assert "| vocals | +0.00 | – | 0 | 0 | 1 | too few songs to tell |" in done.output.replace("-0.00", "+0.00")
    assert len(list(Path("comparison/report_files").iterdir())) == 1


def test_the_energy_above_the_band_is_that_of_the_tones_there(small_separator):
    time = torch.arange(8000) / 8000
    low, high = (torch.sin(2 * math.pi * pitch * time) for pitch in (500.0, 3000.0))  # F is at 2 kHz
    found = scoring.above_band(torch.stack([low + 0.5 * high, low])[:, None], small_separator)
    assert found["vocals"] == pytest.approx(0.2, abs=1e-3)
    assert found["accompaniment"] < 1e-5  # the tone begins and ends at once
    assert scoring.above_band(torch.zeros(2, 1, 8000), small_separator) == {}


def test_scores_from_before_the_energy_above_the_band_are_kept_and_get_it(model_path, tmp_path, monkeypatch):
    songs = two_songs(tmp_path)
    scoring.evaluate(model_path, songs, tmp_path / "scores", [], workers=0)
    path = tmp_path / "scores/model/0 vocals.json"
    document = json.loads(path.read_text())
    whole = dict(document)
    del document["above_band"]
    path.write_text(json.dumps(document))
    monkeypatch.setattr(solvers, "score", None)
    first, second = scoring.evaluate(model_path, songs, tmp_path / "scores", [], workers=0).songs
    assert first.above.keys() == second.above.keys() == {*STEMS}
    assert json.loads(path.read_text()) == whole
    monkeypatch.setattr(signals, "stack", None)  # and the next time nothing is read
    assert scoring.evaluate(model_path, songs, tmp_path / "scores", [], workers=0).songs[0] == first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_that_diverged_is_said_to_have_no_numbers(small_separator, tmp_path, workers):
    with torch.no_grad():
        next(small_separator.unets[1].parameters()).fill_(math.nan)
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    with pytest.raises(UserError, match=r"[01] vocals: the model's \w+ has \d+ NaN or infinite samples of 24000"):
        scoring.evaluate(tmp_path / "model.safetensors", two_songs(tmp_path), tmp_path / "scores", [], workers=workers)
    assert not list((tmp_path / "scores").glob("model/*"))


def test_scores_that_cannot_be_written_name_the_song_and_the_folder(model_path, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/model").touch()
    with pytest.raises(UserError, match=r"0 vocals: .*scores/model: the scores cannot be written"):
        scoring.evaluate(model_path, two_songs(tmp_path), tmp_path / "scores", [], workers=0)


def keys_of(root: Path) -> list[str]:
    """What `stemwise evaluate` is given to score the model on the two songs there."""
    two_songs(root)
    return ["checkpoint=model.safetensors", "data=csv", f"data.root={root}", "data.test=test.csv", "workers=0"]


def test_whoever_ends_it_after_scoring_loses_nothing(stemwise, model_path, tmp_path, monkeypatch):
    """`evaluation.json` is there when all tables are, and a rerun makes what is missing."""
    keys, folder, replace_file = keys_of(tmp_path), tmp_path / "evaluation-test", page.replace

    def broken(path, text):
        if path.name == "scores.csv":
            raise UserError("no room")
        replace_file(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(page, "replace", broken)
        assert stemwise("evaluate", *keys, "solver=torch", "output=evaluation-test").code == 2
    assert not (folder / "evaluation.json").exists()
    monkeypatch.setattr(solvers, "score", None)  # what is scored is kept

    finish, finished = listening.Recording.finish, []

    def interrupted(self):
        if finished:
            raise KeyboardInterrupt
        finished.append(finish(self))
        return finished[0]

    with monkeypatch.context() as patch:
        patch.setattr(listening.Recording, "finish", interrupted)
        done = stemwise("evaluate", *keys, "solver=torch", "output=evaluation-test")
    assert done.code == 130, done.output
    assert {"evaluation.json", "scores.csv", "scores.json", "scores.md"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "report_files").exists()  # the song that was complete is gone with the other
    assert stemwise("evaluate", *keys, "solver=torch", "output=evaluation-test").code == 0
    assert len(list((folder / "report_files").iterdir())) == 2


def test_songs_over_time_need_none_to_hear(stemwise, model_path, tmp_path):
    done = stemwise("evaluate", *keys_of(tmp_path), "solver=torch", "output=out", "listening_songs=0", "baselines=[]")
    assert done.code == 0, done.output
    text = (tmp_path / "out/report.html").read_text()
    assert "SDR along 0 vocals" in text
    assert "SDR along 1 vocals" in text
    assert 'id="listening"' not in text


def test_a_songs_name_is_printed_without_control_characters(stemwise, model_path, tmp_path):
    two_songs(tmp_path, silent=True)
    lines = (tmp_path / "test.csv").read_text().splitlines()
    for stem in STEMS:
        (tmp_path / f"1 {stem}.wav").rename(tmp_path / f"1 \x1b[31m {stem}.wav")
    (tmp_path / "test.csv").write_text("\n".join([*lines[:2], lines[2].replace("1 ", "1 \x1b[31m ")]))
    keys = ["checkpoint=model.safetensors", "data=csv", f"data.root={tmp_path}", "data.test=test.csv", "workers=0"]
    done = stemwise("evaluate", *keys, "solver=torch", "output=out", "listening_songs=0")
    assert done.code == 0, done.output
    assert "1 song with silent stems, which have no score there: 1 \\x1b[31m vocals: vocals" in done.output
    assert "\x1b[31m" not in done.output


SLOW = """
import sys, time
from stemwise import cli
from stemwise.evaluation import solvers
solvers.score = lambda *a: (print("scoring", flush=True), time.sleep(60))
sys.argv = ["stemwise", *sys.argv[2:]]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("group", [True, False])
def test_ctrl_c_ends_the_workers_at_once_with_one_line(model_path, tmp_path, group):
    two_songs(tmp_path)
    keys = ["checkpoint=model.safetensors", "data=csv", f"data.root={tmp_path}", "data.test=test.csv", "workers=2"]
    command = [sys.executable, "-c", SLOW, "", "evaluate", *keys]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as process:
        while (line := process.stdout.readline()).strip() != "scoring":
            assert line, process.stderr.read()
        # A terminal's Ctrl-C reaches the workers too, `kill -INT` only the command.
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        start = time.monotonic()
        _, errors = process.communicate(timeout=50)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("Interrupted.")
    assert "Traceback" not in errors
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["checkpoint=none.safetensors"], "no such model file"),
        (["checkpoint=model.safetensors", "split=all"], "split=all"),
        (["checkpoint=model.safetensors", "baselines=[magic]"], "baselines=magic"),
        (["checkpoint=model.safetensors", "baselines=magic"], "baselines=magic"),
        (["checkpoint=null"], "checkpoint=null"),
        (["checkpoint=model.safetensors", "solver=foo"], "solver=foo: not one of museval, torch"),
        (["checkpoint=model.safetensors", "device=cuda"], "device=cuda: museval computes on the processor"),
        (["checkpoint=model.safetensors", "solver=torch", "device=tpu"], "device=tpu: this machine has no such"),
        (["checkpoint=model.safetensors", "solver=torch", "device=cuda:99"], "Choose one of auto, cpu"),
        (["checkpoint=model.safetensors", "workers=-1"], "workers=-1"),
        (["checkpoint=model.safetensors", "workers=abc"], "workers=abc"),
        (["checkpoint=model.safetensors", "listening_songs=-1"], "listening_songs=-1"),
        (["checkpoint=model.safetensors", "output=/proc/x"], "/proc/x: the scores cannot be written"),
        (["checkpoint=model.safetensors", "output=model.safetensors"], "the scores cannot be written"),
        ([], "checkpoint"),
        (["checkpoint=model.safetensors", "unknown=1"], "unknown"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(stemwise, model_path, songs, keys, message):
    data = ["data=csv", f"data.root={songs}", f"data.test={songs}/test.csv"]
    done = stemwise("evaluate", *data, *keys)
    assert done.code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output
