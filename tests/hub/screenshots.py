"""Takes the screenshots of casstore/integrations/hub/README.md: `python tests/hub/screenshots.py`, then look at them."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

from fakes.hub_pages import pipeline  # noqa: E402 - behind the path
from fakes.hub_server import hub_server, raw  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

import casstore  # noqa: E402

TARGET = HERE.parents[1] / "casstore" / "integrations" / "hub"
SHOTS = {"light": ("/models/org/minilm-tuned#files", 690), "dark": ("/models/org/minilm-tuned?tensors=", 560)}
WIDTH = 1180
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main():
    with (
        tempfile.TemporaryDirectory() as place,
        casstore.open(Path(place) / "store", create=True, durability="none") as store,
        hub_server(store) as app,
        sync_playwright() as playwright,
    ):
        pipeline(store, Path(place) / "models")
        while b"being measured" in raw(app, "GET", "/").body:
            time.sleep(0.1)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for scheme, (path, height) in SHOTS.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
            page.goto(app.url + path)
            page.evaluate(
                "place => document.querySelectorAll('pre code').forEach(e => e.textContent = e.textContent.replace(place, '.'))",
                place,
            )
            file = TARGET / f"page-{scheme}.png"
            page.screenshot(path=file)
            Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
