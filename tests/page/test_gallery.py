"""The gallery: it survives a reload, gives settings back, and has a limit."""

import json

import pytest
from playwright.sync_api import expect


@pytest.fixture
def filled(app):
    """The page with two images."""
    app.choose("tiny", "Text to image")
    app.make("a red circle", steps=3, seed=1, guidance=5)
    app.make("a blue star", steps=2, seed=2)
    return app


def open_image(app, index):
    app.gallery().nth(index).click()
    expect(app.by_id("viewer")).to_be_visible()


def test_a_reload_keeps_the_gallery_and_the_form(filled):
    filled.page.reload()
    filled.page.locator("html[data-ready]").wait_for()
    expect(filled.gallery()).to_have_count(2)
    expect(filled.by_id("prompt")).to_have_value("a blue star")
    expect(filled.page.get_by_label("Steps", exact=True)).to_have_value("2")
    open_image(filled, 1)
    expect(filled.by_id("viewer-prompt")).to_have_text("a red circle")
    facts = filled.by_id("viewer-facts").inner_text().split("\n")
    for name, text in [("Model", "tiny"), ("Steps", "3"), ("Guidance", "5"), ("Seed", "1")]:
        assert facts[facts.index(name) + 1] == text


def test_settings_of_an_image_make_it_again(filled):
    first = filled.page.locator("#gallery img").nth(1)
    url = first.get_attribute("src")
    before = filled.image(f'#gallery img[src="{url}"]').tobytes()
    open_image(filled, 1)
    filled.by_id("viewer-reuse").click()
    expect(filled.by_id("viewer")).to_be_hidden()
    expect(filled.by_id("prompt")).to_have_value("a red circle")
    expect(filled.by_id("prompt")).to_be_focused()
    filled.by_id("generate").click()
    filled.finished("seed 1")
    assert filled.image("#tiles img").tobytes() == before


def test_keys_go_through_the_images(filled):
    open_image(filled, 0)
    expect(filled.by_id("viewer-title")).to_have_text("Image 1 of 2")
    filled.page.keyboard.press("ArrowRight")
    expect(filled.by_id("viewer-title")).to_have_text("Image 2 of 2")
    expect(filled.by_id("viewer-image")).to_have_attribute("alt", "a red circle")
    filled.page.keyboard.press("ArrowRight")
    filled.page.keyboard.press("ArrowLeft")
    expect(filled.by_id("viewer-title")).to_have_text("Image 1 of 2")
    filled.page.keyboard.press("Escape")
    expect(filled.by_id("viewer")).to_be_hidden()


def test_images_are_downloaded_and_deleted(filled):
    open_image(filled, 0)
    with filled.page.expect_download() as download:
        filled.by_id("viewer-download").click()
    assert download.value.suggested_filename == "a-blue-star-2.png"
    with open(download.value.path(), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    filled.by_id("viewer-delete").click()
    expect(filled.gallery()).to_have_count(1)
    filled.by_id("viewer-close").click()
    filled.by_id("gallery-clear").click()
    filled.page.get_by_role("button", name="Cancel").click()
    expect(filled.gallery()).to_have_count(1)
    filled.by_id("gallery-clear").click()
    filled.by_id("confirm-yes").click()
    expect(filled.gallery()).to_have_count(0)
    filled.page.reload()
    filled.page.locator("html[data-ready]").wait_for()
    expect(filled.gallery()).to_have_count(0)


def test_the_newest_200_images_are_kept(app):
    script = """async () => {
        const { Store, MOST_IMAGES } = await import("/page/store.js");
        const store = new Store();
        await store.open();
        const canvas = new OffscreenCanvas(1, 1);
        canvas.getContext("2d");
        const blob = await canvas.convertToBlob();
        const settings = { prompt: "", seed: 0, format: "png" };
        const record = (index) => ({ blob, index, width: 1, height: 1, settings, time: index, milliseconds: 1 });
        await store.add(Array.from({ length: MOST_IMAGES + 3 }, (_, index) => record(index)));
        const kept = await store.all();
        return [MOST_IMAGES, kept.length, kept[0].index, kept.at(-1).index];
    }"""
    assert app.page.evaluate(script) == [200, 200, 202, 3]
    expect(app.gallery()).to_have_count(200)
    expect(app.by_id("gallery-note")).to_contain_text("the newest 200 are kept")


def test_an_image_that_is_used_keeps_its_mask(app):
    app.choose("tiny", "Text to image")
    app.make(width=64, height=64)
    app.by_id("outcome-actions").get_by_role("button", name="Inpaint").click()
    app.by_id("mask-draw").click()
    app.by_id("editor-all").click()
    app.by_id("editor-done").click()
    app.make(steps=2, seed=9)
    before = app.image("#tiles img").tobytes()
    app.page.reload()
    app.page.locator("html[data-ready]").wait_for()
    open_image(app, 0)
    app.by_id("viewer-reuse").click()
    expect(app.by_id("mask-state")).to_have_text("100 % masked")
    app.by_id("generate").click()
    app.finished("seed 9")
    assert app.image("#tiles img").tobytes() == before


def test_a_draft_of_an_older_page_does_no_harm(app):
    app.page.evaluate('localStorage.setItem(\'triton-diffusion.form\', \'{"model": "gone", "loras": []\')')
    app.page.reload()
    app.page.locator("html[data-ready]").wait_for()
    draft = json.dumps({"model": "gone", "task": "none", "prompt": "still here", "count": 99})
    app.page.evaluate("(draft) => localStorage.setItem('triton-diffusion.form', draft)", draft)
    app.page.reload()
    app.page.locator("html[data-ready]").wait_for()
    expect(app.by_id("prompt")).to_have_value("still here")
    expect(app.by_id("count")).to_have_value("1")
