"""Images from texts: made, watched, stopped, refused."""

import json

import pytest
from playwright.sync_api import expect

from app import LONG
from support import wait_for


def test_an_image_is_generated_within_the_models_limits(app):
    app.choose("tiny", "Text to image")
    app.generate("a red circle", steps=3, width=64, height=48, seed=7)
    app.finished("1 image in")
    assert app.image("#tiles img").size == (64, 48)
    expect(app.by_id("outcome-text")).to_contain_text("seed 7")
    expect(app.gallery()).to_have_count(1)
    expect(app.page.locator("#gallery img")).to_have_attribute("alt", "a red circle")
    body = json.loads(app.sent().post_data)
    assert body["model"] == "tiny" and body["prompt"] == "a red circle" and body["seed"] == 7
    assert body["stream"] is True and body["progress"] is True and body["partial_images"] == 3
    steps = app.page.get_by_label("Steps", exact=True)
    assert (steps.get_attribute("min"), steps.get_attribute("max")) == ("1", "1000")


def test_one_seed_makes_one_image(app):
    app.choose("tiny", "Text to image")
    images = []
    for seed in (5, 5, 6):
        app.make(seed=seed)
        images.append(app.image("#tiles img").tobytes())
    assert images[0] == images[1] != images[2]
    app.by_id("seed-random").click()
    app.make()
    first = json.loads(app.sent().post_data)["seed"]
    app.by_id("seed-last").click()
    expect(app.by_id("seed")).to_have_value(str(first))


def test_several_images_have_one_tile_each(app):
    app.choose("tiny", "Text to image")
    app.page.get_by_label("Images", exact=True).select_option("2")
    app.generate(steps=3)
    app.finished("2 images in")
    expect(app.page.locator("#tiles img")).to_have_count(2)
    expect(app.gallery()).to_have_count(2)


def test_progress_and_a_preview_come_before_the_image(app):
    app.choose("tiny", "Text to image")
    app.generate(steps=300, width=128, height=128)
    # PNDM calls the UNet once more.
    expect(app.by_id("progress-text")).to_contain_text("of 301")
    expect(app.by_id("progress-left")).to_contain_text("left")
    expect(app.page.locator("#tiles canvas.shown")).to_be_visible()
    expect(app.page.locator("#tiles img")).to_have_count(0)
    assert 0 < app.by_id("progress").evaluate("(bar) => bar.value / bar.max") < 1
    assert "%" in app.page.title()
    app.finished()
    expect(app.page.locator("#tiles img")).to_have_count(1)
    assert "%" not in app.page.title()


def cancelled(server):
    """Returns how many jobs of the model were cancelled."""
    return server.metric("diffusion_jobs_cancelled_total", model="tiny") or 0


@pytest.mark.parametrize("way", ["button", "key"])
def test_stop_cancels_the_job_at_the_server(app, server, way):
    app.choose("tiny", "Text to image")
    before = cancelled(server)
    app.generate(steps=LONG, width=128, height=128)
    expect(app.by_id("progress-text")).to_contain_text("Step")
    if way == "button":
        app.page.get_by_role("button", name="Stop").click()
    else:
        app.page.keyboard.press("Escape")
    app.finished("Stopped at step")
    wait_for(lambda: cancelled(server) == before + 1, 10, "the job is cancelled")
    expect(app.gallery()).to_have_count(0)
    app.make()


def test_a_model_that_is_not_decoupled_is_used_without_previews(app):
    app.choose("plain", "Text to image")
    expect(app.by_id("preview")).to_be_disabled()
    app.make()
    expect(app.gallery()).to_have_count(1)


def test_adapters_are_sent(app):
    app.choose("tiny", "Text to image")
    app.page.get_by_label("Prompt", exact=True).fill("a")
    app.page.get_by_role("button", name="<cat-toy>").click()
    expect(app.by_id("prompt")).to_have_value("a <cat-toy> ")
    app.page.get_by_role("checkbox", name="style").check()
    app.page.get_by_label("Scale of style").fill("0.5")
    app.make("a <cat-toy>", seed=3)
    assert json.loads(app.sent().post_data)["loras"] == [{"name": "style", "scale": 0.5}]
    with_lora = app.image("#tiles img").tobytes()
    app.page.get_by_role("checkbox", name="style").uncheck()
    app.make("a <cat-toy>", seed=3)
    assert app.image("#tiles img").tobytes() != with_lora


def test_an_error_of_the_gateway_is_shown_at_its_field(app):
    app.choose("tiny", "Text to image")
    app.page.route("**/v1/images/generations", spoil_steps)
    app.generate(steps=3)
    expect(app.by_id("error")).to_be_visible()
    expect(app.by_id("error")).to_contain_text("num_inference_steps")
    expect(app.page.get_by_label("Steps", exact=True)).to_be_focused()
    expect(app.page.get_by_label("Steps", exact=True)).to_have_attribute("aria-invalid", "true")
    app.page.unroute("**/v1/images/generations")
    app.make()
    expect(app.by_id("error")).to_be_hidden()


def spoil_steps(route):
    """Sends a request on with a number of steps that the server refuses."""
    body = {**json.loads(route.request.post_data), "num_inference_steps": 5000}
    route.continue_(post_data=json.dumps(body))


def answer(app, *events):
    """Answers requests for images with these events, each a type and its data."""
    body = "".join(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n" for name, data in events)
    app.page.route(
        "**/v1/images/generations",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
    )


def test_an_error_that_comes_late_is_shown(app):
    app.choose("tiny", "Text to image")
    error = {"message": "the server ended", "type": "server_error", "param": None, "code": None}
    answer(
        app,
        ("image_generation.progress", {"step": 1, "steps": 5, "eta_ms": 100}),
        ("error", {"error": error}),
    )
    app.generate()
    expect(app.by_id("error")).to_have_text("the server ended")
    expect(app.by_id("error")).to_be_focused()
    expect(app.by_id("generate")).to_be_visible()
    expect(app.gallery()).to_have_count(0)


def test_the_place_in_the_queue_is_shown_and_a_broken_answer_is_an_error(app):
    app.choose("tiny", "Text to image")
    for position, text in [(2, "2 requests ahead"), (1, "1 request ahead"), (0, "next in line")]:
        answer(app, ("image_generation.progress", {"step": 0, "steps": 0, "queue_position": position}))
        app.generate()
        expect(app.by_id("error")).to_contain_text("ended before the image was complete")
        # The request is over, so the text is hidden.
        assert app.by_id("progress-text").text_content() == f"Waiting: {text}"


def test_a_wrong_seed_is_not_sent(app):
    app.choose("tiny", "Text to image")
    app.generate(seed="seven")
    expect(app.by_id("error")).to_contain_text("seed: expected an integer")
    expect(app.by_id("seed")).to_be_focused()
    assert [request for request in app.requests if request.method == "POST"] == []
