"""The mark of generated images: XMP with IPTC's digital source type, and the arguments, in every file format."""

import base64
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags

from support import config, open_image, pixels

FORMATS = ("png", "jpeg", "webp")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
XMP = "{http://ns.adobe.com/xap/1.0/}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
QUICK = {"num_inference_steps": 2, "seed": 11, "scheduler": "DDIMScheduler"}
HOSTILE = "]]></x:xmpmeta><?xpacket end='w'?> &lt; \" ' \x01\t\r\n\x7f \ufeff 猫 \U0001f600 Exif\0\0 RIFF"


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add("on", config())
    repository.add("off", config({"provenance": "off"}))
    repository.add("bad", config({"provenance": "yes"}))
    client.load("on", "off")


def packet(file):
    """Returns the properties of a file's XMP packet: the texts of the elements of its one description."""
    data = open_image(file).info["xmp"]
    text = data if isinstance(data, str) else data.decode()
    assert text.count("<?xpacket") == 2
    [description] = ElementTree.fromstring(text).findall(f"{RDF}RDF/{RDF}Description")
    assert description.attrib == {f"{RDF}about": ""}
    return {element.tag: element.text for element in description}


def arguments(file):
    """Returns the JSON object of a file: the text chunk of a PNG, else EXIF's UserComment."""
    image = open_image(file)
    if image.format == "PNG":
        return json.loads(image.text["parameters"])
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    return json.loads(comment[8:].decode("utf-16-be"))


def request(output_format, **inputs):
    return {**inputs, "gen_args": {**QUICK, "output_format": output_format}}


@pytest.mark.parametrize("output_format", FORMATS)
def test_marked_file_has_the_pixels_of_an_unmarked_one(client, output_format):
    inputs = request(output_format, prompt=HOSTILE, negative_prompt="<!--")
    marked, unmarked = client.infer("on", **inputs), client.infer("off", **inputs)
    assert np.array_equal(pixels(marked.image), pixels(unmarked.image))
    assert marked.parameters == unmarked.parameters

    properties = packet(marked.image)
    assert properties.keys() == {f"{IPTC}DigitalSourceType", f"{XMP}CreatorTool"}
    assert properties[f"{IPTC}DigitalSourceType"] == GENERATED
    written = arguments(marked.image)
    assert properties[f"{XMP}CreatorTool"] == written["generator"]
    assert (written["prompt"], written["negative_prompt"], written["model"]) == (HOSTILE, "<!--", "on")
    assert written["gen_args"].items() >= {**QUICK, "output_format": output_format}.items()

    plain = open_image(unmarked.image)
    assert not {"xmp", "exif", "XML:com.adobe.xmp"} & plain.info.keys()
    assert ("parameters" in plain.info) == (output_format == "png")
    assert len(unmarked.image) < len(marked.image)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_arguments_of_a_file_reproduce_it(client, output_format):
    first = client.infer("on", **request(output_format, prompt="a cat"))
    written = arguments(first.image)
    again = client.infer("on", **{key: written[key] for key in ("prompt", "negative_prompt", "gen_args")})
    assert again.image == first.image


@pytest.mark.parametrize("output_format", FORMATS)
def test_each_image_of_a_batch_is_marked(client, output_format):
    gen_args = {**QUICK, "output_format": output_format, "num_images_per_prompt": 2}
    images = client.infer("on", prompt=["a cat", "a dog"], gen_args=[gen_args] * 2).images
    for element, prompt in zip(images, ["a cat", "a dog"], strict=True):
        for index, image in enumerate(element):
            assert packet(image)[f"{IPTC}DigitalSourceType"] == GENERATED
            written = arguments(image)
            assert (written["prompt"], written["image_index"]) == (prompt, index)
    assert len({pixels(image).tobytes() for element in images for image in element}) == 4


@pytest.mark.parametrize("output_format", FORMATS)
def test_long_prompt_gives_a_valid_file(client, output_format):
    """Sends texts that together are longer than a segment of JPEG; each alone fits."""
    texts = {"prompt": "猫 " * 10_000, "negative_prompt": "a dog, " * 2_900}
    image = client.infer("on", **request(output_format, **texts)).image
    assert packet(image)[f"{IPTC}DigitalSourceType"] == GENERATED
    written = arguments(image)
    assert written["gen_args"].items() >= QUICK.items()
    assert written["negative_prompt"] == texts["negative_prompt"]
    if output_format == "jpeg":
        assert "prompt" not in written
    else:
        assert written["prompt"] == texts["prompt"]


def test_marked_file_is_an_input_image(client):
    for output_format in FORMATS:
        image = client.infer("on", **request(output_format, prompt="a cat")).image
        again = client.infer("on", **request("png", prompt="a dog", image=base64.b64encode(image)))
        assert open_image(again.image).size == open_image(image).size


def test_bad_value_fails_the_load(client):
    assert "`provenance` must be one of on, off" in client.load_error("bad")
