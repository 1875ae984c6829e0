"""The README's picture of a report: `make demo`, then `.venv/bin/python docs/site/report_picture.py`, with chromium."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright import sync_api as playwright

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "runs/demo/evaluation/report.html"
PICTURE = ROOT / "docs/report.png"
# One thing of each kind: the first table, the first plots, the first song.
LEFT_OUT = """
header nav, footer, #time, #band, #method, #scores > :not(h2, .table), #scores .table > .note:last-child,
#songs > :not(h2, h3:first-of-type, .plots:first-of-type), #songs figure:nth-child(n + 3),
#listening > :not(h2, article:first-of-type)
"""


def main(report: Path) -> None:
    """Writes the picture of the report that begins with this file."""
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 600}, color_scheme="light")
        page.goto(report.as_uri())
        page.eval_on_selector_all(LEFT_OUT, "found => found.forEach(one => one.remove())")
        page.get_by_role("slider").first.fill("5")  # seconds
        page.keyboard.press("c")  # the estimates are heard, not the mixture
        page.evaluate("document.activeElement.blur()")  # no ring around what was used last
        page.wait_for_timeout(2000)  # for the spectrogram and the waveforms
        shot = page.screenshot(full_page=True)
        chromium.close()
    # 128 colours look the same and are half the size.
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if sys.argv[1:] else REPORT)
