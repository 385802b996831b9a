"""The requests of `make demo`, in the order and with the functions of demo/run.py."""

import html
import importlib.util
import json
import sys

import numpy as np
import pytest

from support import ROOT

sys.path.insert(0, str(ROOT / "demo"))

import shape_classifier

# By its path, because demo/train has a run.py too.
specification = importlib.util.spec_from_file_location("demo_run", ROOT / "demo" / "run.py")
demo_run = importlib.util.module_from_spec(specification)
sys.modules[specification.name] = demo_run
specification.loader.exec_module(demo_run)


@pytest.fixture(scope="module")
def steps(repository, server, client):
    """Sends the requests; returns a list of (request, result)."""
    demo_run.make_repository(repository.folder, ROOT / "demo" / "models")
    client.load(*demo_run.MODELS)
    return list(demo_run.run(server))


def test_the_last_image_is_the_first_scene_with_the_lora(steps):
    (plain, first), (styled, last) = steps[0], steps[-1]
    assert (styled.model, styled.prompt) == (plain.model, plain.prompt)
    assert styled.gen_args == {**plain.gen_args, "loras": [{"name": "cutout", "scale": 1.0}]}
    before, after = np.asarray(first.image), np.asarray(last.image)
    for image in (before, after):
        found = {color: item.shape for color, item in shape_classifier.objects(image).items()}
        assert found == {"red": "star", "blue": "circle"}
    assert shape_classifier.background(before) == "green" and shape_classifier.checkers(before) < 0.015
    assert shape_classifier.background(after) == "gray" and shape_classifier.checkers(after) > 0.03


def test_the_page_and_the_contact_sheet_show_each_request(steps):
    assert len(steps) == 5
    text = demo_run.page(steps)
    for request, result in steps:
        assert html.escape(json.dumps(request.gen_args)) in text
        assert demo_run.to_base64(result.image) in text
    sheet = demo_run.contact_sheet(steps, side=64)
    assert sheet.width == 16 + 5 * (64 + 16)
    for n, (_, result) in enumerate(steps):
        left = 16 + n * (64 + 16)
        shown = sheet.crop((left, 16, left + 64, 16 + 64))
        assert np.array_equal(shown, result.image.resize((64, 64), demo_run.Image.Resampling.NEAREST))
