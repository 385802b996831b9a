"""Cases of image processing by Pillow, and by diffusers' VaeImageProcessor with it. All of it is integer arithmetic."""

import io

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# (width, height) before and after. Where the height loses more than twice as many pixels as the width, Pillow takes the
# columns first; where one side stays, a pass is left out.
SIZES = (
    ((7, 5), (11, 9)),
    ((11, 9), (7, 5)),
    ((64, 64), (17, 13)),
    ((17, 13), (64, 64)),
    ((63, 3), (5, 41)),
    ((3, 63), (41, 5)),
    ((20, 61), (19, 7)),
    ((61, 20), (7, 19)),
    ((33, 33), (33, 8)),
    ((33, 33), (8, 33)),
    ((33, 33), (33, 47)),
    ((33, 33), (47, 33)),
    ((1, 1), (9, 6)),
    ((9, 6), (1, 1)),
    ((1, 64), (3, 2)),
    ((64, 1), (2, 3)),
    ((2, 3), (64, 1)),
    ((40, 30), (20, 10)),
    ((40, 30), (20, 9)),
    ((24, 16), (24, 16)),
)

# Size of the image, the mask's white rectangle (left, top, right, bottom) or None, size of the pipeline, padding.
REGIONS = (
    ((64, 64), (10, 20, 30, 28), (64, 64), 0),
    ((64, 64), (10, 20, 30, 28), (64, 64), 5),
    ((61, 47), (0, 40, 9, 47), (64, 64), 3),
    ((61, 47), (50, 0, 61, 30), (72, 48), 7),
    ((61, 47), (0, 0, 61, 47), (64, 64), 32),
    ((40, 64), (3, 3, 38, 5), (64, 32), 0),
    ((40, 64), (3, 3, 5, 61), (64, 32), 1),
    ((40, 64), (39, 63, 40, 64), (33, 65), 2),
    ((30, 20), (0, 0, 30, 1), (64, 64), 0),
    # An odd number of additional pixels, and fractions of a pixel, which the mask's edge does not hide.
    ((32, 32), (8, 10, 19, 14), (64, 64), 0),
    ((30, 30), (5, 12, 16, 14), (72, 48), 0),
    ((30, 30), (12, 5, 14, 16), (48, 72), 1),
    ((64, 64), None, (64, 64), 0),
    ((64, 64), None, (64, 64), 32),
    ((64, 64), None, (64, 64), 40),
    ((64, 30), None, (64, 64), 20),
    ((30, 64), None, (64, 64), 20),
    ((30, 64), None, (64, 64), 16),
)

# (width, height) of an image and of the size that it is fitted to.
FITTED = (
    ((40, 30), (32, 32)),
    ((30, 40), (32, 32)),
    ((40, 30), (33, 41)),
    ((30, 40), (41, 33)),
    ((37, 11), (24, 25)),
    ((11, 37), (25, 24)),
    ((16, 16), (40, 40)),
    ((20, 10), (40, 20)),
    ((64, 2), (16, 16)),
    ((1, 64), (16, 16)),
)


def noise(seed, width, height, channels=3):
    """Makes random bytes, in which every weight of a filter shows."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(0, 256, (height, width, channels), dtype=torch.uint8, generator=generator).numpy()


def waves(width, height):
    """Makes smooth colors, which a lossy format preserves."""
    y, x = np.mgrid[:height, :width]
    channels = [127 + 100 * np.sin(x / 9 + y / 7), 127 + 100 * np.cos(x / 13), 127 + 100 * np.sin(y / 11)]
    return np.stack(channels, -1).astype(np.uint8)


def tensor(image):
    return torch.from_numpy(np.array(image))


def resizes(tensors):
    for number, (before, after) in enumerate(SIZES):
        source = Image.fromarray(noise(number, *before))
        luma = source.getchannel(0)
        tensors[f"resize/{number}/source"] = tensor(source)
        # A wide range makes the last bits of a float count.
        depth = Image.fromarray(np.array(luma).astype(np.float32) * 257 / 3)
        for name, resample in FILTERS.items():
            tensors[f"resize/{number}/{name}"] = tensor(source.resize(after, resample))
            tensors[f"resize/{number}/{name}/gray"] = tensor(luma.resize(after, resample))
        tensors[f"resize/{number}/bicubic/depth"] = tensor(depth.resize(after, Image.Resampling.BICUBIC))
        yield {"name": f"resize/{number}", "width": after[0], "height": after[1], "filters": list(FILTERS)}


def regions(tensors):
    for number, (size, white, (width, height), pad) in enumerate(REGIONS):
        values = np.zeros(size[::-1], np.uint8)
        if white is not None:
            left, top, right, bottom = white
            values[top:bottom, left:right] = 1
        mask = Image.fromarray(values)
        try:
            region = VaeImageProcessor.get_crop_region(mask, width, height, pad)
            if not (region[0] < region[2] and region[1] < region[3]):
                region = None
        except ZeroDivisionError:
            region = None
        tensors[f"region/{number}/mask"] = tensor(mask)
        yield {"name": f"region/{number}", "width": width, "height": height, "pad": pad, "region": region}


def fitted(tensors):
    processor = VaeImageProcessor()
    for number, (before, (width, height)) in enumerate(FITTED):
        source = Image.fromarray(noise(100 + number, *before))
        name = f"fit/{number}"
        tensors[f"{name}/source"] = tensor(source)
        try:
            tensors[f"{name}/fill"] = tensor(processor.resize(source, height, width, "fill"))
            luma = processor.resize(source.getchannel(0), height, width, "fill")
            tensors[f"{name}/fill/gray"] = tensor(luma.convert("L"))
            fills = True
        except ValueError:  # a side has no pixels left
            fills = False
        tensors[f"{name}/crop"] = tensor(processor.resize(source, height, width, "crop"))
        yield {"name": name, "width": width, "height": height, "fills": fills}


def overlays(tensors):
    processor = VaeImageProcessor()
    for number, (width, height, region) in enumerate(
        ((32, 24, (5, 3, 29, 20)), (32, 24, (0, 0, 32, 24)), (31, 23, None))
    ):
        name = f"overlay/{number}"
        mask = noise(200 + number, width, height, 1)[..., 0]
        # A third black, a third white.
        mask = np.clip(mask.astype(np.int32) * 3 - 255, 0, 255).astype(np.uint8)
        init = Image.fromarray(noise(210 + number, width, height))
        image = Image.fromarray(noise(220 + number, *((32, 32) if region else (width, height))))
        made = processor.apply_overlay(Image.fromarray(mask), init, image, region)
        tensors.update(
            {
                f"{name}/mask": torch.from_numpy(mask),
                f"{name}/init_image": tensor(init),
                f"{name}/image": tensor(image),
                f"{name}/made": tensor(made),
            }
        )
        yield {"name": name, "region": region}
    # Every mask value, with many pairs of samples.
    mask = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 16, 1)
    init, image = noise(230, 16, 256), noise(231, 16, 256)
    made = processor.apply_overlay(Image.fromarray(mask), Image.fromarray(init), Image.fromarray(image))
    tensors.update(
        {
            "overlay/ramp/mask": torch.from_numpy(mask),
            "overlay/ramp/init_image": torch.from_numpy(init),
            "overlay/ramp/image": torch.from_numpy(image),
            "overlay/ramp/made": tensor(made),
        }
    )
    yield {"name": "overlay/ramp", "region": None}


def colors(tensors):
    source = Image.fromarray(noise(300, 64, 64))
    tensors["luma/source"] = tensor(source)
    tensors["luma/made"] = tensor(source.convert("L"))
    tensors["invert/made"] = tensor(ImageOps.invert(source.convert("L")))


def files():
    """Yields name, image, format and options of files that Pillow writes; the tests read only the bytes."""
    width, height = 29, 21
    rgb = waves(width, height)
    alpha = noise(400, width, height, 1)
    luma = Image.fromarray(rgb[..., 0])
    color, other = Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())
    transparent = Image.fromarray(np.concatenate([rgb, alpha], -1))
    palette = color.quantize(16)
    wide = Image.fromarray((rgb[..., 0].astype(np.uint16) << 8) + noise(401, width, height, 1)[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "png-rgb", color, "PNG", {}
    yield "png-rgba", transparent, "PNG", {}
    yield "png-gray", luma, "PNG", {}
    yield "png-gray-alpha", transparent.convert("LA"), "PNG", {}
    yield "png-gray-16", wide, "PNG", {}
    yield "png-gray-1", luma.convert("1"), "PNG", {}
    yield "png-palette", palette, "PNG", {}
    yield "png-palette-trns", palette, "PNG", {"transparency": 3}
    yield "png-palette-alpha", transparent.quantize(32), "PNG", {}
    yield "png-rgb-trns", color, "PNG", {"transparency": tuple(int(v) for v in rgb[3, 3])}
    yield "png-animated", color, "PNG", {"save_all": True, "append_images": [other]}
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        yield f"jpeg-{name}", color, "JPEG", {"subsampling": subsampling, "quality": 60}
    # Colors that change from pixel to pixel show upsampling best.
    yield "jpeg-noise", Image.fromarray(noise(402, width, height)), "JPEG", {"quality": 60}
    yield "jpeg-orientation-6", color, "JPEG", {"exif": exif}
    yield "jpeg-progressive", color, "JPEG", {"progressive": True}
    yield "jpeg-restart", color, "JPEG", {"restart_marker_blocks": 1}
    yield "jpeg-gray", luma, "JPEG", {}
    yield "jpeg-cmyk", color.convert("CMYK"), "JPEG", {}
    yield "webp-lossy", color, "WEBP", {}
    yield "webp-lossy-alpha", transparent, "WEBP", {}
    yield "webp-lossless", color, "WEBP", {"lossless": True}
    yield "webp-animated", color, "WEBP", {"save_all": True, "append_images": [other]}
    yield "webp-orientation-6", color, "WEBP", {"exif": exif}
    yield "bmp-rgb", color, "BMP", {}
    yield "bmp-gray", luma, "BMP", {}
    yield "bmp-palette", palette, "BMP", {}
    yield "gif", palette, "GIF", {}
    yield "gif-transparent", palette, "GIF", {"transparency": 3}
    yield "gif-animated", color, "GIF", {"save_all": True, "append_images": [other]}
    yield "tiff-rgb", color, "TIFF", {}
    yield "tiff-gray-16", wide, "TIFF", {}
    yield "tiff-rgba", transparent, "TIFF", {}
    yield "tiff-lzw", color, "TIFF", {"compression": "tiff_lzw"}
    yield "tiff-deflate", color, "TIFF", {"compression": "tiff_adobe_deflate"}
    yield "tiff-cmyk", color.convert("CMYK"), "TIFF", {}
    yield "tiff-orientation-6", color, "TIFF", {"exif": exif}


def decoded(image):
    """Returns the first frame, upright and in RGB, composited over white; 16 bits keep the upper 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray((np.array(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decodes(tensors):
    for name, image, kind, options in files():
        written = io.BytesIO()
        image.save(written, kind, **options)
        file = written.getvalue()
        name = f"decode/{name}"
        tensors[f"{name}/file"] = torch.frombuffer(bytearray(file), dtype=torch.uint8)
        opened = Image.open(io.BytesIO(file))
        tensors[f"{name}/rgb"] = tensor(decoded(opened))
        is_depth = opened.mode in ("L", "I;16")
        if is_depth:
            tensors[f"{name}/depth"] = tensor(np.array(opened).astype(np.float32))
        yield {"name": name, "bits": {"L": 8, "I;16": 16}.get(opened.mode) if is_depth else None}


def make():
    """Returns the tensors, and the cases by topic."""
    tensors = {}
    manifest = {
        "resize": list(resizes(tensors)),
        "regions": list(regions(tensors)),
        "fitted": list(fitted(tensors)),
        "overlays": list(overlays(tensors)),
        "decode": list(decodes(tensors)),
    }
    colors(tensors)
    return tensors, manifest
