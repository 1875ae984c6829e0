"""Keys of a tiny model. Not in conftest.py: a folder of tests may have one of its own, of the same name."""

# A model that trains in a second: 8 kHz mono, windows of 16 frames, three layers.
TINY = [
    "spectrogram.sample_rate=8000",
    "spectrogram.channels=1",
    "spectrogram.n_fft=256",
    "spectrogram.hop=64",
    "spectrogram.bins=64",
    "spectrogram.frames=16",
    "model.unet.filters=[4,6,8]",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "logger=csv",
]
