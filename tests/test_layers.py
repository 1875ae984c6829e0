"""The house's walls: which module may import which, and what separation must do without."""

import ast
import re
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"

# Everything of ours that a module may import, floor by floor. What is not in the table fails the test.
GROUND = {
    "errors": set(),
    "process": set(),
    "grammar": set(),
    "progress": set(),
    "files": {"errors"},
    "resampling": set(),
    "audio": {"codecs", "errors", "files", "resampling"},
    "naming": {"errors"},
    "workers": {"errors"},
    "download": {"errors", "progress"},
    "wiener": set(),
    "sharing": {"errors"},
    "spectrogram": {"errors"},
    "unet": {"errors"},
    "masks": {"errors"},
    "crossfade": {"errors"},
    "metrics": set(),
    "pictures": set(),
    "augment": {"errors"},
    "index": {"audio", "errors", "files", "progress"},
    "codecs": {"errors", "files"},
}
MODEL = {
    "signals": {"audio", "index", "spectrogram"},
    "cache": {"audio", "errors", "files", "index", "progress", "signals", "spectrogram"},
    "catalogue": {"cache", "errors", "files", "index", "progress"},
    "examples": {"augment", "cache", "catalogue", "sharing", "signals", "spectrogram"},
    "separator": {"crossfade", "errors", "masks", "spectrogram", "unet", "wiener"},
    "losses": {"errors", "masks", "separator", "spectrogram"},
    "model_file": {"errors", "masks", "separator", "spectrogram", "unet"},
    "spleeter": {"errors", "grammar", "masks", "progress", "separator", "spectrogram", "unet"},
    "pretrained": {"download", "errors", "model_file", "separator", "spleeter"},
    "export": {"errors", "model_file", "separator"},
    "excerpts": {"audio", "errors", "resampling"},
    "separation": {"audio", "codecs", "errors", "excerpts", "progress", "report", "resampling", "separator"},
    "api": {"crossfade", "errors", "excerpts", "model_file", "pretrained", "separation", "separator"},
    "evaluation": {
        "cache",
        "catalogue",
        "errors",
        "index",
        "model_file",
        "progress",
        "separator",
        "signals",
        "spectrogram",
        "workers",
    },
    "datasets": {"errors", "index", "progress"},
    "report": {
        "errors",
        "evaluation",
        "index",
        "pictures",
        "progress",
        "resampling",
        "separator",
        "signals",
        "spectrogram",
    },
}
TRAINING = {
    "data_settings": {"augment", "cache", "errors", "files", "spectrogram"},
    "data": {
        "augment",
        "cache",
        "catalogue",
        "data_settings",
        "errors",
        "examples",
        "index",
        "sharing",
        "spectrogram",
        "workers",
    },
    "compilation": {"errors"},
    "training": {"compilation", "errors", "losses", "metrics", "separator"},
    "optimizers": set(),
    "running": {
        "data",
        "errors",
        "examples",
        "files",
        "index",
        "losses",
        "masks",
        "model_file",
        "pictures",
        "pretrained",
        "progress",
        "separator",
        "spectrogram",
        "training",
        "workers",
    },
}
ENTRY = {
    "launch": {"errors", "files", "grammar", "running"},
    "checks": {"compilation", "errors"},
    "commands": {
        "cache",
        "checks",
        "codecs",
        "crossfade",
        "data",
        "errors",
        "evaluation",
        "export",
        "files",
        "grammar",
        "index",
        "launch",
        "model_file",
        "naming",
        "pretrained",
        "process",
        "report",
        "running",
        "separation",
        "separator",
        "spleeter",
    },
    "cli": {"commands", "errors"},
    "train": {
        "checks",
        "errors",
        "launch",
        "model_file",
        "pretrained",
        "process",
        "running",
        "separator",
        "training",
        "workers",
    },
}
TABLE = GROUND | MODEL | TRAINING | ENTRY


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at the top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[1] if len(parts) > 1 else parts[0]


FILES = [path for path in SRC.rglob("*.py") if path.relative_to(SRC).parts[:2] != ("stemwise", "__init__.py")]


def test_imports_go_one_way():
    wrong = []
    for path in FILES:
        here = module(path)
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("stemwise.")} - {here, "__version__"}
        wrong += [f"{path.relative_to(SRC)} imports {name}" for name in ours - TABLE[here]]
    assert not wrong


def test_the_table_is_not_stale():
    used: dict[str, set[str]] = {name: set() for name in TABLE}
    for path in FILES:
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("stemwise.")}
        used[module(path)] |= ours - {module(path), "__version__"}
    assert used == TABLE


def test_the_page_has_the_same_table():
    page = (SRC.parent / "docs/architecture.md").read_text(encoding="utf-8")
    for layer, modules in {"entry": ENTRY, "training": TRAINING, "model": MODEL, "ground": GROUND}.items():
        row = re.search(rf"^\| {layer} \| (.*?) \|", page, re.M)[1]
        assert set(re.findall("`(.*?)`", row)) == set(modules)


def test_lightning_and_hydra_stay_on_their_floors():
    for path in FILES:
        roots = {name.split(".")[0] for name in imports(path)}
        if module(path) not in ENTRY:
            assert not roots & {"hydra", "omegaconf"}, path
        if module(path) in GROUND | MODEL:
            assert "lightning" not in roots, path


def test_separating_needs_neither_hydra_nor_lightning():
    code = (
        "import sys; import stemwise.separation, stemwise.separator; "
        "sys.exit(', '.join({'hydra', 'lightning', 'omegaconf', 'wandb', 'museval'} & {*sys.modules}) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from stemwise import cli\n"
        "sys.argv = ['stemwise', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    for command in ([], ["separate"], ["compare"], ["index"], ["reproduce"]):
        subprocess.run([sys.executable, "-c", code, *command, "--help"], check=True, stdout=subprocess.DEVNULL)
