from functools import partial

import pytest
import torch

from stemwise import training
from stemwise.errors import UserError
from stemwise.losses import l1
from stemwise.training import SeparatorTraining


@pytest.fixture
def module(small_separator):
    return SeparatorTraining(
        small_separator,
        partial(torch.optim.Adam, lr=1e-4),
        partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=0),
    )


def test_the_loss_is_spleeters_mean_per_stem():
    estimates, stems = torch.rand(2, 2, 3, 1, 5, 6)
    losses = l1(estimates, stems)
    expected = [(estimates[:, s] - stems[:, s]).abs().mean() for s in range(3)]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_a_step_lowers_the_loss_of_every_stem(module):
    """One batch, learned by heart: each stem's network gets a gradient, and only its own stem's."""
    torch.manual_seed(0)
    batch = {"mixture": torch.rand(2, 1, 16, 64)}
    batch["stems"] = torch.stack([0.9 * batch["mixture"], 0.1 * batch["mixture"]], dim=1)
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    with torch.no_grad():
        before = l1(module.separator(batch["mixture"]), batch["stems"])
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    with torch.no_grad():
        after = l1(module.separator(batch["mixture"]), batch["stems"])
    assert (after < before).all()


def test_a_stems_loss_moves_only_its_own_network(module):
    losses = l1(module.separator(torch.rand(1, 1, 16, 64)), torch.rand(1, 2, 1, 16, 64))
    losses[0].backward()
    first, second = module.separator.unets
    assert all(p.grad is not None for p in first.parameters())
    assert not any(p.grad.any() for p in second.parameters())


def test_it_logs_total_and_stems(module):
    module.training_step({"mixture": torch.rand(1, 1, 16, 64), "stems": torch.rand(1, 2, 1, 16, 64)}, 0)
    assert not any(value.requires_grad for value in module.numbers.values())  # which would keep the step's memory
    logged = {name: value.item() for name, value in module.numbers.items()}
    assert set(logged) == {"train/loss", "train/vocals", "train/accompaniment"}
    assert logged["train/loss"] == pytest.approx(logged["train/vocals"] + logged["train/accompaniment"])


def test_sdr_is_the_mean_over_songs_through_the_inference_path(module):
    from stemwise import metrics

    logged = {}
    module.log = lambda name, value, **_: logged.setdefault(name, float(value))
    module.all_gather = lambda value: value
    module.eval()
    songs = [{"mixture": torch.randn(1, n), "stems": torch.randn(2, 1, n)} for n in (3000, 4000)]
    songs[1]["stems"][1] = 0  # a silent reference counts for no song
    module.on_validation_epoch_start()
    for number, song in enumerate(songs):
        module.validation_step(song, number, training.SONGS)
    module.on_validation_epoch_end()
    scores = [metrics.usdr(song["stems"], module.separator.separate(song["mixture"])) for song in songs]
    assert logged["sdr/vocals"] == pytest.approx(float(scores[0][0] + scores[1][0]) / 2, abs=1e-4)
    assert logged["sdr/accompaniment"] == pytest.approx(float(scores[0][1]), abs=1e-4)
    assert logged["sdr/mean"] == pytest.approx((logged["sdr/vocals"] + logged["sdr/accompaniment"]) / 2, abs=1e-4)


def test_improvement_is_over_the_mixture_and_the_oracle_is_asked_once(module, monkeypatch):
    from stemwise import metrics

    logged = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.all_gather = lambda value: value
    module.eval()
    asked, oracle = [], type(module.separator).oracle
    monkeypatch.setattr(type(module.separator), "oracle", lambda *given: asked.append(1) or oracle(*given))
    songs = [torch.randn(2, 1, 4000) for _ in range(2)]
    for _ in range(2):
        module.on_validation_epoch_start()
        for number, stems in enumerate(songs):
            module.validation_step({"mixture": stems.sum(0), "stems": stems}, number, training.SONGS)
        module.on_validation_epoch_end()
    nothing = torch.stack([metrics.usdr(s, s.sum(0).expand_as(s)) for s in songs]).mean(0)
    oracles = torch.stack([metrics.usdr(s, oracle(module.separator, s.sum(0), s)) for s in songs]).mean(0)
    for number, stem in enumerate(module.separator.stems):
        gained = logged[f"sdr/{stem}"] - float(nothing[number])
        assert logged[f"sdr/improvement/{stem}"] == pytest.approx(gained, abs=1e-4)
        assert logged[f"sdr/oracle/{stem}"] == pytest.approx(float(oracles[number]), abs=1e-4)
    assert logged["sdr/oracle/mean"] == pytest.approx(float(oracles.mean()), abs=1e-4)
    assert logged["sdr/oracle/mean"] > logged["sdr/mean"]
    assert len(asked) == len(songs)


def test_a_song_hands_on_the_middle_of_its_estimates(module):
    module.eval()
    module.clip = 1000
    song = {"mixture": torch.randn(1, 4001), "stems": torch.randn(2, 1, 4001)}
    module.on_validation_epoch_start()
    found = module.validation_step(song, 0, training.SONGS)
    expected = module.separator.separate(song["mixture"])
    torch.testing.assert_close(found["clip"], expected[..., 1500:2500], rtol=0, atol=0)
    assert found["clip"].untyped_storage().nbytes() < expected.untyped_storage().nbytes()
    assert module.validation_step({**song, "counted": False}, 0, training.SONGS) is None
    assert training.middle(song["mixture"], 9999).shape == (1, 4001)


def test_a_checkpoint_is_a_model_file_too(module, tmp_path):
    from stemwise import model_file

    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    song = torch.randn(1, 2000)
    loaded = model_file.load(tmp_path / "last.ckpt")
    torch.testing.assert_close(loaded.separate(song), module.separator.separate(song), rtol=0, atol=0)


def statistics(module):
    return {name: value.clone() for name, value in module.state_dict().items() if "running" in name}


@pytest.mark.parametrize("normalization", training.NORMALIZATIONS)
def test_stored_statistics_stay_and_are_what_training_goes_by(module, normalization):
    other = SeparatorTraining(module.separator, module.make_optimizer, module.make_scheduler, {}, normalization)
    for layer in [m for m in other.modules() if isinstance(m, torch.nn.Dropout)]:
        layer.p = 0.0
    batch = {"mixture": torch.rand(2, 1, 16, 64), "stems": torch.rand(2, 2, 1, 16, 64)}
    before = statistics(other)
    other.eval()
    validated = other.training_step(batch, 0)
    other.train()
    trained = other.training_step(batch, 0)
    same = all(torch.equal(before[name], value) for name, value in statistics(other).items())
    assert same == (normalization == "stored")
    assert torch.allclose(trained, validated) == (normalization == "stored")


def test_another_normalization_says_which_there_are(module):
    with pytest.raises(UserError, match="normalization=layer is not one of batch, stored"):
        SeparatorTraining(module.separator, module.make_optimizer, module.make_scheduler, {}, "layer")
