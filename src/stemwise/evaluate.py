"""`stemwise evaluate checkpoint=PATH data=… split=test`: museval scores of a model, as a Hydra command."""

import json
import logging
import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from stemwise import launch

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=launch.CONF, config_name="evaluate")
@launch.task
def command(cfg: DictConfig) -> None:
    """Scores `cfg.checkpoint` on a split of `cfg.data`; see `conf/evaluate.yaml`."""
    from stemwise import data, model_file, scoring
    from stemwise.errors import UserError

    if cfg.split not in data.SPLITS:
        raise UserError(f"split={cfg.split}: not one of {', '.join(data.SPLITS)}.")
    checkpoint = Path(cfg.checkpoint)
    model = model_file.load(checkpoint)
    songs = instantiate(
        cfg.data, stems=list(model.stems), spectrogram=model.spectrogram, augment={}, _convert_="all"
    ).songs(cfg.split)
    folder = Path(cfg.output or checkpoint.parent / f"evaluation-{cfg.split}")
    log.info("%d songs of %s, scores in %s", len(songs), cfg.split, folder)
    scores = scoring.evaluate(checkpoint, songs, folder, list(cfg.baselines), cfg.workers)
    _report(scores, model.stems, folder)


def _report(scores: "scoring.Scores", stems: tuple[str, ...], folder: Path) -> None:  # type: ignore[name-defined]  # noqa: F821
    table = scores.table(stems)
    (folder / "scores.md").write_text(table + "\n", encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(scores.values, indent=1), encoding="utf-8")
    print(f"\nmuseval, dB, median of 1 s windows, then of songs:\n\n{table}\n")
    if scores.silent:
        songs = "; ".join(f"{song}: {', '.join(names)}" for song, names in scores.silent.items())
        print(f"{len(scores.silent)} songs with silent stems, which have no score there: {songs}")
    print(f"Scores: {folder}")


def main() -> int:
    return launch.run(command)


if __name__ == "__main__":
    sys.exit(main())
