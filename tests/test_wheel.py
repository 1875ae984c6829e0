"""The wheel is what users install: it must not need the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_wheel_trains_in_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if name.startswith(("src/", "conf/", "data/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "dist", source]
    subprocess.run([*pip, *build], check=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    # Python would find a package that is not there in the checkout, which is installed as well.
    assert {name for name in names if name.endswith(".py")} == {
        str(path.relative_to(REPOSITORY / "src")) for path in (REPOSITORY / "src").rglob("*.py")
    }
    assert "stemwise/conf/train.yaml" in names
    assert {"stemwise/report/page.html", "stemwise/report/page.css", "stemwise/report/sound.js"} <= {*names}
    assert "stemwise/datasets/csv/musdb18_test.csv" in names
    assert not [name for name in names if name.startswith(("tests", "conf/", "data/"))]

    site, work = tmp_path / "site", tmp_path / "work"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    work.mkdir()
    small = ["data.dataset.seconds=4", "data.dataset.songs={train: 2, valid: 1, test: 1}", "model=unet_small"]
    # -S -E would drop torch too; the path in front makes the wheel win over the checkout.
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from stemwise.cli import main; sys.exit(main())"
    keys = ["data=demo", "trainer.max_steps=2", "spectrogram.frames=64", "logger=csv", *small]
    subprocess.run([sys.executable, "-c", code, "train", *keys], cwd=work, check=True, stdin=subprocess.DEVNULL)
    assert list(work.glob("runs/*/model.safetensors"))
    where = "import sys; sys.path.insert(0, sys.argv[1]); import stemwise.launch; print(stemwise.launch.CONF)"
    found = subprocess.run([sys.executable, "-c", where, site], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(site / "stemwise" / "conf")
