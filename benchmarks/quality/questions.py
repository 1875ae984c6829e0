"""What is asked of a training, a table each: variants of one recipe as Hydra overrides.

A variant without overrides is the recipe as it is, with which the others are compared.
"""

from collections.abc import Mapping

Variants = Mapping[str, tuple[str, ...]]

SMALL = (
    *("spectrogram.sample_rate=11025", "spectrogram.channels=1", "spectrogram.n_fft=1024", "spectrogram.hop=256"),
    *("spectrogram.bins=512", "spectrogram.frames=32", "model.unet.filters=[8,16,32,32]"),
)
DEMO = (
    *("data=demo", "data.dataset.songs.train=48", "data.dataset.songs.valid=8", "data.dataset.seconds=8"),
    *(*SMALL, "data.batch_size=4", "data.examples_per_song=8", "optimizer.lr=3e-3", "scheduler=cosine", "ema=0.98"),
    *("trainer.max_steps=600", "trainer.val_check_interval=600"),
)
"""The demo set, small enough that a run takes a minute of one core."""

ROWS = "data.storage=complex"  # what changes stems by themselves needs phases


def _with(name: str, *values: str) -> tuple[str, ...]:
    """One augmentation alone."""
    module = {"gain": "Gain", "polarity": "Polarity", "mixup": "Mixup", "silence": "Silence", "band": "BandLimit"}
    return ROWS, f"+augment.{name}._target_=stemwise.augment.{module[name]}", *(f"+augment.{name}.{v}" for v in values)


QUESTIONS: Mapping[str, tuple[tuple[str, ...], Variants]] = {
    "augmentation": (
        DEMO,
        {
            "none": (),
            "remix, half of the examples": (ROWS, "+augment.remix._target_=stemwise.augment.Remix"),
            "remix, all": (ROWS, "+augment.remix._target_=stemwise.augment.Remix", "+augment.remix.probability=1.0"),
            "gain ±6 dB": _with("gain"),
            "polarity": _with("polarity"),
            "mix-up, a fifth": _with("mixup"),
            "silence, a tenth": _with("silence"),
            "band limit, a fifth": _with("band"),
            "stretch and shift magnitudes": ("augment=stretch",),
            "speeds of 90 and 110 %": ("data.speeds=[90,110]", "data.examples_per_song=3"),
            "remix, gain, swap, polarity": ("augment=remix",),
            "the same with mix-up and silence": ("augment=all",),
        },
    ),
    "loss": (
        (*DEMO, "augment=remix"),
        {
            "L1 of magnitudes": (),
            "of their square roots": ("loss=compressed",),
            "of their logarithms": ("loss=logarithmic",),
            "L1 after the masks": ("loss=masked",),
            "complex spectra after the masks": ("loss=spectral",),
            "waveform after the masks": ("loss=waveform",),
            "three resolutions of the waveform": ("loss=multiresolution", "loss.n_ffts=[512,1024,2048]"),
        },
    ),
    "optimisation": (
        (*DEMO, "augment=remix"),
        {
            "the recipe": (),
            "learning rate 1e-3": ("optimizer.lr=1e-3",),
            "learning rate 1e-2": ("optimizer.lr=1e-2",),
            "constant learning rate": ("scheduler=constant",),
            "batches of 2, twice the steps": ("data.batch_size=2", "trainer.max_steps=1200"),
            "batches of 8, half the steps": ("data.batch_size=8", "trainer.max_steps=300"),
            "no averaged weights": ("ema=null",),
            "averaged over 200 steps": ("ema=0.995",),
            "weight decay 0.01": ("optimizer=adamw", "optimizer.lr=3e-3"),
            "gradients clipped at 0.5": ("trainer.gradient_clip_val=0.5",),
            "no dropout": ("model.unet.dropout=0",),
        },
    ),
    "size": (
        (*DEMO, "augment=remix"),
        {
            "8 16 32 32": (),
            "4 8 16 16": ("model.unet.filters=[4,8,16,16]",),
            "16 32 64 64": ("model.unet.filters=[16,32,64,64]",),
            "8 16 32": ("model.unet.filters=[8,16,32]",),
            "8 16 32 32 64": ("model.unet.filters=[8,16,32,32,64]",),
        },
    ),
}
"""By name: the recipe, and its variants."""
