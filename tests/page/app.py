"""The page as the tests use it."""

import io

from PIL import Image
from playwright.sync_api import expect

# Steps that take long enough to see them, and long enough to stop them.
LONG = 900


class App:
    """One tab with the page. `requests` are its requests to the API."""

    def __init__(self, page, url):
        self.page = page
        self.url = url
        self.requests = []
        self.external = []
        self.errors = []
        page.on("request", self._requested)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and self.errors.append(line.text))

    def _requested(self, request):
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.external.append(request.url)
        elif request.url.startswith(f"{self.url}v1/"):
            self.requests.append(request)

    def opened(self):
        """Opens the page and waits until it shows the models."""
        self.page.goto(self.url)
        self.page.locator("html[data-ready]").wait_for()
        return self

    def check(self):
        """Checks that nothing came from elsewhere, and that no script failed."""
        # The browser writes a line for each status of an error too.
        assert self.external == []
        assert [error for error in self.errors if "Failed to load resource" not in error] == []

    def __getattr__(self, name):
        return getattr(self.page, name)

    def by_id(self, name):
        """Returns the element with an id."""
        return self.page.locator(f"#{name}")

    def choose(self, model, task=None):
        """Chooses a model, and a task by its label."""
        self.page.get_by_label("Model", exact=True).select_option(model)
        if task:
            self.page.get_by_role("radio", name=task).check(force=True)

    def set(self, **numbers):
        """Fills number fields by their labels."""
        for label, number in numbers.items():
            self.by_id("form").get_by_label(label.capitalize(), exact=True).fill(str(number))

    def generate(self, prompt="a red circle", **numbers):
        """Fills the form and presses the button."""
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.set(**numbers)
        # The text of the request before this one would be taken for its result.
        self.by_id("outcome-text").evaluate("(text) => text.replaceChildren()")
        self.page.get_by_role("button", name="Generate").click()

    def finished(self, text="1 image in"):
        """Waits until the request is done, and has this result."""
        expect(self.by_id("outcome-text")).to_contain_text(text)
        expect(self.by_id("generate")).to_be_visible()

    def make(self, prompt="a red circle", steps=3, **numbers):
        """Generates images and waits for them."""
        self.generate(prompt, steps=steps, **numbers)
        self.finished()

    def gallery(self):
        """Returns the images of the gallery."""
        return self.page.locator("#gallery button")

    def sent(self):
        """Returns the last request for images."""
        return [request for request in self.requests if request.method == "POST"][-1]

    def image(self, selector):
        """Returns the image that an element shows."""
        element = self.page.locator(selector)
        script = """async (image) => {
            await image.decode();
            const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
            canvas.getContext("2d").drawImage(image, 0, 0);
            const blob = await canvas.convertToBlob();
            return Array.from(new Uint8Array(await blob.arrayBuffer()));
        }"""
        return Image.open(io.BytesIO(bytes(element.evaluate(script)))).convert("RGB")
