"""Takes the screenshots of the gateway's page in docs/images, with the demo's models in a real tritonserver.

`make screenshots` runs it. The variable CHROMIUM names the browser.
"""

import argparse
import io
import os
import pathlib
import sys
import tempfile

from PIL import Image
from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "demo"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))

import run as demo
from gateway import Gateway
from server import ROOT, TritonServer

# Prompt and seed of each image of the gallery, the oldest first.
SCENES = [
    ("a purple triangle right of a green star on a gray background", 3),
    ("a yellow square above a red circle on a gray background", 12),
    ("a blue star left of an orange square on a purple background", 5),
    ("a green circle below a purple square on a yellow background", 8),
    ("a white star right of a red triangle on a blue background", 21),
    ("an orange circle left of a blue triangle on a striped red background", 2),
    ("a red star left of a blue circle on a green background", 7),
]
DESKTOP = {"viewport": {"width": 1360, "height": 900}, "device_scale_factor": 1.5}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
# Bytes of a file: the repository keeps each one that was ever committed.
LIMIT = 150_000


class Shots:
    """Takes screenshots of one page."""

    def __init__(self, page, url, out):
        self.page = page
        self.out = out
        page.goto(url)
        page.locator("html[data-ready]").wait_for()

    def generate(self, prompt, seed, steps=30):
        """Generates an image and waits for it."""
        self.start(prompt, seed, steps)
        expect(self.page.locator("#generate")).to_be_visible(timeout=120_000)
        self.page.locator("#tiles img").wait_for()

    def start(self, prompt, seed, steps):
        """Presses the button."""
        self.page.locator("#prompt").fill(prompt)
        self.page.locator("#seed").fill(str(seed))
        self.page.locator("#number-num_inference_steps").fill(str(steps))
        self.page.locator("#generate").click()

    def save(self, name):
        """Writes a screenshot as WebP."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(500)
        file = self.out / f"page-{name}.webp"
        Image.open(io.BytesIO(self.page.screenshot())).save(file, quality=82, method=6)
        size = file.stat().st_size
        if size > LIMIT:
            raise SystemExit(f"{file.name} has {size} bytes, expected at most {LIMIT}")
        print(f"{file}: {size} bytes", flush=True)


def fill_gallery(shots, scenes):
    """Generates the scenes."""
    for prompt, seed in scenes:
        shots.generate(prompt, seed)


def desktop(shots):
    """The result with the gallery, the mask editor, and a request that runs."""
    page = shots.page
    fill_gallery(shots, SCENES)
    page.locator("#seed").fill("")
    page.evaluate("document.activeElement.blur()")
    shots.save("light")

    page.locator("#gallery button").nth(1).click()
    shots.save("viewer")
    page.keyboard.press("Escape")

    page.locator("#outcome-actions").get_by_role("button", name="Inpaint").click()
    page.locator("#mask-draw").click()
    box = page.locator("#editor-canvas").bounding_box()
    page.locator("#editor-size").fill("19")
    points = [(0.17, 0.38), (0.27, 0.36), (0.36, 0.4), (0.18, 0.48), (0.36, 0.53), (0.22, 0.57), (0.34, 0.58)]
    for index, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if index == 0:
            page.mouse.down()
    page.mouse.up()
    shots.save("mask")


def running(shots):
    """A request that runs."""
    page = shots.page
    fill_gallery(shots, SCENES[:4])
    shots.start(*SCENES[-1], steps=200)
    # The page's policy refuses wait_for_function.
    while page.locator("#progress").evaluate("(bar) => bar.position") < 0.15:
        page.wait_for_timeout(20)
    shots.save("dark")
    page.keyboard.press("Escape")


def phone(shots):
    """The result on a phone."""
    fill_gallery(shots, SCENES[3:])
    shots.page.locator("#stage").evaluate("(stage) => scrollTo(0, stage.getBoundingClientRect().top + scrollY - 72)")
    shots.save("phone")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "images", help="folder of the screenshots")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        repository = pathlib.Path(folder) / "model_repository"
        demo.make_repository(repository, demo.DEMO / "models")
        log = pathlib.Path(folder) / "server.log"
        with TritonServer(repository, log, models=demo.MODELS) as server, Gateway(server.grpc_address) as gateway:
            take(gateway.url.removesuffix("v1"), out)


def take(url, out):
    """Takes all screenshots."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=arguments)
        for options, scheme, scenes in (
            (DESKTOP, "light", desktop),
            (DESKTOP, "dark", running),
            (PHONE, "light", phone),
        ):
            context = browser.new_context(**options, color_scheme=scheme)
            scenes(Shots(context.new_page(), url, out))
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
