"""Images as arrays, and how much two of them differ."""

import math

import numpy as np
from PIL import Image


def read(path):
    """The pixels of an image file, uint8 `[height, width, 3]`."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def write(path, pixels):
    """Writes uint8 `[height, width]` or `[height, width, 3]` as a PNG."""
    Image.fromarray(pixels).save(path, "PNG")


def psnr(one, other):
    """The peak signal-to-noise ratio of two uint8 images in dB; infinite if they are equal.

    Raises ValueError if their shapes differ.
    """
    if one.shape != other.shape:
        raise ValueError(f"expected an image of shape {list(other.shape)}, got {list(one.shape)}")
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
