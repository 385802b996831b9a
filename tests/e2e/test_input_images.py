"""Images as inputs: the server decodes every format as Pillow does, and each pipeline uses its images as it should."""

import base64

import numpy as np
import pytest
from PIL import Image, ImageOps
from tritonclient.utils import InferenceServerException

from client import image_file, to_base64
from support import CHECKPOINTS, config, open_image, pixels, slope, spot, waves

PROMPT = "a cat on a mat"
QUICK = {"num_inference_steps": 4, "seed": 11, "scheduler": "DDIMScheduler"}
SIDE = 64
MODELS = {
    "sd_base": ("sd2_base", {}),
    "small": ("sd2_base", {"max_pixels": str(SIDE * SIDE)}),
    "sd_depth": ("sd2_depth", {}),
    "sd_inpaint": ("sd2_inpaint", {}),
    "sd_upscale": ("x4_upscaler", {}),
    "tiled": ("x4_upscaler", {"max_pixels": "4096"}),
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
    """Returns a function that sends an image and returns the pixels that the server decoded.

    A black mask keeps all pixels of the input.
    """
    black = to_base64(Image.new("L", (SIDE, SIDE)))

    def run(text):
        gen_args = {**QUICK, "num_inference_steps": 1, "height": SIDE, "width": SIDE}
        response = client.infer("sd_base", prompt=PROMPT, image=text, mask_image=black, gen_args=gen_args)
        return pixels(response.image)

    return run


RGB = waves(SIDE, SIDE)
PALETTE = RGB.quantize(40)
LUMA = RGB.convert("L")
FILES = {
    "png": image_file(RGB),
    "png_luma": image_file(LUMA),
    "png_bilevel": image_file(spot(SIDE, SIDE).convert("1")),
    "png_palette": image_file(PALETTE),
    "png_palette_of_4_bits": image_file(RGB.quantize(9), bits=4),
    "jpeg": image_file(RGB, "JPEG", quality=90),
    "jpeg_luma": image_file(LUMA, "JPEG"),
    "jpeg_progressive": image_file(RGB, "JPEG", progressive=True),
    "jpeg_444": image_file(RGB, "JPEG", subsampling=0),
    "webp": image_file(RGB, "WEBP"),
    "webp_lossless": image_file(RGB, "WEBP", lossless=True),
    "bmp": image_file(RGB, "BMP"),
    "bmp_palette": image_file(PALETTE, "BMP"),
    "gif": image_file(RGB, "GIF"),
    "gif_animated": image_file(RGB, "GIF", save_all=True, append_images=[waves(SIDE, SIDE, 2.0)] * 3),
    "webp_animated": image_file(RGB, "WEBP", lossless=True, save_all=True, append_images=[waves(SIDE, SIDE, 2.0)] * 3),
    "tiff": image_file(RGB, "TIFF"),
    "tiff_lzw": image_file(RGB, "TIFF", compression="tiff_lzw"),
    "tiff_deflate": image_file(LUMA, "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_is_decoded_as_pillow_does(received, name):
    assert np.array_equal(received(to_base64(FILES[name])), array(open_image(FILES[name])))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(received, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = image_file(RGB, kind, exif=exif)
    upright = array(ImageOps.exif_transpose(open_image(file)))
    assert np.array_equal(upright, array(open_image(file))) == (orientation == 1)
    assert np.array_equal(received(to_base64(file)), upright)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composited_over_white(received, kind):
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[16:] = 128
    alpha[32:] = 255
    image = RGB.copy()
    image.putalpha(Image.fromarray(alpha))
    seen = received(to_base64(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    colors = array(RGB)
    assert (seen[:16] == 255).all()
    assert np.abs(seen[16:32] - (colors[16:32] * 128 + 255 * 127) / 255).max() <= 1
    assert np.array_equal(seen[32:], colors[32:])


def test_transparent_color_becomes_white(received):
    file = image_file(PALETTE, transparency=3)
    seen = received(to_base64(file))
    hidden = np.asarray(PALETTE) == 3
    assert hidden.any()
    assert (seen[hidden] == 255).all()
    assert np.array_equal(seen[~hidden], array(PALETTE)[~hidden])


def test_16_bits(received):
    deep = (np.arange(SIDE * SIDE, dtype=np.uint32) * 16 % 65536).astype(np.uint16).reshape(SIDE, SIDE)
    seen = received(to_base64(Image.fromarray(deep)))
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
    """Checks that the format in the URL is ignored: the file decides."""
    assert np.array_equal(received(form.format(to_base64(RGB))), array(RGB))


def test_base64_in_lines_and_without_padding(received):
    file = image_file(RGB) + b"\0"
    while len(file) % 3 == 0:
        file += b"\0"
    lines = base64.encodebytes(file).decode()
    assert "\n" in lines.strip() and "=" in lines
    for text in (lines, lines.replace("\n", "\r\n"), lines.replace("=", "")):
        assert np.array_equal(received(text), array(RGB))


@pytest.mark.parametrize("model", ["sd_base", "sd_inpaint"])
def test_keep_unmasked(client, model):
    """Checks that the image keeps every byte where the mask is black, unless the request asks for diffusers' result."""
    image, mask = waves(SIDE, SIDE), spot(SIDE, SIDE)
    request = dict(prompt=PROMPT, image=to_base64(image), mask_image=to_base64(mask))
    default = client.infer(model, **request, gen_args=QUICK)
    kept = client.infer(model, **request, gen_args={**QUICK, "keep_unmasked": True})
    repainted = client.infer(model, **request, gen_args={**QUICK, "keep_unmasked": False})
    white = np.asarray(mask) > 127
    assert np.array_equal(pixels(default.image), pixels(kept.image))
    assert np.array_equal(pixels(kept.image)[~white], array(image)[~white])
    assert np.array_equal(pixels(kept.image)[white], pixels(repainted.image)[white])
    assert not np.array_equal(pixels(repainted.image)[~white], array(image)[~white])
    assert not np.array_equal(pixels(kept.image)[white], array(image)[white])


def test_keep_unmasked_with_a_crop(client):
    """Checks that `padding_mask_crop` keeps the size of the image and all pixels outside the crop."""
    image, mask = waves(120, 90), Image.new("L", (120, 90))
    mask.paste(255, (70, 20, 100, 50))
    gen_args = {**QUICK, "padding_mask_crop": 8}
    response = client.infer(
        "sd_base", prompt=PROMPT, image=to_base64(image), mask_image=to_base64(mask), gen_args=gen_args
    )
    seen, white = pixels(response.image), np.asarray(mask) > 127
    assert seen.shape == (90, 120, 3)
    assert np.array_equal(seen[~white], array(image)[~white])
    assert not np.array_equal(seen[white], array(image)[white])


@pytest.mark.parametrize("gen_args", [{}, {"padding_mask_crop": 8}])
def test_black_mask(client, gen_args):
    """Checks that a mask without white pixels keeps the image or, with a crop, is refused."""
    black = Image.new("L", (SIDE, SIDE))
    request = dict(prompt=PROMPT, image=to_base64(RGB), mask_image=to_base64(black), gen_args={**QUICK, **gen_args})
    if gen_args:
        assert "mask_image" in client.refused("sd_base", **request)
    else:
        assert np.array_equal(pixels(client.infer("sd_base", **request).image), array(RGB))


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGB", "RGBA", "JPEG"])
def test_mask_of_any_mode(client, kind):
    mask = spot(SIDE, SIDE)
    request = dict(prompt=PROMPT, image=to_base64(RGB), gen_args=QUICK)
    usual = client.infer("sd_base", **request, mask_image=to_base64(mask))
    text = to_base64(mask, "JPEG", quality=100) if kind == "JPEG" else to_base64(mask.convert(kind))
    assert np.array_equal(pixels(client.infer("sd_base", **request, mask_image=text).image), pixels(usual.image))


def test_input_image_selects_image_to_image(client):
    text = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK)
    little = client.infer(
        "sd_base", prompt=PROMPT, image=to_base64(waves(72, 90)), gen_args={**QUICK, "strength": 0.25}
    )
    half = client.infer("sd_base", prompt=PROMPT, image=to_base64(waves(72, 90)), gen_args={**QUICK, "strength": 0.5})
    usual = client.infer("sd_base", prompt=PROMPT, image=to_base64(waves(72, 90)), gen_args=QUICK)
    assert [each.parameters["steps_run"] for each in (text, little, half, usual)] == [4, 1, 2, 3]
    assert open_image(text.image).size == (SIDE, SIDE)
    assert {open_image(each.image).size for each in (little, half, usual)} == {(72, 88)}
    assert len({pixels(each.image).tobytes() for each in (little, half, usual)}) == 3


def test_batch_of_images(client):
    images = [to_base64(waves(SIDE, SIDE, phase)) for phase in (0.0, 1.0)] + [to_base64(waves(80, 48))]
    gen_args = [{**QUICK, "seed": seed} for seed in (1, 2, 3)]
    together = client.infer("sd_base", prompt=[PROMPT] * 3, image=images, gen_args=gen_args)
    assert together.shape == [3, 1]
    for image, args, generated in zip(images, gen_args, together.images, strict=True):
        assert client.infer_http("sd_base", prompt=PROMPT, image=image, gen_args=args).image == generated[0]


def test_depth_map_replaces_the_estimate(client):
    request = dict(prompt=PROMPT, image=to_base64(RGB), gen_args=QUICK)
    estimated = client.infer("sd_depth", **request)
    given = client.infer("sd_depth", **request, depth_map=to_base64(slope(40, 30)))
    assert not np.array_equal(pixels(given.image), pixels(estimated.image))
    deep = Image.fromarray(np.asarray(slope(40, 30)).astype(np.uint16) * 257)
    of_16_bits = client.infer("sd_depth", **request, depth_map=to_base64(deep))
    # The depths are equal except for float32 rounding, which changes single bytes by one.
    assert np.abs(pixels(of_16_bits.image) - pixels(given.image)).max() <= 1
    assert "`depth_map`" in client.refused("sd_depth", **request, depth_map=to_base64(RGB))


# The safety checker flags the first request and not the second (the golden `sd1_safety/one-of-two-elements`).
FLAGGED = dict(prompt="a photo of a cat sitting on a red chair", gen_args={"num_inference_steps": 4, "seed": 126})
KEPT = dict(prompt="the city skyline at sunset, wow! 4k!!", gen_args={"num_inference_steps": 4, "seed": 122})


def test_safety_checker(client, server):
    flagged, kept = client.infer("checked", **FLAGGED), client.infer("checked", **KEPT)
    assert flagged.parameters["nsfw_content_detected"] is True
    assert kept.parameters["nsfw_content_detected"] is False
    assert (pixels(flagged.image) == 0).all()
    assert pixels(kept.image).std() > 1
    both = client.infer("checked", **{key: [FLAGGED[key], KEPT[key]] for key in FLAGGED})
    assert both.parameters["nsfw_content_detected"] == "true,false"
    assert both.images == [[flagged.image], [kept.image]]

    unchecked = client.infer("unchecked", **FLAGGED)
    assert "nsfw_content_detected" not in unchecked.parameters
    assert pixels(unchecked.image).std() > 1
    assert np.array_equal(pixels(client.infer("unchecked", **KEPT).image), pixels(kept.image))
    warnings = [line for line in server.log().splitlines() if line.startswith("W") and "safety_checker" in line]
    assert warnings and all("unchecked" in line for line in warnings)


def test_flagged_image_is_black_outside_the_mask_too(client):
    """Checks that a flagged image shows nothing of the input, not even where the mask is black."""
    request = dict(prompt=FLAGGED["prompt"], image=to_base64(RGB), mask_image=to_base64(spot(SIDE, SIDE)))
    responses = [
        client.infer("checked", **request, gen_args={"num_inference_steps": 2, "seed": seed}) for seed in range(20)
    ]
    flags = [response.parameters["nsfw_content_detected"] for response in responses]
    assert [bool((pixels(response.image) == 0).all()) for response in responses] == flags
    assert set(flags) == {False, True}


def test_upscaler_uses_tiles_and_chunks(client):
    """Checks that an image beyond `max_pixels` is generated in tiles and chunks, and that the response reports them."""
    request = dict(prompt=PROMPT, image=to_base64(waves(48, 40)), gen_args=QUICK)
    whole, tiled = client.infer("sd_upscale", **request), client.infer("tiled", **request)
    assert (whole.parameters["unet_tiles"], whole.parameters["vae_chunks"]) == (1, 1)
    assert tiled.parameters["unet_tiles"] > 1 and tiled.parameters["vae_chunks"] > 1
    assert open_image(whole.image).size == open_image(tiled.image).size == (192, 160)
    assert client.infer_http("tiled", **request).image == tiled.image
    small = client.infer("tiled", prompt=PROMPT, image=to_base64(waves(16, 16)), gen_args=QUICK)
    assert (small.parameters["unet_tiles"], small.parameters["vae_chunks"]) == (1, 1)
    other = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK)
    assert not {"unet_tiles", "vae_chunks"} & set(other.parameters)


IMAGE = to_base64(RGB)
MASK = to_base64(spot(SIDE, SIDE))
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
    "strength without steps": ("sd_base", {"image": IMAGE}, {"strength": 0.2}, ["`strength`", "4 steps"]),
    "strength 0 for depth": ("sd_depth", {"image": IMAGE}, {"strength": 0}, ["`strength`"]),
    "strength 0 for inpaint": ("sd_inpaint", {"image": IMAGE, "mask_image": MASK}, {"strength": 0}, ["`strength`"]),
    "height with image": ("sd_base", {"image": IMAGE}, {"height": 64}, ["`height`"]),
    "width for depth": ("sd_depth", {"image": IMAGE}, {"width": 64}, ["`width`"]),
    "keep_unmasked without mask": ("sd_base", {"image": IMAGE}, {"keep_unmasked": False}, ["`keep_unmasked`"]),
    "padding_mask_crop without mask": ("sd_base", {"image": IMAGE}, {"padding_mask_crop": 8}, ["`padding_mask_crop`"]),
    "padding_mask_crop of two sizes": (
        "sd_base",
        {"image": IMAGE, "mask_image": to_base64(spot(32, 32))},
        {"padding_mask_crop": 8},
        ["`padding_mask_crop`", "64x64", "32x32"],
    ),
    "noise_level for depth": ("sd_depth", {"image": IMAGE}, {"noise_level": 20}, ["`noise_level`"]),
    "noise_level beyond the model's": ("sd_upscale", {"image": IMAGE}, {"noise_level": 351}, ["`noise_level`", "350"]),
    "image smaller than one latent": ("sd_base", {"image": to_base64(waves(64, 7))}, {}, ["`image`", "64x7"]),
    "image beyond max_pixels": ("small", {"image": to_base64(waves(72, 64))}, {}, ["`image`", "4096"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(client, case):
    model, images, gen_args, words = REFUSED[case]
    message = client.refused(model, prompt=PROMPT, **images, gen_args={**QUICK, **gen_args})
    for word in words:
        assert word in message
    assert client.infer("sd_base", prompt=PROMPT, gen_args={"num_inference_steps": 1}).shape == [1, 1]


def test_fewer_images_than_prompts(client):
    client.refused("sd_base", prompt=[PROMPT] * 2, image=[IMAGE], gen_args=[QUICK] * 2)


def test_input_that_the_configuration_does_not_list_is_refused(repository, client):
    """Sends an image to a model whose configuration lists only the three text inputs."""
    repository.add("text_only", config({"numerics": "exact"}, dims="[ 1 ]"))
    client.load("text_only")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("text_only", prompt=PROMPT, image=IMAGE, gen_args=QUICK)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert client.infer("text_only", prompt=PROMPT, gen_args=QUICK).shape == [1, 1]
