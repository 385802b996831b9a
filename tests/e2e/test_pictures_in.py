"""Pictures as inputs: every format comes in as Pillow reads it, and each pipeline does with it what it should."""

import base64

import numpy as np
import pytest
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

from support import CHECKPOINTS, config, file_of, opened, pixels, sent, slope, spot, waves

PROMPT = "a cat on a mat"
QUICK = {"num_inference_steps": 4, "seed": 11, "scheduler": "DDIMScheduler"}
SIDE = 64
MODELS = {
    "sd_base": ("sd2_base", {}),
    "small": ("sd2_base", {"max_pixels": str(SIDE * SIDE)}),
    "sd_depth": ("sd2_depth", {}),
    "sd_inpaint": ("sd2_inpaint", {}),
    "sd_upscale": ("x4_upscaler", {}),
    "in_pieces": ("x4_upscaler", {"max_pixels": "4096"}),
    "checked": ("sd1_safety", {}),
    "unchecked": ("sd1_safety", {"safety_checker": "off"}),
}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    for name, (checkpoint, parameters) in MODELS.items():
        repository.add(name, config({"numerics": "exact", **parameters}), checkpoint=CHECKPOINTS / checkpoint)
    client.load(*MODELS)


def array(image):
    return np.asarray(image.convert("RGB")).astype(np.int64)


@pytest.fixture
def received(client):
    """A function that tells the pixels that the server sees in a text: a mask that is black all over keeps them all."""
    black = sent(Image.new("L", (SIDE, SIDE)))

    def run(text):
        gen_args = {**QUICK, "num_inference_steps": 1, "height": SIDE, "width": SIDE}
        answer = client.infer("sd_base", prompt=PROMPT, image=text, mask_image=black, gen_args=gen_args)
        return pixels(answer.picture)

    return run


PICTURE = waves(SIDE, SIDE)
PALETTE = PICTURE.quantize(40)
GREY = PICTURE.convert("L")
FILES = {
    "png": file_of(PICTURE),
    "png_grey": file_of(GREY),
    "png_bilevel": file_of(spot(SIDE, SIDE).convert("1")),
    "png_palette": file_of(PALETTE),
    "png_palette_of_4_bits": file_of(PICTURE.quantize(9), bits=4),
    "jpeg": file_of(PICTURE, "JPEG", quality=90),
    "jpeg_grey": file_of(GREY, "JPEG"),
    "jpeg_progressive": file_of(PICTURE, "JPEG", progressive=True),
    "jpeg_444": file_of(PICTURE, "JPEG", subsampling=0),
    "webp": file_of(PICTURE, "WEBP"),
    "webp_lossless": file_of(PICTURE, "WEBP", lossless=True),
    "bmp": file_of(PICTURE, "BMP"),
    "bmp_palette": file_of(PALETTE, "BMP"),
    "gif": file_of(PICTURE, "GIF"),
    "gif_animated": file_of(PICTURE, "GIF", save_all=True, append_images=[waves(SIDE, SIDE, 2.0)] * 3),
    "webp_animated": file_of(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[waves(SIDE, SIDE, 2.0)] * 3),
    "tiff": file_of(PICTURE, "TIFF"),
    "tiff_lzw": file_of(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff_deflate": file_of(GREY, "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_in_as_pillow_reads_it(received, name):
    assert np.array_equal(received(sent(FILES[name])), array(opened(FILES[name])))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(received, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = file_of(PICTURE, kind, exif=exif)
    upright = array(ImageOps.exif_transpose(opened(file)))
    assert np.array_equal(upright, array(opened(file))) == (orientation == 1)
    assert np.array_equal(received(sent(file)), upright)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(received, kind):
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[16:] = 128
    alpha[32:] = 255
    image = PICTURE.copy()
    image.putalpha(Image.fromarray(alpha))
    seen = received(sent(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    colours = array(PICTURE)
    assert (seen[:16] == 255).all()
    assert np.abs(seen[16:32] - (colours[16:32] * 128 + 255 * 127) / 255).max() <= 1
    assert np.array_equal(seen[32:], colours[32:])


def test_a_transparent_colour_is_white(received):
    file = file_of(PALETTE, transparency=3)
    seen = received(sent(file))
    hidden = np.asarray(PALETTE) == 3
    assert hidden.any()
    assert (seen[hidden] == 255).all()
    assert np.array_equal(seen[~hidden], array(PALETTE)[~hidden])


def test_16_bits(received):
    deep = (np.arange(SIDE * SIDE, dtype=np.uint32) * 16 % 65536).astype(np.uint16).reshape(SIDE, SIDE)
    seen = received(sent(Image.fromarray(deep)))
    assert np.array_equal(seen, np.repeat((deep >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "form",
    [
        "data:image/png;base64,{}",
        "DATA:image/jpeg;charset=utf-8;BASE64,{}",
        "data:;base64,{}",
        " \n{}\n",
    ],
)
def test_data_url(received, form):
    """What the URL says of the format does not matter: the file does."""
    assert np.array_equal(received(form.format(sent(PICTURE))), array(PICTURE))


def test_base64_in_lines_and_without_padding(received):
    file = file_of(PICTURE) + b"\0"
    while len(file) % 3 == 0:
        file += b"\0"
    lines = base64.encodebytes(file).decode()
    assert "\n" in lines.strip() and "=" in lines
    for text in (lines, lines.replace("\n", "\r\n"), lines.replace("=", "")):
        assert np.array_equal(received(text), array(PICTURE))


@pytest.mark.parametrize("model", ["sd_base", "sd_inpaint"])
def test_keep_unmasked(client, model):
    """Where the mask is black the picture stays as it was, to the byte, unless diffusers' own picture is asked for."""
    image, mask = waves(SIDE, SIDE), spot(SIDE, SIDE)
    request = dict(prompt=PROMPT, image=sent(image), mask_image=sent(mask))
    default = client.infer(model, **request, gen_args=QUICK)
    kept = client.infer(model, **request, gen_args={**QUICK, "keep_unmasked": True})
    theirs = client.infer(model, **request, gen_args={**QUICK, "keep_unmasked": False})
    white = np.asarray(mask) > 127
    assert np.array_equal(pixels(default.picture), pixels(kept.picture))
    assert np.array_equal(pixels(kept.picture)[~white], array(image)[~white])
    assert np.array_equal(pixels(kept.picture)[white], pixels(theirs.picture)[white])
    assert not np.array_equal(pixels(theirs.picture)[~white], array(image)[~white])
    assert not np.array_equal(pixels(kept.picture)[white], array(image)[white])


def test_keep_unmasked_of_a_crop(client):
    """With `padding_mask_crop` the picture keeps its own size, and what was outside the crop."""
    image, mask = waves(120, 90), Image.new("L", (120, 90))
    mask.paste(255, (70, 20, 100, 50))
    gen_args = {**QUICK, "padding_mask_crop": 8}
    answer = client.infer("sd_base", prompt=PROMPT, image=sent(image), mask_image=sent(mask), gen_args=gen_args)
    seen, white = pixels(answer.picture), np.asarray(mask) > 127
    assert seen.shape == (90, 120, 3)
    assert np.array_equal(seen[~white], array(image)[~white])
    assert not np.array_equal(seen[white], array(image)[white])


@pytest.mark.parametrize("gen_args", [{}, {"padding_mask_crop": 8}])
def test_a_mask_that_is_black_all_over(client, gen_args):
    """There is nothing to repaint: the picture itself, or a clear refusal."""
    black = Image.new("L", (SIDE, SIDE))
    request = dict(prompt=PROMPT, image=sent(PICTURE), mask_image=sent(black), gen_args={**QUICK, **gen_args})
    if gen_args:
        assert "mask_image" in client.refused("sd_base", **request)
    else:
        assert np.array_equal(pixels(client.infer("sd_base", **request).picture), array(PICTURE))


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGB", "RGBA", "JPEG"])
def test_a_mask_of_any_kind(client, kind):
    mask = spot(SIDE, SIDE)
    request = dict(prompt=PROMPT, image=sent(PICTURE), gen_args=QUICK)
    usual = client.infer("sd_base", **request, mask_image=sent(mask))
    text = sent(mask, "JPEG", quality=100) if kind == "JPEG" else sent(mask.convert(kind))
    assert np.array_equal(pixels(client.infer("sd_base", **request, mask_image=text).picture), pixels(usual.picture))


def test_an_image_makes_it_image_to_image(client):
    text = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK)
    little = client.infer("sd_base", prompt=PROMPT, image=sent(waves(72, 90)), gen_args={**QUICK, "strength": 0.25})
    half = client.infer("sd_base", prompt=PROMPT, image=sent(waves(72, 90)), gen_args={**QUICK, "strength": 0.5})
    usual = client.infer("sd_base", prompt=PROMPT, image=sent(waves(72, 90)), gen_args=QUICK)
    assert [each.parameters["steps_run"] for each in (text, little, half, usual)] == [4, 1, 2, 3]
    assert opened(text.picture).size == (SIDE, SIDE)
    assert {opened(each.picture).size for each in (little, half, usual)} == {(72, 88)}
    assert len({pixels(each.picture).tobytes() for each in (little, half, usual)}) == 3


def test_a_batch_of_pictures(client):
    images = [sent(waves(SIDE, SIDE, phase)) for phase in (0.0, 1.0)] + [sent(waves(80, 48))]
    gen_args = [{**QUICK, "seed": seed} for seed in (1, 2, 3)]
    together = client.infer("sd_base", prompt=[PROMPT] * 3, image=images, gen_args=gen_args)
    assert together.shape == [3, 1]
    for image, args, pictures in zip(images, gen_args, together.pictures, strict=True):
        assert client.infer_http("sd_base", prompt=PROMPT, image=image, gen_args=args).picture == pictures[0]


def test_a_depth_map_of_ones_own(client):
    request = dict(prompt=PROMPT, image=sent(PICTURE), gen_args=QUICK)
    estimated = client.infer("sd_depth", **request)
    own = client.infer("sd_depth", **request, depth_map=sent(slope(40, 30)))
    assert not np.array_equal(pixels(own.picture), pixels(estimated.picture))
    deep = Image.fromarray(np.asarray(slope(40, 30)).astype(np.uint16) * 257)
    of_16_bits = client.infer("sd_depth", **request, depth_map=sent(deep))
    # The same depths but for the rounding of float32, which comes to a byte here and there.
    assert np.abs(pixels(of_16_bits.picture) - pixels(own.picture)).max() <= 1
    assert "`depth_map`" in client.refused("sd_depth", **request, depth_map=sent(PICTURE))


# A prompt and seeds of which the first is flagged and the second is not (the golden `sd1_safety/one-of-two-rows`).
FLAGGED = dict(prompt="a photo of a cat sitting on a red chair", gen_args={"num_inference_steps": 4, "seed": 126})
KEPT = dict(prompt="the city skyline at sunset, wow! 4k!!", gen_args={"num_inference_steps": 4, "seed": 122})


def test_safety_checker(client, server):
    flagged, kept = client.infer("checked", **FLAGGED), client.infer("checked", **KEPT)
    assert flagged.parameters["nsfw_content_detected"] is True
    assert kept.parameters["nsfw_content_detected"] is False
    assert (pixels(flagged.picture) == 0).all()
    assert pixels(kept.picture).std() > 1
    both = client.infer("checked", **{key: [FLAGGED[key], KEPT[key]] for key in FLAGGED})
    assert both.parameters["nsfw_content_detected"] == "true,false"
    assert both.pictures == [[flagged.picture], [kept.picture]]

    unchecked = client.infer("unchecked", **FLAGGED)
    assert "nsfw_content_detected" not in unchecked.parameters
    assert pixels(unchecked.picture).std() > 1
    assert np.array_equal(pixels(client.infer("unchecked", **KEPT).picture), pixels(kept.picture))
    warnings = [line for line in server.log().splitlines() if line.startswith("W") and "safety_checker" in line]
    assert warnings and all("unchecked" in line for line in warnings)


def test_a_flagged_picture_shows_nothing_of_the_input(client):
    """What the mask keeps of the input stays black too where the checker says so."""
    request = dict(prompt=FLAGGED["prompt"], image=sent(PICTURE), mask_image=sent(spot(SIDE, SIDE)))
    answers = [
        client.infer("checked", **request, gen_args={"num_inference_steps": 2, "seed": seed}) for seed in range(20)
    ]
    flags = [answer.parameters["nsfw_content_detected"] for answer in answers]
    assert [bool((pixels(answer.picture) == 0).all()) for answer in answers] == flags
    assert set(flags) == {False, True}


def test_upscaler_in_pieces(client):
    """A picture that is larger than `max_pixels` is made in pieces, and that is said."""
    request = dict(prompt=PROMPT, image=sent(waves(48, 40)), gen_args=QUICK)
    whole, pieces = client.infer("sd_upscale", **request), client.infer("in_pieces", **request)
    assert (whole.parameters["unet_tiles"], whole.parameters["vae_tiles"]) == (1, 1)
    assert pieces.parameters["unet_tiles"] > 1 and pieces.parameters["vae_tiles"] > 1
    assert opened(whole.picture).size == opened(pieces.picture).size == (192, 160)
    assert client.infer_http("in_pieces", **request).picture == pieces.picture
    small = client.infer("in_pieces", prompt=PROMPT, image=sent(waves(16, 16)), gen_args=QUICK)
    assert (small.parameters["unet_tiles"], small.parameters["vae_tiles"]) == (1, 1)
    other = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK)
    assert not {"unet_tiles", "vae_tiles"} & set(other.parameters)


IMAGE = sent(PICTURE)
MASK = sent(spot(SIDE, SIDE))
REFUSED = {
    "depth without image": ("sd_depth", {}, {}, ["image"]),
    "upscale without image": ("sd_upscale", {}, {}, ["image"]),
    "inpaint without image": ("sd_inpaint", {"mask_image": MASK}, {}, ["image"]),
    "inpaint without mask_image": ("sd_inpaint", {"image": IMAGE}, {}, ["mask_image"]),
    "mask_image without image": ("sd_base", {"mask_image": MASK}, {}, ["`mask_image`", "`image`"]),
    "depth_map for text to image": ("sd_base", {"depth_map": MASK}, {}, ["depth_map"]),
    "mask_image for depth": ("sd_depth", {"image": IMAGE, "mask_image": MASK}, {}, ["mask_image"]),
    "depth_map for inpaint": ("sd_inpaint", {"image": IMAGE, "mask_image": MASK, "depth_map": MASK}, {}, ["depth_map"]),
    "mask_image for upscale": ("sd_upscale", {"image": IMAGE, "mask_image": MASK}, {}, ["mask_image"]),
    "strength without image": ("sd_base", {}, {"strength": 0.5}, ["`strength`"]),
    "strength for upscale": ("sd_upscale", {"image": IMAGE}, {"strength": 0.5}, ["`strength`"]),
    "strength beyond 1": ("sd_base", {"image": IMAGE}, {"strength": 1.5}, ["`strength`", "0 to 1"]),
    "strength that leaves no step": ("sd_base", {"image": IMAGE}, {"strength": 0.2}, ["`strength`", "4 steps"]),
    "strength 0 for depth": ("sd_depth", {"image": IMAGE}, {"strength": 0}, ["`strength`"]),
    "strength 0 for inpaint": ("sd_inpaint", {"image": IMAGE, "mask_image": MASK}, {"strength": 0}, ["`strength`"]),
    "height with image": ("sd_base", {"image": IMAGE}, {"height": 64}, ["`height`"]),
    "width for depth": ("sd_depth", {"image": IMAGE}, {"width": 64}, ["`width`"]),
    "keep_unmasked without mask": ("sd_base", {"image": IMAGE}, {"keep_unmasked": False}, ["`keep_unmasked`"]),
    "padding_mask_crop without mask": ("sd_base", {"image": IMAGE}, {"padding_mask_crop": 8}, ["`padding_mask_crop`"]),
    "padding_mask_crop of two sizes": (
        "sd_base",
        {"image": IMAGE, "mask_image": sent(spot(32, 32))},
        {"padding_mask_crop": 8},
        ["`padding_mask_crop`", "64x64", "32x32"],
    ),
    "noise_level for depth": ("sd_depth", {"image": IMAGE}, {"noise_level": 20}, ["`noise_level`"]),
    "noise_level beyond the model's": ("sd_upscale", {"image": IMAGE}, {"noise_level": 351}, ["`noise_level`", "350"]),
    "image of one latent less": ("sd_base", {"image": sent(waves(64, 7))}, {}, ["`image`", "64x7"]),
    "image beyond max_pixels": ("small", {"image": sent(waves(72, 64))}, {}, ["`image`", "4096"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(client, case):
    model, pictures, gen_args, words = REFUSED[case]
    message = client.refused(model, prompt=PROMPT, **pictures, gen_args={**QUICK, **gen_args})
    for word in words:
        assert word in message
    assert client.infer("sd_base", prompt=PROMPT, gen_args={"num_inference_steps": 1}).shape == [1, 1]


def test_fewer_pictures_than_prompts(client):
    client.refused("sd_base", prompt=[PROMPT] * 2, image=[IMAGE], gen_args=[QUICK] * 2)


def test_inputs_that_the_configuration_does_not_list_are_refused(repository, client):
    """A configuration of before pictures came in: three inputs, and these three alone."""
    repository.add("text_only", config({"numerics": "exact"}, dims="[ 1 ]"))
    client.load("text_only")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("text_only", prompt=PROMPT, image=IMAGE, gen_args=QUICK)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert client.infer("text_only", prompt=PROMPT, gen_args=QUICK).shape == [1, 1]
