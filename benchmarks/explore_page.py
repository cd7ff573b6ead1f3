"""Makes docs/images/explore.png: trains two networks on digits, and looks through the page."""

import argparse
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

from foveate.cli import main

OUT = Path(__file__).parents[1] / "docs" / "images" / "explore.png"
COMMAND = "import sys; from foveate.cli import main; sys.exit(main(sys.argv[1:]))"
SIZE = {"width": 1240, "height": 860}


def digits(folder: Path) -> None:
    """Some of the digits as files, by class."""
    data = load_digits()
    for number, (image, label) in enumerate(zip(data.images[:40], data.target, strict=False)):
        at = folder / str(label) / f"{number}.png"
        at.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(at)


def picture(url: str, name: str) -> bytes:
    """The page after a digit was picked, clicked, and compared."""
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(url)
        page.locator("#picker input").click()
        page.get_by_role("option", name=name).click()
        page.wait_for_selector(".fv-column")
        page.locator(".fv-picture").click(position={"x": 150, "y": 60})
        page.wait_for_selector(".fv-affinity")
        page.check("#compare input")
        page.wait_for_selector(".fv-column:nth-child(2)")
        page.mouse.move(0, 0)
        return page.screenshot()


def look(runs: Path, folder: Path) -> bytes:
    """The same, from a server that ends afterwards."""
    words = ["explore", str(runs / "nl-seed0"), "--against", str(runs / "cbam-seed0")]
    words += ["--data", str(folder), "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-uc", COMMAND, *words], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            found = re.search(r"http://[\d.:]+", server.stdout.readline())
            return picture(found[0], "3/3.png")
        finally:
            server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the networks are, or go (a minute or two)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        digits(Path(temporary) / "digits")
        out = given.out or Path(temporary) / "compare"
        words = "compare --data digits --host small_cnn --mechanisms nl,cbam --seeds 1 --epochs 8"
        if not (out / "runs").exists():
            main([*words.split(), "--tracker", "none", "--out", str(out)])
        shot = Image.open(io.BytesIO(look(out / "runs", Path(temporary) / "digits")))
        shot.convert("RGB").save(OUT, optimize=True)
        print(f"{OUT}: {OUT.stat().st_size / 1024:.0f} KB")
