"""GNSDR, GSIR and GSAR, as papers on MIR-1K define them, with mir_eval's own scores."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from mir_eval.separation import bss_eval_sources

from stemwise import model_file
from stemwise.errors import UserError
from stemwise.evaluation import global_scores, solvers
from stemwise.evaluation.results import About, Evaluation, Scored

STEMS = ("vocals", "accompaniment")


def clip(name: str, seconds: float, sdr: float, mixture: float) -> Scored:
    def scores(value: float) -> dict:
        return {"SDR": value, "SIR": 2 * value, "SAR": 3 * value, "ISR": math.nan}

    medians = {"model": {"vocals": scores(sdr)}, "mixture": {"vocals": scores(mixture)}}
    return Scored(name, seconds, medians, {}, file=f"{name}.json", mixture=(), stems={})


def of(*clips: Scored) -> Evaluation:
    about = About("m", "m", "", "mir1k", "test", "mir_eval", STEMS, 16000, 1, 8000.0, "0")
    return Evaluation(Path(), about, clips)


def test_clips_weigh_by_their_length_and_gain_over_the_mixture():
    found = global_scores.of(of(clip("one", 6, 8, 1), clip("two", 2, 4, -1)), "vocals")
    assert found.gnsdr == pytest.approx((6 * 7 + 2 * 5) / 8)
    assert found.gsir == pytest.approx(2 * (6 * 8 + 2 * 4) / 8)
    assert found.gsar == pytest.approx(3 * (6 * 8 + 2 * 4) / 8)
    assert found.clips == 2


def test_a_silent_clip_takes_no_part():
    found = global_scores.of(of(clip("one", 6, 8, 1), clip("two", 2, math.nan, math.nan)), "vocals")
    assert (found.gnsdr, found.clips) == (7, 1)
    assert math.isnan(global_scores.of(of(clip("one", 6, 8, 1)), "accompaniment").gnsdr)


def test_scores_are_mir_evals_own():
    generator = torch.Generator().manual_seed(0)
    references = 0.1 * torch.randn(2, 1, 8000, generator=generator)
    estimates = references + 0.3 * references.flip(0) + 0.05 * torch.randn(2, 1, 8000, generator=generator)
    document = solvers.score(references, estimates, STEMS, 8000, solvers.MIR_EVAL)
    expected = bss_eval_sources(references[:, 0].double().numpy(), estimates[:, 0].double().numpy(), False)
    for number, target in enumerate(document["targets"]):
        (frame,) = target["frames"]
        assert target["name"] == STEMS[number]
        assert frame["duration"] == 1.0
        assert frame["metrics"] == {
            "SDR": expected[0][number],
            "SIR": expected[1][number],
            "SAR": expected[2][number],
            "ISR": None,
        }


def test_a_silent_stem_has_no_score():
    references = torch.randn(2, 1, 4000)
    references[1] = 0
    found = solvers.score(references, torch.randn(2, 1, 4000), STEMS, 8000, solvers.MIR_EVAL)
    assert [target["name"] for target in found["targets"]] == ["vocals"]


def test_evaluate_prints_them_of_a_folder_of_clips(stemwise, small_separator, tmp_path):
    """As MIR-1K lies on the disk: voice right, accompaniment left; only singers who were not trained on."""
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    random = np.random.default_rng(0)
    for name, seconds in (("bug_1_01", 1), ("bug_1_02", 2), ("amy_1_01", 1)):
        wave = 0.1 * random.standard_normal((8000 * seconds, 2))
        soundfile.write(tmp_path / f"{name}.wav", wave, 8000)
    keys = ["data=mir1k", f"data.root={tmp_path}", "solver=mir_eval", "output=scores", "baselines=[mixture]"]
    found = stemwise("evaluate", f"checkpoint={tmp_path}/model.safetensors", *keys)
    assert found.code == 0, found.output
    assert "| stem | what | GNSDR | GSIR | GSAR | clips |" in found.output
    rows = [line for line in found.output.splitlines() if line.startswith("| vocals | mixture | 0.00 |")]
    assert len(rows) == 1
    assert rows[0].endswith("| 2 |")
    documents = sorted(Path("scores/model").glob("*.json"))
    assert [path.stem for path in documents] == ["bug_1_01", "bug_1_02"]
    assert "GNSDR" in Path("scores/scores.md").read_text()
    sdr = [json.loads(path.read_text())["targets"][0]["frames"][0]["metrics"]["SDR"] for path in documents]
    mixture = [
        json.loads(p.read_text())["targets"][0]["frames"][0]["metrics"]["SDR"]
        for p in sorted(Path("scores/mixture").glob("*.json"))
    ]
    gain = ((sdr[0] - mixture[0]) + 2 * (sdr[1] - mixture[1])) / 3
    assert f"| vocals | model | {gain:.2f} |" in found.output


def test_stereo_models_are_refused():
    with pytest.raises(UserError, match="scores mono models, this one has 2 channels"):
        solvers.check(solvers.MIR_EVAL, 2)
