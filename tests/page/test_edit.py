"""Images from images: image to image, inpainting with a drawn mask, depth to image, the upscaler."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from support import waves

SIDE = 64


def file_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def image():
    """Returns an image and its file as playwright takes it."""
    made = waves(SIDE, SIDE)
    return made, {"name": "waves.png", "mimeType": "image/png", "buffer": file_of(made)}


def size_text(width, height):
    """Returns a size as the page shows it."""
    return f"{width} \N{MULTIPLICATION SIGN} {height}"


def give(app, file):
    """Chooses an input image."""
    app.by_id("input-file").set_input_files([file])
    expect(app.by_id("input-size")).to_have_text(size_text(SIDE, SIDE))


def pixels(image):
    return np.asarray(image).astype(int)


def test_image_to_image(app, image):
    app.choose("tiny", "Image to image")
    app.generate(steps=4)
    expect(app.by_id("error")).to_have_text("Choose an input image first.")
    give(app, image[1])
    app.make(steps=4, strength=0.5)
    assert app.sent().url.endswith("/v1/images/edits")
    plain = app.image("#tiles img")
    assert plain.size == (SIDE, SIDE)
    app.by_id("seed-last").click()
    app.make(steps=4, strength=0.5)
    assert app.image("#tiles img").tobytes() == plain.tobytes()
    app.page.get_by_role("checkbox", name="style").check()
    app.make(steps=4, strength=0.5)
    assert app.image("#tiles img").tobytes() != plain.tobytes()


def test_a_drawn_mask_is_repainted_and_the_rest_stays(app, image):
    app.choose("tiny", "Inpaint")
    give(app, image[1])
    app.generate(steps=3)
    expect(app.by_id("error")).to_contain_text("Draw a mask first")
    app.page.get_by_role("button", name="Draw mask").click()
    box = app.by_id("editor-canvas").bounding_box()
    x, y, side = box["x"], box["y"], box["width"]
    app.page.mouse.move(x + side * 0.25, y + side * 0.25)
    app.page.mouse.down()
    app.page.mouse.move(x + side * 0.35, y + side * 0.25, steps=5)
    app.page.mouse.up()
    app.page.get_by_role("button", name="Use mask").click()
    expect(app.by_id("mask-state")).to_contain_text("% masked")
    app.make(steps=3)
    changed = np.abs(pixels(app.image("#tiles img")) - pixels(image[0])).max(axis=2) > 0
    assert changed[SIDE // 4, SIDE // 4] or changed[SIDE // 4, SIDE // 4 + 2]
    assert changed.mean() < 0.1
    assert not changed[SIDE // 2 :].any() and not changed[:, SIDE // 2 :].any()


def test_masks_can_be_made_with_the_keyboard(app, image):
    app.choose("tiny", "Inpaint")
    give(app, image[1])
    app.by_id("mask-draw").focus()
    app.page.keyboard.press("Enter")
    state = app.by_id("editor-state")
    for name, percent in [("Everything", 100), ("Clear", 0), ("Undo", 100), ("Invert", 0)]:
        app.page.get_by_role("button", name=name).focus()
        app.page.keyboard.press("Enter")
        expect(state).to_have_text(f"{percent} % is masked.")
    app.page.get_by_text("Rectangle by numbers").focus()
    app.page.keyboard.press("Enter")
    for name, number in [("Left", 50), ("Top", 0), ("Width", 50), ("Height", 50)]:
        app.by_id("editor").get_by_label(name).fill(str(number))
    app.page.keyboard.press("Enter")
    expect(state).to_have_text("25 % is masked.")
    app.by_id("editor-done").press("Enter")
    app.make(steps=3)
    changed = np.abs(pixels(app.image("#tiles img")) - pixels(image[0])).max(axis=2) > 0
    assert changed[: SIDE // 2, SIDE // 2 :].mean() > 0.9
    assert not changed[SIDE // 2 + 1 :].any() and not changed[:, : SIDE // 2 - 1].any()


def test_the_brush_erases_and_a_cancelled_mask_is_not_used(app, image):
    app.choose("tiny", "Inpaint")
    give(app, image[1])
    app.by_id("mask-draw").click()
    app.by_id("editor-all").click()
    app.page.get_by_role("radio", name="Erase").check(force=True)
    box = app.by_id("editor-canvas").bounding_box()
    app.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(app.by_id("editor-state")).to_have_text("99 % is masked.")
    app.page.keyboard.press("Control+z")
    expect(app.by_id("editor-state")).to_have_text("100 % is masked.")
    app.by_id("editor-cancel").click()
    expect(app.by_id("mask-state")).to_have_text("No mask yet")


def test_a_finger_draws(open_page, image):
    app = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).opened()
    app.choose("tiny", "Inpaint")
    give(app, image[1])
    app.by_id("mask-draw").tap()
    box = app.by_id("editor-canvas").bounding_box()
    app.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(app.by_id("editor-state")).to_have_text("1 % is masked.")


@pytest.mark.parametrize(
    "label, model, side",
    [("Image to image", "tiny", SIDE), ("Depth to image", "depth", SIDE), ("Upscale", "upscale", 4 * SIDE)],
)
def test_an_image_is_sent_on_to_another_model(app, label, model, side):
    app.choose("tiny", "Text to image")
    app.make("a red circle", width=SIDE, height=SIDE)
    app.by_id("outcome-actions").get_by_role("button", name=label).click()
    expect(app.page.get_by_label("Model", exact=True)).to_have_value(model)
    expect(app.by_id("input-size")).to_have_text(size_text(SIDE, SIDE))
    # The upscaler's result has the size that follows from its input.
    expect(app.by_id("size")).to_be_visible(visible=label != "Upscale")
    app.make("a red circle")
    assert app.image("#tiles img").size == (side, side)
    expect(app.gallery()).to_have_count(2)


def test_an_image_can_be_dropped_and_pasted(app, image):
    script = """([type, data]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        const event = type === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: transfer })
            : new ClipboardEvent("paste", { ...options, clipboardData: transfer });
        document.body.dispatchEvent(event);
    }"""
    app.choose("tiny", "Text to image")
    for event, name in [("drop", "dropped.png"), ("paste", "Pasted image")]:
        app.page.evaluate(script, [event, base64.b64encode(image[1]["buffer"]).decode()])
        expect(app.by_id("input-name")).to_have_text(name)
        expect(app.page.get_by_role("radio", name="Image to image")).to_be_checked()
        app.by_id("input-remove").click()


def test_a_file_that_is_no_image_is_refused(app):
    app.choose("tiny", "Image to image")
    app.by_id("input-file").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": b"zanzibar"}])
    expect(app.by_id("error")).to_contain_text("expected an image file")


def test_a_large_input_image_is_made_smaller_by_the_size(app):
    app.choose("tiny", "Image to image")
    file = {"name": "large.png", "mimeType": "image/png", "buffer": file_of(Image.new("RGB", (640, 320), "red"))}
    app.by_id("input-file").set_input_files([file])
    expect(app.by_id("input-size")).to_have_text(size_text(640, 320))
    width, height = (int(app.by_id(name).input_value()) for name in ("width", "height"))
    assert abs(width - 2 * height) <= 8 and width < 640 and width % 8 == 0
