"""Hostile images through the real server: refused fast and without memory; the error names the input, and the next
request succeeds.
"""

import base64
import functools
import pathlib
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from client import image_file, to_base64
from support import CHECKPOINTS, SECRET, check_harmless, config, spot, waves

# Limits of time and memory for a refusal.
SECONDS = 0.1
BYTES = 50e6
# The best of several tries counts, because other programs may slow one down.
TRIES = 3
# Bytes that a bomb decompresses to.
BOMB = 1 << 28

# Input that gets the hostile image -> the model, and the other inputs.
TARGETS = {
    "image": ("sd_base", {}),
    "mask_image": ("sd_base", {"image": to_base64(waves(64, 64))}),
    "depth_map": ("sd_depth", {"image": to_base64(waves(64, 64))}),
}
GOOD = {"image": waves(64, 64), "mask_image": spot(64, 64), "depth_map": spot(64, 64)}
ONE_STEP = {"num_inference_steps": 1, "strength": 1.0, "seed": 1}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    for name, checkpoint in (("sd_base", "sd2_base"), ("sd_depth", "sd2_depth")):
        repository.add(name, config(), checkpoint=CHECKPOINTS / checkpoint)
    client.load("sd_base", "sd_depth")
    for name in TARGETS:
        for _ in range(3):
            serves(client, name)
            # Warms up the path of a refusal.
            with pytest.raises(InferenceServerException):
                infer(client, name, "!")


def infer(client, name, text):
    model, others = TARGETS[name]
    return client.infer(model, prompt=SECRET, gen_args=ONE_STEP, **others, **{name: text})


def serves(client, name):
    assert infer(client, name, to_base64(GOOD[name])).shape == [1, 1]


def chunk(kind, data):
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, depth=8, color=2):
    """Returns a PNG with these chunks after its header."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


@functools.cache
def deflated_zeros(count):
    """Returns `count` zeros, compressed."""
    deflate = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [deflate.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, deflate.compress(bytes(count & 0xFFFFF)), deflate.flush()])


def raster(width, height, bytes_per_pixel):
    """Returns the size of a PNG's raster in bytes: a filter byte before each line."""
    return (width * bytes_per_pixel + 1) * height


def bmp_header(width, height):
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1 << 20, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def tiff_header(width, height):
    """Returns a one-channel 8-bit TIFF that ends after its directory."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, 64)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def jpeg_of_size(width, height):
    """Returns a JPEG with another size in its header (SOF0)."""
    file = bytearray(image_file(waves(64, 64), "JPEG"))
    at = file.index(b"\xff\xc0")
    file[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(file)


def gif_of_frames(count):
    frame = (
        b"\x21\xf9\x04\x00\x00\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 16, 16, 0) + b"\x02\x02\x4c\x01\x00"
    )
    screen = struct.pack("<HHBBB", 16, 16, 0x80, 0, 0)
    return b"GIF89a" + screen + b"\0\0\0\xff\xff\xff" + frame * count + b"\x3b"


def gif_header(width, height):
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + gif_of_frames(1)[13:]


WHOLE_PNG = image_file(Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)))
WHOLE_JPEG = image_file(waves(300, 300), "JPEG", quality=95)
WHOLE_WEBP = image_file(waves(300, 300), "WEBP")
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><text>{SECRET}</text></svg>'.encode()

FILES = {
    "png_cut_in_half": WHOLE_PNG[: len(WHOLE_PNG) // 2],
    "png_cut_in_its_header": WHOLE_PNG[:20],
    "png_signature_only": WHOLE_PNG[:8],
    "jpeg_cut_in_half": WHOLE_JPEG[: len(WHOLE_JPEG) // 2],
    "jpeg_cut_in_its_header": WHOLE_JPEG[:100],
    "jpeg_marker_only": WHOLE_JPEG[:4],
    "webp_cut_in_half": WHOLE_WEBP[: len(WHOLE_WEBP) // 2],
    "png_of_60000_a_side": png(60_000, 60_000, chunk(b"IDAT", deflated_zeros(1 << 20))),
    "png_of_4_billion_a_side": png(2**32 - 1, 2**32 - 1, chunk(b"IDAT", b"")),
    "png_of_0_a_side": png(0, 0, chunk(b"IDAT", deflated_zeros(0))),
    "jpeg_of_60000_a_side": jpeg_of_size(60_000, 60_000),
    "bmp_of_60000_a_side": bmp_header(60_000, 60_000) + bytes(1000),
    "gif_of_60000_a_side": gif_header(60_000, 60_000),
    "tiff_of_60000_a_side": tiff_header(60_000, 60_000),
    # A bomb that its header gives away: 225 million pixels in 660 kB.
    "png_bomb_beyond_the_limit": png(15_000, 15_000, chunk(b"IDAT", deflated_zeros(raster(15_000, 15_000, 3)))),
    # The size in the header is within the limit of an input image; the data are far larger.
    "png_bomb_in_a_text": png(
        64,
        64,
        chunk(b"zTXt", b"comment\0\0" + deflated_zeros(BOMB)),
        chunk(b"IDAT", b"\0\0\0"),
    ),
    "png_bomb_in_a_profile": png(
        64,
        64,
        chunk(b"iCCP", b"profile\0\0" + deflated_zeros(BOMB)),
        chunk(b"IDAT", b"\0\0\0"),
    ),
    "bmp_truncated": bmp_header(4000, 4000) + bytes(1000),
    "tiff_truncated": tiff_header(4000, 4000),
    "gif_of_10000_frames": gif_of_frames(10_000),
    "svg": SVG,
    "text": f"This is not an image, {SECRET}".encode(),
    "zeros": bytes(1000),
}
TEXTS = {
    "empty": "",
    "white_space": " \n\t ",
    "wrong_base64": f"{SECRET}!!!",
    "base64_of_an_url": base64.urlsafe_b64encode(b"\xfb\xff" * 100).decode(),
    "path": f"/etc/{SECRET}",
    "url": f"http://127.0.0.1/{SECRET}.png",
    "data_url_without_comma": f"data:image/png;base64{SECRET}",
    "data_url_without_base64": f"data:image/svg+xml,{SVG.decode()}",
    "not_utf8": b"\xff\xfe\xfd" + SECRET.encode(),
} | {name: base64.b64encode(file).decode() for name, file in FILES.items()}


class Memory:
    """Measures the resident memory of the server's process in bytes."""

    def __init__(self, process):
        self.folder = pathlib.Path("/proc") / str(process.pid)

    def value(self, key):
        found = re.search(rf"^{key}:\s+(\d+) kB", (self.folder / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024

    def start(self):
        """Resets the peak (proc(5), `clear_refs`)."""
        (self.folder / "clear_refs").write_text("5")
        self.before = self.value("VmRSS")

    def growth(self):
        """Returns the peak since `start`, less the memory at `start`."""
        return self.value("VmHWM") - self.before


def refusal(client, name, text):
    """Checks that an input is refused; returns the message and the seconds until it arrived."""
    started = time.perf_counter()
    with pytest.raises(InferenceServerException) as caught:
        infer(client, name, text)
    taken = time.perf_counter() - started
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", caught.value
    return caught.value.message(), taken


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("case", TEXTS)
def test_refused(client, server, name, case):
    check_refused(client, server, name, TEXTS[case])


@pytest.mark.parametrize(
    ("depth", "color", "bytes_per_pixel"), [(8, 0, 1), (8, 2, 3), (16, 6, 8)], ids=["luma", "rgb", "rgba_of_16_bits"]
)
def test_bomb_larger_than_the_model_accepts(client, server, depth, color, bytes_per_pixel):
    """Sends 16 million pixels: an image that is scaled down may have as many, one that is not scaled may not."""
    pixels = chunk(b"IDAT", deflated_zeros(raster(4000, 4000, bytes_per_pixel)))
    bomb = png(4000, 4000, pixels, depth=depth, color=color)
    check_refused(client, server, "image", to_base64(bomb))


def check_refused(client, server, name, text):
    memory = Memory(server.process)
    taken, growth = [], []
    for _ in range(TRIES):
        memory.start()
        message, seconds = refusal(client, name, text)
        taken.append(seconds)
        growth.append(memory.growth())
        assert f"input `{name}`" in message, message
        check_harmless(message)
        for number in range(0, len(text) - 8, max(1, len(text) // 16)):
            part = text[number : number + 8]
            assert isinstance(part, bytes) or part.isspace() or part not in message, message
    model, others = TARGETS[name]
    assert client.refused(model, prompt=SECRET, gen_args=ONE_STEP, **others, **{name: text}) == message
    assert min(taken) < SECONDS, f"took {min(taken) * 1000:.0f} ms"
    assert min(growth) < BYTES, f"took {min(growth) / 1e6:.0f} MB"
    serves(client, name)


def test_memory_measurement_sees_a_long_text(client, server):
    """Checks `Memory` with a text that is too long: Triton has to receive it before the backend refuses it."""
    memory = Memory(server.process)
    memory.start()
    refusal(client, "image", "A" * 120_000_000)
    assert memory.growth() > 100e6


@pytest.mark.parametrize("name", TARGETS)
def test_text_beyond_the_limit(client, name):
    message, _ = refusal(client, name, "A" * (33_554_432 + 1))
    assert f"`{name}`" in message and "33554432" in message
    serves(client, name)


def test_data_after_the_pixels_are_not_read(client):
    """Sends an image of 64 by 64 pixels whose compressed data hold a quarter of a gigabyte."""
    bomb = png(64, 64, chunk(b"IDAT", deflated_zeros(BOMB)))
    assert infer(client, "image", to_base64(bomb)).shape == [1, 1]


def test_hostile_batch_element_fails_only_its_request(client):
    good = dict(prompt="rain", image=to_base64(waves(64, 64)), gen_args={**ONE_STEP, "num_inference_steps": 20})
    alone = client.infer("sd_base", **good)
    _, future = client.start("sd_base", **good)
    images = [to_base64(waves(64, 64)), TEXTS["png_cut_in_half"], to_base64(waves(64, 64))]
    message = client.refused("sd_base", prompt=[SECRET] * 3, image=images, gen_args=[ONE_STEP] * 3)
    assert "batch element 1" in message and "`image`" in message
    assert future.result(timeout=60).image == alone.image
