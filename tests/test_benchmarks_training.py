"""The benchmarks of training, of growth and of a GPU, at tiny sizes."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNet, UNetSettings

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
FILTERS = (4, 6, 8)
ELU = {"encoder_activation": "elu", "decoder_activation": "elu"}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script from `benchmarks`, whose modules find each other by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: __import__(name)


@pytest.fixture
def results(benchmark, monkeypatch, tmp_path):
    """Where a benchmark writes its report here."""
    monkeypatch.setattr(benchmark("report"), "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def shuffled(module):
    """Weights and statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    state = module.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value + 0.2 * torch.rand(value.shape, generator=generator) - 0.1
    module.load_state_dict(state)
    return module


# The reference


@pytest.mark.parametrize("training", [False, True])
def test_the_plain_network_is_ours(benchmark, training):
    torch.manual_seed(0)
    ours = shuffled(UNet(2, UNetSettings(FILTERS, dropout=0.0, **ELU))).train(training)
    plain = benchmark("plain_unet").PlainUNet(2, FILTERS, dropout=0.0).train(training)
    plain.load_state_dict(ours.state_dict())
    magnitudes = torch.rand(2, 2, 16, 24)
    found, expected = plain(magnitudes), ours(magnitudes)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_plain_separator_trains_as_ours(benchmark):
    plain_unet = benchmark("plain_unet")
    torch.manual_seed(0)
    settings = Spectrogram(n_fft=64, hop=16, bins=16, frames=16)
    ours = shuffled(Separator(["a", "b"], settings, UNetSettings(FILTERS, dropout=0.0, **ELU), MaskRule()))
    plain = plain_unet.PlainSeparator(2, filters=FILTERS, dropout=0.0)
    plain.load_state_dict(ours.state_dict())
    mixture, stems = torch.rand(2, 2, 16, 16), torch.rand(2, 2, 2, 16, 16)
    for model in (ours, plain):
        plain_unet.loss(model(mixture), stems).backward()
    for (name, weight), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_the_loss_is_that_of_training(benchmark):
    from stemwise import losses

    estimates, stems = torch.rand(2, 3, 2, 4, 5), torch.rand(2, 3, 2, 4, 5)
    assert benchmark("plain_unet").loss(estimates, stems) == pytest.approx(losses.l1(estimates, stems).sum().item())


# The floor


def test_one_layer_counted_by_hand(benchmark):
    floor = benchmark("floor")
    (first, second, *_), batch = floor.training_step(floor.full_size(1), (4, 2, 512, 1024), 2)[:3], 4
    # Encoder, 2 -> 16 channels, 5 x 5, stride 2: a product and a sum for each weight and output place; forward and,
    # for the weights, backward. Its input needs no gradient.
    places = batch * 256 * 512
    assert first.operations == 2 * (2 * 16 * 25) * places * 2
    before, after, weights = batch * 2 * 512 * 1024, 16 * places, 16 * (2 * 25 + 1)
    assert first.bytes == 2 * (2 * before + 2 * after) + 3 * 4 * weights
    assert second.operations == 3 * 2 * (16 * 32 * 25) * batch * 128 * 256
    assert second.bytes == 2 * (3 * 16 * places + 2 * 32 * batch * 128 * 256) + 3 * 4 * 32 * (16 * 25 + 1)


def test_all_layers_are_what_torch_counts(benchmark):
    floor, plain_unet = benchmark("floor"), benchmark("plain_unet")
    shape = (2, 2, 16, 24)
    with FlopCounterMode(display=False) as counter:
        plain_unet.PlainSeparator(2, filters=FILTERS)(torch.rand(shape)).sum().backward()
    layers = floor.training_step(floor.full_size(2, FILTERS), shape, 4)
    assert sum(layer.operations for layer in layers) == counter.get_total_flops()
    assert len({layer.name for layer in layers}) == len(layers) == 2 * (2 * len(FILTERS) + 1) + 1


def test_separation_is_less_work_than_training(benchmark):
    floor = benchmark("floor")
    shape = (1, 2, 16, 24)
    model = floor.full_size(2, FILTERS)
    forward, step = floor.separation(model, shape, 4), floor.training_step(model, shape, 4)
    for one, other in zip(forward, step, strict=False):
        assert other.operations == one.operations * (2 if one.name.endswith("encoder.0") else 3)
        assert other.bytes > one.bytes


def test_the_floor_is_the_larger_of_both_in_each_layer(benchmark):
    floor = benchmark("floor")
    layers = [floor.Layer("a", 100.0, 1.0), floor.Layer("b", 10.0, 20.0)]
    found = floor.floor(layers, rate=10.0, bandwidth=1.0)
    assert (found.operations, found.bytes, found.seconds) == (11.0, 21.0, 10.0 + 20.0)


# Steering


def test_a_program_takes_the_steps_that_it_is_asked_for(benchmark, tmp_path):
    steered = benchmark("steered")
    code = """
        import steered, pathlib, sys
        count = 0
        def step():
            global count
            count += 1
            print("a line of its own")
            pathlib.Path(sys.argv[1]).write_text(str(count))
        steered.serve(step)
    """
    done = tmp_path / "steps"
    variables = {**os.environ, "PYTHONPATH": str(FOLDER)}
    program = steered.Program("steps", [sys.executable, "-c", textwrap.dedent(code), done], variables)
    try:
        first = program.start()
        assert len(first["seconds"]) == 1
        assert first["waited"] > first["seconds"][0]
        assert done.read_text() == "1"
        assert len(program.ask("3")["seconds"]) == 3
        assert done.read_text() == "4"
        assert program.ask(steered.PROFILE)["operators"][-1]["name"] == "all others"
        assert done.read_text() == "5"
        assert first["peak"] > 1e7
        assert os.waitid(os.P_PID, program.process.pid, os.WSTOPPED | os.WNOWAIT)  # returns when it is halted
        program.process.send_signal(signal.SIGCONT)
        program.process.stdin.close()
        assert program.process.wait(timeout=20) == 0
    finally:
        program.stop()


def test_a_program_that_fails_says_why(benchmark):
    program = benchmark("steered").Program("it", [sys.executable, "-c", "raise ValueError('no songs')"], os.environ)
    with pytest.raises(SystemExit, match=r"(?s)it failed:.*no songs"):
        program.start()
    program.stop()


def test_our_training_is_the_command_itself(benchmark, tmp_path, monkeypatch):
    """Three candidates at a tiny size: the whole way from the command to its steps."""
    train_speed = benchmark("train_speed")
    monkeypatch.setattr(train_speed, "SECONDS", 1.0)
    monkeypatch.setitem(train_speed.OURS, "fp32", ("model.unet.filters=[4,6]",))
    options = train_speed._parser().parse_args(["--candidates", "fp32", "--frames", "16", "--bins", "16"])
    commands = train_speed._commands(options, tmp_path, train_speed.write_songs(tmp_path), None)
    found = train_speed.measure(commands, 2, ["fp32"])
    assert len(found["fp32"]["seconds"]) == 2
    operators = {row["name"] for row in found["fp32"]["operators"]}
    assert "aten::convolution_backward" in operators


def test_ours_take_turns_with_the_others(benchmark, monkeypatch):
    train_speed = benchmark("train_speed")
    log = []

    class Program:
        def __init__(self, name):
            self.name = name

        def start(self):
            log.append(f"start {self.name}")
            return {"waited": 7.0}

        def ask(self, what):
            log.append(self.name)
            return {"peak": 5, "operators": [self.name]}

        def stop(self):
            log.append(f"stop {self.name}")

    seconds = itertools.count()
    monkeypatch.setattr(train_speed.timing, "timed", lambda call: (call(), float(next(seconds)))[1])
    names = ("spleeter", "plain", "fp32", "bf16")
    found = train_speed.measure({name: Program(name) for name in names}, 1, ["bf16"])
    turns = [["start spleeter", "start plain"]]
    turns += [["start fp32", *2 * ["spleeter", "plain", "fp32"], "stop fp32"]]
    turns += [["start bf16", *2 * ["spleeter", "plain", "bf16"], "bf16", "stop bf16"]]
    assert log == [*itertools.chain(*turns), "stop spleeter", "stop plain"]
    assert found["spleeter"]["seconds"] == (0.0, 3.0)
    assert found["bf16"] == {
        "seconds": (5.0,),
        "start": 7.0,
        "peak": 5,
        "beside": {"spleeter": (3.0,), "plain": (4.0,)},
        "operators": ["bf16"],
    }
    assert train_speed._ratio(found, "spleeter", "bf16") == pytest.approx(3 / 5)
    assert train_speed._ratio(found, "spleeter", "plain") == pytest.approx(1.5 / 2.5)


def test_targets_of_a_step(benchmark):
    train_speed = benchmark("train_speed")
    floors = {"fp32": {"seconds": 3.0}, "bf16": {"seconds": 1.0}}
    seconds = {
        "spleeter": 4.0,
        "fp32": 5.0,
        "fp32-compiled": 3.9,
        "fp32-stored": 0.1,
        "bf16": 1.6,
        "bf16-compiled": 1.4,
    }
    found = {name: {"seconds": (value,)} for name, value in seconds.items()}
    fp32, bf16 = (train_speed._target(precision, found, floors) for precision in ("fp32", "bf16"))
    assert (fp32.met, bf16.met) == (True, True)
    assert fp32.ours == "3.90 s (compiled)"
    assert bf16.ratio == pytest.approx(4.0 / 1.4)
    found["bf16-compiled"] = {"seconds": (1.55,)}  # twice as fast as Spleeter, and too far from the floor
    assert train_speed._target("bf16", found, floors).met is False
    assert train_speed._target("bf16", {"spleeter": found["spleeter"]}, floors) is None


# Growth


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power(benchmark, power):
    amounts = [10, 100, 1000]
    found = benchmark("scaling").exponent(amounts, [0.3 * amount**power for amount in amounts])
    assert found == pytest.approx(power, abs=1e-9)


def test_the_exponent_is_the_best_line(benchmark):
    scaling = benchmark("scaling")
    amounts, seconds = [1.0, 10.0, 100.0], [1.0, 30.0, 90.0]
    x, y = torch.tensor(amounts).log(), torch.tensor(seconds).log()
    slope = torch.linalg.lstsq(torch.stack([x, torch.ones(3)], dim=1), y.unsqueeze(1)).solution[0].item()
    assert scaling.exponent(amounts, seconds) == pytest.approx(slope, abs=1e-5)


def test_what_grows_with_the_square_misses_the_target(benchmark):
    scaling = benchmark("scaling")

    def runs(power):
        seconds = {count: dict.fromkeys(scaling.STAGES, 1e-4 * count**power) for count in (10, 100, 1000)}
        return [{"songs": n, "cold": run, "warm": [run]} for n, run in seconds.items()]

    assert [row.met for row in scaling._songs(runs(1))[1]] == [True, True]
    assert [row.met for row in scaling._songs(runs(2))[1]] == [False, False]


def test_a_start_on_tiny_songs(benchmark, tmp_path):
    scaling = benchmark("scaling")
    scaling.write_songs(tmp_path, 3)
    found = scaling.start(tmp_path)
    assert set(found) == {*scaling.STAGES}
    assert len(list((tmp_path / "cache").glob("*/*.stft"))) == 9


def test_batches_and_stems_at_a_tiny_size(benchmark, monkeypatch):
    scaling = benchmark("scaling")
    monkeypatch.setattr(scaling, "SMALL", (2, 2, 2))
    monkeypatch.setattr(scaling, "FRAMES", 8)
    options = scaling._parser().parse_args(["--batches", "2", "1", "--stems", "1", "2", "--repeats", "2"])
    found = scaling.batches(options, None)
    assert [(row["batch"], len(row["seconds"])) for row in found] == [(1, 2), (2, 2)]
    assert [row["stems"] for row in scaling.stems(options, None)] == [1, 2]


def test_batches_over_the_budget_are_named(benchmark, monkeypatch):
    scaling, timing = benchmark("scaling"), benchmark("timing")
    monkeypatch.setattr(scaling, "_step_of", lambda model, size: lambda: None)
    seconds = itertools.count(1)
    monkeypatch.setattr(timing, "timed", lambda call: float(next(seconds)))
    options = scaling._parser().parse_args(["--batches", "1", "2", "4", "--repeats", "1", "--budget", "7"])
    found = scaling.batches(options, None)
    assert [bool(row["seconds"]) for row in found] == [True, True, False]
    assert "| 4 | not run: over the time budget |" in scaling._networks("batch", found, lambda row: row["batch"])


# The GPU's


def test_all_of_the_gpu_benchmark_runs_on_the_processor(benchmark, results, monkeypatch, capsys):
    gpu, ceilings = benchmark("gpu"), benchmark("ceilings")
    monkeypatch.setitem(ceilings.SIZES, "cpu", 32)
    monkeypatch.setitem(ceilings.BYTES, "cpu", 4096)
    monkeypatch.setattr(gpu, "_copy_rate", lambda device: 1e9)
    arguments = ["gpu.py", "--device", "cpu", "--tiny", "--repeats", "1", "--precisions", "fp32", "bf16", "--compiled"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert gpu.main() == 0
    text = capsys.readouterr().out
    assert not results.exists()
    for wanted in ("| stemwise | bf16 |  | 4 |", "| loader alone", "| fp32 | ", "Whole process (the command)"):
        assert wanted in text
    assert "no measurement" in text


def test_without_a_gpu_the_table_says_so(benchmark, results, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert benchmark("gpu").main() == 0
    text = (results / "gpu-not-measured.md").read_text()
    assert text.count("| not measured |") == 4
    assert "No CUDA device: not measured" in text
    assert text.strip() == capsys.readouterr().out.strip()


def test_the_gpu_benchmark_needs_torch_alone(tmp_path):
    """On a bare machine: nothing but torch and numpy, and the loader and the WAV program work nevertheless."""
    code = f"""
        import sys
        sys.path[:0] = [{str(FOLDER)!r}, {str(ROOT / "src")!r}]
        missing = {{"av", "soundfile", "rich", "safetensors", "hydra", "omegaconf", "lightning", "museval", "wandb"}}
        missing.add("google_crc32c")
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in missing and name not in sys.modules:
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Missing())
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name in missing else real(name, *rest)
        import gpu, pathlib, torch
        torch.set_num_threads(1)
        work = pathlib.Path({str(tmp_path)!r})
        mixture, stems = next(gpu.feed(gpu.TINY, work, 2, "cpu"))
        assert mixture.shape == (2, 2, 16, 16) and stems.shape == (2, 4, 2, 16, 16), (mixture.shape, stems.shape)
        assert mixture.std() > 0.1
        options = gpu._parser().parse_args(["--device", "cpu", "--repeats", "1"])
        command = gpu._stand_in(options, gpu.TINY, work / "song.wav", work)
        gpu._write_wav(work / "song.wav", torch.rand(2, 4000) - 0.5, 44100)
        gpu.separate_wav("cpu", *map(pathlib.Path, command[-2:]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import wave

    for stem in ("vocals", "drums", "bass", "other"):
        with wave.open(str(tmp_path / "stems" / f"{stem}.wav")) as file:
            assert (file.getnframes(), file.getnchannels(), file.getframerate()) == (4000, 2, 44100)


@pytest.mark.parametrize(("name", "value"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_step_of_the_gpu_benchmark_learns(benchmark, name, value):
    gpu = benchmark("gpu")
    torch.manual_seed(0)
    seen = []
    model = gpu._separator(gpu.TINY)
    model.unets[0].encoder[0].register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    before = [weight.detach().clone() for weight in model.parameters()]
    step = gpu.step_of(model, gpu.PRECISIONS[name], None)
    mixture, stems = gpu._batch((2, 2, 16, 16), "cpu")
    assert step(mixture, stems).item() > 0
    # The first step of Adam is the rate times the gradient's sign.
    moved = [(weight - old).abs().max().item() for weight, old in zip(model.parameters(), before, strict=True)]
    assert min(moved) > 0.9e-4
    assert max(moved) < 1.1e-4
    assert seen == [value]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_all_of_the_gpu_benchmark_runs_on_the_gpu(benchmark, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda", "--tiny", "--repeats", "2"])
    assert benchmark("gpu").main() == 0
