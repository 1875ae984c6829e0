"""A long run needs no more memory than a short one."""

import psutil
import pytest

from stemwise.training import SeparatorTraining


@pytest.mark.slow
def test_memory_after_2000_steps_is_what_it_was_after_200(train, monkeypatch):
    """Of the process and its workers, with all that happens between steps: validations, checkpoints, logs.

    Over 12 000 steps it went up and down by 10 MB. One batch that is kept at each step would be 15 MB.
    """
    step, ours, found = SeparatorTraining.training_step, psutil.Process(), {}

    def measures(self, batch, number):
        if self.global_step in (200, 2000):
            found[self.global_step] = sum(one.memory_full_info().uss for one in (ours, *ours.children()))
        return step(self, batch, number)

    monkeypatch.setattr(SeparatorTraining, "training_step", measures)
    keys = [
        "stem_names=[vocals]",
        "trainer.max_steps=2001",
        "trainer.val_check_interval=190",
        "checkpoints.every=95",
        "ema=0.99",
    ]
    done = train(*keys, "data.num_workers=1", "data.batch_size=1", "data.examples_per_song=50", "on_nonfinite=skip")
    assert done.code == 0, done.output
    assert found[2000] - found[200] < 12e6, found
