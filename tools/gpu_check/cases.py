"""The goldens of diffusers that the check uses: a few cases of each pipeline."""

import json

from safetensors.numpy import load_file

import images
from libraries import ROOT

GOLDENS = ROOT / "tests" / "data" / "goldens"
# Each pipeline: its group of goldens and two cases; --quick uses the first.
CASES = {
    "text to image": ("images", ["sd2_base/dpmsolvermultistep-guidance7.5-negative-72x48", "sd1/weighted-clip-skip"]),
    "image to image": (
        "image_to_image",
        ["sd2_base/pndm-guidance7.5-72x48-strength0.8", "sd2_base/ddim-guidance1.0-53x83-strength1.0"],
    ),
    "depth to image": (
        "depth_to_image",
        ["sd2_depth/ddim-guidance7.5-72x48-strength0.8", "sd2_depth/own-depth-map"],
    ),
    "inpaint, 9 channels": (
        "inpaint",
        [
            "sd2_inpaint/pndm-guidance7.5-72x48-strength1.0",
            "sd2_inpaint/dpmsolvermultistep-guidance1.0-53x83-strength0.8",
        ],
    ),
    "inpaint, 4 channels": (
        "inpaint",
        ["sd2_base/ddim-guidance7.5-72x48-strength0.8", "sd2_base/pndm-guidance1.0-53x83-strength1.0"],
    ),
    "upscale": (
        "upscale",
        ["x4_upscaler/ddim-guidance9.0-waves-20x28", "x4_upscaler/dpmsolvermultistep-guidance1.0-waves-27x18"],
    ),
}
IMAGES = ("image", "mask_image", "depth_map")


def load(quick=False):
    """Yields (pipeline, case, the recorded tensors of its group)."""
    for pipeline, (group, names) in CASES.items():
        cases = {case["name"]: case for case in json.loads((GOLDENS / f"{group}.json").read_text())["cases"]}
        tensors = load_file(GOLDENS / f"{group}.safetensors")
        for name in names[: 1 if quick else None]:
            yield pipeline, cases[name], tensors


def with_files(case, tensors, folder):
    """The batch element of a case with its input images as files in `folder`."""
    (element,) = case["elements"]
    element = dict(element)
    for key in IMAGES:
        if element.get(key) is not None:
            file = folder / f"{case['name'].replace('/', '-')}-{key}.png"
            images.write(file, tensors[f"inputs/{element[key]}"])
            element[key] = file
    return element


def expected(case, tensors):
    """The image of diffusers, uint8 `[height, width, 3]`."""
    (image,) = tensors[f"{case['name']}/0"]
    return image
