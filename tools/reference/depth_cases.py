"""Cases of depth estimation: images, and how transformers and diffusers process them."""

import numpy as np
import torch
from PIL import Image
from transformers import DPTImageProcessor

CHECKPOINT = "sd2_depth"

# Width and height of the images.
IMAGES = {"square": (64, 64), "wide": (97, 53), "tall": (40, 119), "small": (11, 9)}

# Images whose depth is estimated, with the width and height of the latents. diffusers uses an eighth of the image,
# rounded down; the other sizes test the interpolation.
LATENTS = {"square": [(8, 8)], "wide": [(12, 6), (3, 20), (1, 2)], "tall": [(5, 14), (11, 23)]}

# Other preprocessor configurations, each with one of the images. Missing keys have the default of the class.
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

# Depth maps of a request: height and width of the map and of the latents.
GIVEN = [((33, 47), (8, 8)), ((5, 4), (9, 16)), ((16, 24), (16, 24)), ((1, 7), (3, 5))]


def make_image(number, width, height):
    """Makes an image u8 [height, width, 3] with slopes, an edge and noise, which show an error of any filter."""
    random = np.random.default_rng(600 + number)
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([255 * x / width, 255 * y / height, 255 * (x * height > y * width)], axis=-1)
    return np.clip(planes * 0.7 + random.integers(0, 77, planes.shape), 0, 255).astype(np.uint8)


def mask(pipeline, depth, width, height):
    """Calls `prepare_depth_map` for one image without guidance; it takes the size from the image."""
    factor = pipeline.vae_scale_factor
    size_only = Image.new("RGB", (width * factor, height * factor))
    return pipeline.prepare_depth_map(size_only, depth, 1, False, torch.float32, torch.device("cpu"))


def estimate(pipeline, image):
    """Returns `pixel_values` and `predicted_depth`, the intermediate results of `prepare_depth_map`."""
    pixel_values = pipeline.feature_extractor(images=[image], return_tensors="pt").pixel_values
    return pixel_values, pipeline.depth_estimator(pixel_values).predicted_depth


def record(pipeline):
    """Returns all tensors, and the cases that name them."""
    tensors, estimates, processors, given = {}, [], [], []
    images = {}
    for number, (name, (width, height)) in enumerate(IMAGES.items()):
        pixels = make_image(number, width, height)
        images[name] = Image.fromarray(pixels)
        tensors[f"{name}/image"] = torch.from_numpy(pixels)
    for name, sizes in LATENTS.items():
        tensors[f"{name}/pixel_values"], depth = estimate(pipeline, images[name])
        tensors[f"{name}/predicted_depth"] = depth
        for width, height in sizes:
            tensors[f"{name}/{width}x{height}"] = mask(pipeline, depth, width, height)
        # For the size that diffusers chooses, one call does everything.
        width, height = (side // pipeline.vae_scale_factor for side in IMAGES[name])
        whole = pipeline.prepare_depth_map(images[name], None, 1, False, torch.float32, torch.device("cpu"))
        assert torch.equal(whole, tensors[f"{name}/{width}x{height}"])
        estimates.append({"name": name, "latents": [list(size) for size in sizes]})
    for name, image, config in PROCESSORS:
        made = DPTImageProcessor(**config)(images=[images[image]], return_tensors="pt").pixel_values
        # diffusers then converts them to the pipeline's dtype.
        tensors[f"processors/{name}"] = made.to(torch.float32)
        processors.append({"name": name, "image": f"{image}/image", "config": config})
    for number, (size, (height, width)) in enumerate(GIVEN):
        depth = torch.rand(size, generator=torch.Generator("cpu").manual_seed(610 + number)) * 60000
        tensors[f"given/{number}/map"] = depth
        tensors[f"given/{number}/mask"] = mask(pipeline, depth.unsqueeze(0), width, height)
        given.append({"name": f"given/{number}", "latents": [width, height]})
    return tensors, {"checkpoint": CHECKPOINT, "estimates": estimates, "processors": processors, "given": given}
