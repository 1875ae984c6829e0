"""Loggers that need more than their constructor: Weights & Biases, without a question."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
import requests.utils


def wandb(project: str, folder: str, **options: Any) -> lightning.pytorch.loggers.WandbLogger:
    """A W&B logger that is offline where there is no login, instead of asking for one."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    login = os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(host)
    offline = not login and "WANDB_MODE" not in os.environ
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    return lightning.pytorch.loggers.WandbLogger(project=project, save_dir=folder, offline=offline, **options)
