"""Pictures whose depth is recorded, and how transformers and diffusers make it."""

import numpy as np
import torch
from PIL import Image
from transformers import DPTImageProcessor

CHECKPOINT = "sd2_depth"

# Width and height of the pictures.
PICTURES = {"square": (64, 64), "wide": (97, 53), "tall": (40, 119), "small": (11, 9)}

# Those whose depth is estimated, with width and height of the latents that it is brought to. diffusers takes an eighth of
# the picture, rounded down; the sizes beyond that are there for the interpolation.
LATENTS = {"square": [(8, 8)], "wide": [(12, 6), (3, 20), (1, 2)], "tall": [(5, 14), (11, 23)]}

# Other preprocessor configurations, over a picture above: what is not named is the class's default.
PROCESSORS = [
    ("bicubic", "wide", {"size": {"height": 24, "width": 16}}),
    ("nearest", "wide", {"size": 20, "resample": 0}),
    ("lanczos", "tall", {"size": [16, 24], "resample": 1}),
    ("keep_aspect_ratio", "wide", {"size": 20, "keep_aspect_ratio": True, "resample": 2}),
    ("ensure_multiple_of", "tall", {"size": 20, "keep_aspect_ratio": True, "ensure_multiple_of": 8, "resample": 2}),
    ("no_rescale", "tall", {"size": 16, "do_rescale": False, "image_mean": [120.5, 110.0, 100.25], "image_std": 60.1}),
    ("no_normalize", "tall", {"size": 16, "do_normalize": False, "rescale_factor": 0.0078}),
    ("imagenet", "wide", {"size": 16, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    ("as_it_is", "small", {"do_resize": False, "do_rescale": False, "do_normalize": False}),
]

# Depth maps as a user gives them: height and width of the map and of the latents.
GIVEN = [((33, 47), (8, 8)), ((5, 4), (9, 16)), ((16, 24), (16, 24)), ((1, 7), (3, 5))]


def picture(number, width, height):
    """Slopes, an edge and noise, u8 [height, width, 3]: something for every filter to get wrong."""
    random = np.random.default_rng(600 + number)
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([255 * x / width, 255 * y / height, 255 * (x * height > y * width)], axis=-1)
    return np.clip(planes * 0.7 + random.integers(0, 77, planes.shape), 0, 255).astype(np.uint8)


def mask(pipeline, depth, width, height):
    """`prepare_depth_map` for one picture without guidance; it reads the size off the picture."""
    factor = pipeline.vae_scale_factor
    size_only = Image.new("RGB", (width * factor, height * factor))
    return pipeline.prepare_depth_map(size_only, depth, 1, False, torch.float32, torch.device("cpu"))


def estimate(pipeline, image):
    """`pixel_values` and `predicted_depth` as `prepare_depth_map` makes them on its way."""
    pixel_values = pipeline.feature_extractor(images=[image], return_tensors="pt").pixel_values
    return pixel_values, pipeline.depth_estimator(pixel_values).predicted_depth


def record(pipeline):
    """All tensors, and the cases that say which belong together."""
    tensors, estimates, processors, given = {}, [], [], []
    images = {}
    for number, (name, (width, height)) in enumerate(PICTURES.items()):
        pixels = picture(number, width, height)
        images[name] = Image.fromarray(pixels)
        tensors[f"{name}/picture"] = torch.from_numpy(pixels)
    for name, sizes in LATENTS.items():
        tensors[f"{name}/pixel_values"], depth = estimate(pipeline, images[name])
        tensors[f"{name}/predicted_depth"] = depth
        for width, height in sizes:
            tensors[f"{name}/{width}x{height}"] = mask(pipeline, depth, width, height)
        # The size of diffusers' own choice comes from one call that does all.
        width, height = (side // pipeline.vae_scale_factor for side in PICTURES[name])
        whole = pipeline.prepare_depth_map(images[name], None, 1, False, torch.float32, torch.device("cpu"))
        assert torch.equal(whole, tensors[f"{name}/{width}x{height}"])
        estimates.append({"name": name, "latents": [list(size) for size in sizes]})
    for name, image, config in PROCESSORS:
        made = DPTImageProcessor(**config)(images=[images[image]], return_tensors="pt").pixel_values
        # diffusers takes them to the pipeline's dtype next.
        tensors[f"processors/{name}"] = made.to(torch.float32)
        processors.append({"name": name, "picture": f"{image}/picture", "config": config})
    for number, ((rows, columns), (height, width)) in enumerate(GIVEN):
        depth = torch.rand((rows, columns), generator=torch.Generator("cpu").manual_seed(610 + number)) * 60000
        tensors[f"given/{number}/map"] = depth
        tensors[f"given/{number}/mask"] = mask(pipeline, depth.unsqueeze(0), width, height)
        given.append({"name": f"given/{number}", "latents": [width, height]})
    return tensors, {"checkpoint": CHECKPOINT, "estimates": estimates, "processors": processors, "given": given}
