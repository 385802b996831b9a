"""The pictures of the trained checkpoints in demo/models show what was asked for, as plain image code sees it.

Every margin here fails on random weights of the same shapes. TRITON_DIFFUSION_DEMO_MODELS names another folder of the
four models, to show that.
"""

import os
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from support import ROOT, opened, sent

sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "demo" / "train")]

import recognise  # noqa: E402
import scenes  # noqa: E402

MODELS = pathlib.Path(os.environ.get("TRITON_DIFFUSION_DEMO_MODELS", ROOT / "demo" / "models"))
CONFIG = (ROOT / "demo" / "config.pbtxt").read_text()
# Of one thing, and of two.
CAPTIONS = (ROOT / "demo" / "captions.txt").read_text().splitlines()
PAIRS = (ROOT / "demo" / "captions_pairs.txt").read_text().splitlines()
ROWS = 8
NEEDED, NEEDED_PAIRS = 36, 7

THING = re.compile(rf"({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})")


@pytest.fixture(scope="module")
def demo(client, repository):
    """The client, with the four models loaded."""
    names = ("sd_base", "sd_depth", "sd_inpaint", "sd_upscale")
    for name in names:
        repository.add(name, CONFIG, checkpoint=MODELS / name)
    client.load(*names)
    return client


def wanted(caption):
    """The things that a caption names: {colour: shape}."""
    return dict(THING.findall(caption))


def shows(picture, caption):
    """Whether every thing that the caption names is there in its colour and shape."""
    found = recognise.things(picture)
    return all(colour in found and found[colour].shape == shape for colour, shape in wanted(caption).items())


def array(picture):
    return np.asarray(opened(picture).convert("RGB"))


def text_to_image(demo, captions, gen_args):
    """The pictures of all captions, ROWS of them a request, the requests at once; caption n has the seed n."""
    requests = []
    for first in range(0, len(captions), ROWS):
        rows = captions[first : first + ROWS]
        args = [{**gen_args, "seed": first + n} for n in range(len(rows))]
        requests.append(("sd_base", {"prompt": rows, "gen_args": args}))
    return [array(row[0]) for answer in demo.all_at_once(requests) for row in answer.pictures]


@pytest.fixture(scope="module")
def at_default(demo):
    """The pictures of CAPTIONS with every argument at its default."""
    return text_to_image(demo, CAPTIONS, {})


def score(pictures, captions):
    """How many of the pictures show their captions' things; names the others."""
    right = [shows(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
    print(f"\n{sum(right)} of {len(captions)} captions are seen in their pictures")
    for caption, seen in zip(captions, right, strict=True):
        if not seen:
            print(f"  not seen: {caption}")
    return sum(right)


def test_what_is_drawn_is_named():
    """The judge first: scenes as they were drawn, and through a blur that is the VAE's."""
    for blur in (0, 1.6):
        right = 0
        for n in range(100):
            told = scenes.sample(np.random.default_rng([7, n]))
            picture = ndimage.gaussian_filter(np.asarray(drawn(told)), (blur, blur, 0))
            seen = {colour: found.shape for colour, found in recognise.things(picture).items()}
            right += seen == {item.colour: item.shape for item in told.things}
        assert right >= 98, f"{right} of 100 at a blur of {blur} pixels"


def test_text_is_followed(at_default, capsys):
    with capsys.disabled():
        assert score(at_default, CAPTIONS) >= NEEDED
    grounds = [
        recognise.ground(picture) == caption.split()[-2] for picture, caption in zip(at_default, CAPTIONS, strict=True)
    ]
    assert sum(grounds) >= NEEDED


def test_two_things_are_told_apart(demo, capsys):
    """Harder for so small a network: most are."""
    with capsys.disabled():
        assert score(text_to_image(demo, PAIRS, {}), PAIRS) >= NEEDED_PAIRS


def spread(pictures, colour):
    """How far the centres of a thing lie from their mean, root mean square, in shares of the side; how many were seen."""
    found = [recognise.things(picture).get(colour) for picture in pictures]
    centres = np.array([(item.x, item.y) for item in found if item])
    return (centres.std(0) ** 2).sum() ** 0.5 if len(centres) else np.inf, len(centres)


@pytest.mark.parametrize("caption", ["a red circle on a blue background", "a yellow star on a purple background"])
def test_guidance_gives_variety_for_typical_pictures(demo, caption):
    """What guidance is known to do (Ho and Salimans 2022, "Classifier-free diffusion guidance", section 4): where the
    caption says no place, the thing stands in the middle more often."""
    (colour,) = wanted(caption)
    (free, seen), (guided, seen_guided) = (
        spread(text_to_image(demo, [caption] * 16, {"guidance_scale": scale}), colour) for scale in (1.0, 7.0)
    )
    assert min(seen, seen_guided) >= 14, (seen, seen_guided)
    assert guided < 0.8 * free, (guided, free)


def test_an_empty_prompt_with_guidance_is_the_picture_without(demo):
    plain, pushed = (
        text_to_image(demo, ["a red circle on a blue background", ""], {"guidance_scale": scale})
        for scale in (1.0, 7.0)
    )
    assert np.abs(plain[1].astype(int) - pushed[1]).max() <= 2
    assert np.abs(plain[0].astype(int) - pushed[0]).max() > 50


def scene(background, texture, *items):
    """A scene to be drawn, the farthest thing first."""
    return scenes.Scene(background, texture, "", (0.3, 0.6, 0.4), items)


def drawn(what, pixels=128):
    return Image.fromarray((scenes.render(what, pixels)[0] * 255).round().astype(np.uint8))


def overlap(a, b):
    """Intersection over union of two masks."""
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_depth_keeps_outlines_while_colours_change(demo, shape):
    source = scene("gray", "plain", scenes.Thing(shape, "blue", "large", 0.48, 0.52, 0.27))
    prompt = f"a large red {shape} on a green background"
    answer = demo.infer("sd_depth", prompt=prompt, image=sent(drawn(source)), gen_args={"strength": 1.0, "seed": 1})
    picture = array(answer.picture)
    found = recognise.things(picture)
    assert "red" in found and "blue" not in found, list(found)
    before = recognise.things(np.asarray(drawn(source)))["blue"]
    assert overlap(found["red"].mask, before.mask) > 0.75
    assert recognise.ground(picture) == "green"


def test_inpainting_fills_the_hole_with_what_is_asked(demo):
    source = scene("green", "plain", scenes.Thing("square", "blue", "small", 0.24, 0.5, 0.13))
    picture = drawn(source)
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (64, 24, 120, 104))
    answer = demo.infer(
        "sd_inpaint",
        prompt="a small blue square left of a large red circle on a green background",
        image=sent(picture),
        mask_image=sent(mask),
        gen_args={"height": 128, "width": 128, "seed": 2},
    )
    painted = array(answer.picture)
    kept = np.asarray(mask) == 0
    assert np.array_equal(painted[kept], np.asarray(picture)[kept])
    found = recognise.things(painted)
    assert found["red"].shape == "circle" and found["blue"].shape == "square"
    assert recognise.ground(painted) == "green"


def test_inpainting_removes_what_is_under_the_mask(demo):
    source = scene(
        "blue",
        "plain",
        scenes.Thing("circle", "yellow", None, 0.3, 0.5, 0.2),
        scenes.Thing("star", "red", None, 0.74, 0.5, 0.18),
    )
    picture = drawn(source)
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (66, 32, 124, 96))
    answer = demo.infer(
        "sd_inpaint",
        prompt="a yellow circle on the left on a blue background",
        image=sent(picture),
        mask_image=sent(mask),
        gen_args={"height": 128, "width": 128, "seed": 3},
    )
    painted = array(answer.picture)
    assert list(recognise.things(painted)) == ["yellow"]
    hole = np.asarray(mask) == 255
    ground = np.asarray(drawn(source.without(1)))
    assert np.abs(painted[hole].astype(int) - ground[hole]).mean() < 12


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_the_upscaler_beats_bicubic(demo, capsys):
    """On a picture with a camera's noise, which is what `noise_level` is for."""
    gains = []
    for n, (shape, colour) in enumerate([("circle", "red"), ("star", "yellow")]):
        source = scene("green", ("plain", "striped")[n], scenes.Thing(shape, colour, "large", 0.5, 0.5, 0.27))
        large = np.asarray(drawn(source, 512))
        small = np.asarray(drawn(source, 128)) + np.random.default_rng(n).normal(0, 20, (128, 128, 3))
        small = Image.fromarray(small.round().clip(0, 255).astype(np.uint8))
        answer = demo.infer(
            "sd_upscale",
            prompt=f"a large {colour} {shape} on a {source.texture} green background",
            image=sent(small),
            gen_args={"num_inference_steps": 20, "noise_level": 80, "guidance_scale": 1.0, "seed": n},
        )
        bicubic = np.asarray(small.resize((512, 512), Image.Resampling.BICUBIC))
        gains.append(psnr(array(answer.picture), large) - psnr(bicubic, large))
    with capsys.disabled():
        print("\ndecibels above bicubic:", ", ".join(f"{gain:.1f}" for gain in gains))
    assert min(gains) > 1.5
