"""The modules alone: the parser of events, descriptions of models, requests."""

import json

import pytest

from app import App


@pytest.fixture(scope="module")
def app(browser, gateway):
    """Opens the page once for all tests: they only import its modules."""
    opened = App(browser.new_page(), gateway.url.removesuffix("v1")).opened()
    yield opened
    opened.check()
    opened.page.close()


def run(app, script, argument=None):
    """Runs the body of an async function in the page; `argument` is its argument."""
    return app.page.evaluate(f"async (argument) => {{ {script} }}", argument)


STREAM = (
    'event: a\ndata: {"n": 1}\n\n'
    ": a comment\n\n"
    "data: one\ndata: two\r\n\r\n"
    "event: b\rdata:ümlaut 😀\r\r"
    "event: c\r\ndata: x\r\ndata: y\r\n\r\n"
    "event: without data\n\n"
    "id: 7\nretry\ndata\n\n"
    "data: cut off"
)
EVENTS = [["a", '{"n": 1}'], ["message", "one\ntwo"], ["b", "ümlaut 😀"], ["c", "x\ny"], ["message", ""]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_whatever_the_chunks(app, size):
    script = """
        const { events } = await import("/page/sse.js");
        const bytes = new TextEncoder().encode(argument.text);
        const stream = new ReadableStream({ start(controller) {
            const { size } = argument;
            for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
            controller.close();
        } });
        const found = [];
        for await (const { type, data } of events(stream)) found.push([type, data]);
        return found;
    """
    assert run(app, script, {"text": STREAM, "size": size}) == EVENTS


def test_a_reader_that_stops_closes_the_stream(app):
    script = """
        const { events } = await import("/page/sse.js");
        let isClosed = false;
        const stream = new ReadableStream({
            pull(controller) { controller.enqueue(new TextEncoder().encode("data: x\\n\\n")); },
            cancel() { isClosed = true; },
        });
        for await (const _ of events(stream)) break;
        return isClosed;
    """
    assert run(app, script) is True


def test_tasks_follow_from_the_pipelines(app):
    script = """
        const { Model, destinations, firstChoice } = await import("/page/description.js");
        const known = (names) => Object.fromEntries(names.map((name) => [name, { arguments: {} }]));
        const described = (...names) => ({ pipelines: known(names) });
        const models = new Map([
            ["depth", new Model("depth", described("StableDiffusionDepth2ImgPipeline"))],
            ["both", new Model("both", described("StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline",
                                                  "LatentConsistencyModelPipeline"))],
            ["unknown", new Model("unknown", null)],
        ]);
        return {
            tasks: [...models.values()].map(({ tasks }) => tasks.map(({ id }) => id)),
            places: destinations(models, "both").map(({ task, model }) => `${task} ${model}`),
            first: firstChoice(models),
        };
    """
    assert run(app, script) == {
        "tasks": [["depth"], ["text", "image", "inpaint"], ["text", "image", "inpaint", "depth", "upscale"]],
        "places": ["image both", "inpaint both", "depth depth", "upscale unknown"],
        "first": "both",
    }


def test_a_request_has_what_was_chosen_and_nothing_else(app):
    script = """
        const { request } = await import("/page/request.js");
        return JSON.parse(request(argument, null).body);
    """
    settings = {
        "model": "m",
        "prompt": "",
        "negative": "",
        "count": 1,
        "seed": 0,
        "steps": 50,
        "loras": [],
        "strength": None,
    }
    sent = run(app, script, settings)
    chosen = {"model": "m", "prompt": "", "n": 1, "seed": 0, "num_inference_steps": 50}
    assert sent == {**chosen, "stream": True, "progress": True, "partial_images": 0}
    with_preview = run(app, script, {**settings, "preview": "linear", "width": 64, "height": 32})
    assert (with_preview["partial_images"], with_preview["preview"], with_preview["size"]) == (24, "linear", "64x32")


def test_words_are_plain(app):
    script = """
        const { duration, schedulerName, shortened } = await import("/page/words.js");
        return [[40, 2340, 59600, 200000].map(duration), ["DPMSolverMultistepScheduler", "PNDMScheduler",
            "EulerAncestralDiscreteScheduler", "DDIMScheduler"].map(schedulerName), shortened("😀😀😀", 2)];
    """
    durations, names, short = run(app, script)
    assert durations == ["0.1 s", "2.3 s", "1 min 0 s", "3 min 20 s"]
    assert names == ["DPM Solver Multistep", "PNDM", "Euler Ancestral Discrete", "DDIM"]
    assert json.dumps(short) == json.dumps("😀…")
