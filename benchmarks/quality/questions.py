"""What is asked of a training, a table each: variants of one recipe as Hydra overrides."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quality import folds

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A recipe and its variants, each what it adds; the first adds nothing, and the others are compared with it.

    Each is trained once for each of the `splits`, which say what is trained on and what is scored. `recordings` is
    the folder of the songs, where they are not the demo set's. `full_size` are models to be weighed and timed beside
    the variants' own, and not trained (`sizes`). With `museval`, the data set as an override, what was held out
    is scored by `stemwise evaluate` as well.
    """

    recipe: Overrides
    variants: Mapping[str, Overrides]
    splits: Mapping[str, Overrides] = field(default_factory=lambda: {"": ()})
    recordings: str | None = None
    full_size: Mapping[str, Overrides] = field(default_factory=dict)
    museval: str | None = None
    title: str | None = None


SMALL = (
    *("spectrogram.sample_rate=11025", "spectrogram.channels=1", "spectrogram.n_fft=1024", "spectrogram.hop=256"),
    *("spectrogram.bins=512", "spectrogram.frames=32", "model.unet.filters=[8,16,32,32]"),
)
DEMO = (
    *("data=demo", "data.dataset.songs.train=48", "data.dataset.songs.valid=8", "data.dataset.seconds=8"),
    *(*SMALL, "data.batch_size=4", "data.examples_per_song=8", "optimizer.lr=3e-3", "scheduler=cosine", "ema=0.98"),
    *("trainer.max_steps=600", "trainer.val_check_interval=100"),
)
"""The demo set, small enough that a run takes a minute of one core."""

MIR1K = ("experiment=mir1k", "trainer.max_steps=1500", "trainer.val_check_interval=500", "ema=0.995")
NARROW = (
    *("experiment=mir1k", "spectrogram.sample_rate=8000", "spectrogram.n_fft=1024", "spectrogram.hop=256"),
    *("spectrogram.bins=512", "spectrogram.frames=256", "data.batch_size=4", "data.speeds=[]", "augment=none"),
    *("loss=l1", "ema=0.98", "trainer.max_steps=600", "trainer.val_check_interval=150"),
)
"""MIR-1K at 8 kHz, as some papers have it: a run takes little more than a minute of one core."""
SINGERS = {singer: (f"data.dataset.valid=[{singer}]",) for singer in ("abjones", "amy")}  # scored; the other is heard

MUSDB18 = ("experiment=musdb18", "trainer.max_steps=1500", "trainer.val_check_interval=250")
FOLDS = {
    f"fold {fold}": ("data.dataset._target_=quality.folds.find", f"+data.dataset.fold={fold}")
    for fold in range(folds.COUNT)
}

LINEAR = (
    *("scheduler._target_=torch.optim.lr_scheduler.LinearLR", "~scheduler.T_max", "+scheduler.start_factor=1"),
    *("+scheduler.end_factor=0", "+scheduler.total_iters=${trainer.max_steps}"),
)

DRAWN = ("model._target_=quality.initial.separator",)  # else He-uniform, as in Keras

ROWS = "data.storage=complex"  # what changes stems by themselves needs phases
REMIX = "+augment.remix._target_=stemwise.augment.Remix"
WIDE = "data.speeds=[65,75,85,117,133,150]"


def _with(module: str) -> Overrides:
    """An augmentation by itself, as it is if nothing is said."""
    return ROWS, f"+augment.{module.lower()}._target_=stemwise.augment.{module}"


def _batches(size: int, steps: int) -> Overrides:
    """As many examples in batches of another size, validated as often."""
    return f"data.batch_size={size}", f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps // 6}"


QUESTIONS: Mapping[str, Question] = {
    "augmentation": Question(
        NARROW,
        {
            "none": (),
            "remix, half of the examples": (ROWS, REMIX),
            "remix, all": (ROWS, REMIX, "+augment.remix.probability=1.0"),
            "gain ±6 dB": _with("Gain"),
            "polarity": _with("Polarity"),
            "formants by up to 25 %": _with("Formants"),
            "mix-up, a fifth": _with("Mixup"),
            "silence, a tenth": _with("Silence"),
            "band limit, a fifth": _with("BandLimit"),
            "stretch and shift magnitudes": ("augment=stretch",),
            "speeds of 90 and 110 %": ("data.speeds=[90,110]",),
            "speeds of 65 to 150 %": (WIDE,),
            "remix, gain, polarity": ("augment=remix",),
            "the same, and speeds of 65 to 150 %": ("augment=remix", WIDE),
            "the same, and formants": ("augment=remix", WIDE, *_with("Formants")),
            "the same, and mix-up and silence": ("augment=all", WIDE, *_with("Formants")),
        },
        splits=SINGERS,
        recordings="mir1k",
    ),
    "loss": Question(
        (*NARROW, "augment=remix", WIDE),
        {
            "L1 of magnitudes": (),
            "of their square roots": ("loss=compressed",),
            "of their logarithms": ("loss=logarithmic",),
            "L1 after the masks": ("loss=masked",),
            "complex spectra after the masks": ("loss=spectral",),
            "waveform after the masks": ("loss=waveform",),
            "three resolutions of the waveform": ("loss=multiresolution", "loss.n_ffts=[512,1024,2048]"),
        },
        splits=SINGERS,
        recordings="mir1k",
    ),
    "optimisation": Question(
        (*DEMO, "augment=remix"),
        {
            "the recipe": (),
            "learning rate 1e-3": ("optimizer.lr=1e-3",),
            "learning rate 1e-2": ("optimizer.lr=1e-2",),
            "constant learning rate": ("scheduler=constant",),
            "linear down to zero": LINEAR,
            "cosine, 60 steps of warm-up": ("scheduler=warmup_cosine", "scheduler.warmup=60"),
            "the same at 1e-2": ("scheduler=warmup_cosine", "scheduler.warmup=60", "optimizer.lr=1e-2"),
            "batches of 2, twice the steps": _batches(2, steps=1200),
            "batches of 8, half the steps": _batches(8, steps=300),
            "no averaged weights": ("ema=null",),
            "averaged over 200 steps": ("ema=0.995",),
            "weight decay 0.01": ("optimizer=adamw", "optimizer.lr=3e-3"),
            "gradients clipped at 0.5": ("trainer.gradient_clip_val=0.5",),
            "no dropout": ("model.unet.dropout=0",),
            "kernels drawn He-normal": (*DRAWN, "+model.draw=kaiming_normal_"),
            "kernels drawn Glorot-uniform": (*DRAWN, "+model.draw=xavier_uniform_"),
        },
    ),
    "size": Question(
        (*DEMO, "augment=remix"),
        {
            "8 16 32 32": (),
            "4 8 16 16": ("model.unet.filters=[4,8,16,16]",),
            "16 32 64 64": ("model.unet.filters=[16,32,64,64]",),
            "8 16 32": ("model.unet.filters=[8,16,32]",),
            "8 16 32 32 64": ("model.unet.filters=[8,16,32,32,64]",),
        },
        full_size={name: (f"model={name}", "stems=4") for name in ("unet_small", "unet", "unet_large")},
    ),
    "mir1k": Question(
        MIR1K,
        {
            "the recipe": (),
            "without speeds": ("data.speeds=[]",),
            "L1 of magnitudes": ("loss=l1",),
            "frames of 1024": (
                *("spectrogram.n_fft=1024", "spectrogram.hop=256", "spectrogram.bins=512"),
                *("spectrogram.frames=1024", "data.frames=128"),  # as many seconds
            ),
            "no remix": ("augment=none",),
            "no dropout": ("model.unet.dropout=0",),
        },
        splits=SINGERS,
        recordings="mir1k",
        title="MIR-1K",
    ),
    "musdb18": Question(
        MUSDB18,
        {
            "the recipe": (),
            "no remix": ("augment=none",),
            "complex spectra after the masks": ("loss=spectral",),
        },
        splits=FOLDS,
        recordings="musdb18-7s",
        museval="data=musdb18",
        title="MUSDB18, seven-second excerpts",
    ),
}
