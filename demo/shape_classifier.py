"""Finds the objects and the background in an image of the demo's models, with color masks, areas and outlines.

No neural network is involved.

    shape_classifier.objects(image)      # {"red": FoundObject(shape="circle", area=0.09, x=0.5, y=0.4, mask=...)}
    shape_classifier.background(image)   # "green"

Images are uint8 arrays [height, width, 3].
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import fft, ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

import scenes

# A patch with a smaller share of the image is not an object but an edge between two colors.
MIN_AREA = 0.008
# Shape -> its number of corners, and the strength of that harmonic in the outline: the median of 120 drawn shapes. A
# circle has none of these harmonics, so the limit between a shape and a circle is half of the strength.
CORNERS = {"triangle": (3, 0.29), "square": (4, 0.15), "star": (5, 0.31)}
# Objects closer than this number of pixels touch: one may hide a part of the other.
TOUCH_DISTANCE = 5
# Pixels on the outline of the object in front have mixed colors; the width of this line.
MIXED_WIDTH = 2
# The side of the masks in which shapes are compared.
TEMPLATE_SIDE = 64


@dataclass(frozen=True)
class FoundObject:
    """An object: its shape, its area as a share of the image, its center in shares of the sides, its mask."""

    shape: str
    area: float
    x: float
    y: float
    mask: np.ndarray


def _palette():
    """Returns all colors that a pixel may have, and the meaning of each: a list of (kind, name), float64 [n, 3]."""
    names, colors = [], []
    for name, color in scenes.COLORS.items():
        for light in (1.05, 0.95):
            names.append(("object", name))
            colors.append(np.clip(np.array(color) * light, 0, 255))
    for name, color in scenes.BACKGROUNDS.items():
        for light in (1.03, 0.95, 0.84, 0.76):
            names.append(("background", name))
            colors.append(np.clip(np.array(color) * light, 0, 255))
    return names, np.array(colors, np.float64)


NAMES, PALETTE = _palette()


def nearest_colors(image):
    """Returns the index of the nearest color of the palette for each pixel, [height, width]."""
    pixels = image.reshape(-1, 3).astype(np.float64)
    distances = (pixels**2).sum(1)[:, None] - 2 * pixels @ PALETTE.T + (PALETTE**2).sum(1)
    return distances.argmin(1).reshape(image.shape[:2])


def patches(image):
    """Finds the largest patch of each object color and fills its holes: {color: bool [height, width]}."""
    indices = nearest_colors(image)
    found = {}
    for color in scenes.COLORS:
        matching = [n for n, name in enumerate(NAMES) if name == ("object", color)]
        mask = np.isin(indices, matching)
        # Removes lines of one or two pixels, which are edges between two other colors. The rest keeps its corners.
        mask = ndimage.binary_propagation(ndimage.binary_opening(mask, np.ones((3, 3))), mask=mask)
        labels, count = ndimage.label(mask)
        if not count:
            continue
        patch = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
        if patch.mean() >= MIN_AREA:
            found[color] = patch
    return found


def objects(image):
    """Finds the object of each color: {color: FoundObject}. The image is square, its side a multiple of 64."""
    masks = patches(image)
    found = {}
    for color, patch in masks.items():
        hidden = np.zeros_like(patch)
        for other in masks.values():
            if other is not patch and touch(patch, other) and is_in_front(other, patch):
                hidden |= ndimage.binary_dilation(other, iterations=MIXED_WIDTH)
        shape = best_fit(patch, ~hidden)[0] if hidden.any() else shape_of_outline(patch)
        y, x = ndimage.center_of_mass(patch)
        side = len(patch)
        found[color] = FoundObject(shape, patch.mean(), (x + 0.5) / side, (y + 0.5) / side, patch)
    return found


def touch(patch, other):
    """Returns whether two patches are so close that one may hide a part of the other."""
    return (patch & ndimage.binary_dilation(other, iterations=TOUCH_DISTANCE)).any()


def is_in_front(patch, other):
    """Returns whether the first of two touching patches is in front: it overlaps the other, or is more complete."""
    within = (patch & other).sum()
    if within:
        return within > 0.5 * patch.sum()
    everywhere = np.ones_like(patch)
    return best_fit(patch, everywhere)[1] > best_fit(other, everywhere)[1]


@cache
def templates():
    """Draws every shape in every size and angle: the names, and the spectra of the masks [n, 64, 33]."""
    x = (np.arange(TEMPLATE_SIDE) + 0.5) / TEMPLATE_SIDE
    x, y = np.meshgrid(x, x)
    names, masks = [], []
    for shape in scenes.SHAPES:
        for radius in np.linspace(0.08, 0.34, 14):
            for angle in (0.0,) if shape == "circle" else (-0.24, -0.12, 0.0, 0.12, 0.24):
                names.append(shape)
                masks.append(scenes.distance(scenes.Object(shape, "red", None, 0.5, 0.5, radius, angle), x, y) < 0)
    return names, fft.rfft2(np.array(masks, np.float32)).conj()


def best_fit(patch, visible):
    """Returns the shape that fits a patch best at any position, and its intersection over union.

    Only pixels in the mask `visible` count; another object may hide the others.
    """
    names, spectra = templates()
    visible = shrink(visible)
    seen = shrink(patch) & visible

    def overlap(mask):
        return fft.irfft2(spectra * fft.rfft2(mask.astype(np.float32)), s=mask.shape)

    both = overlap(seen)
    fits = (both / np.maximum(overlap(visible) + seen.sum() - both, 1)).max((1, 2))
    return names[fits.argmax()], fits.max()


def shrink(mask):
    """Scales a mask down to [64, 64]: true where more than half of the pixels are."""
    factor = len(mask) // TEMPLATE_SIDE
    return mask.reshape(TEMPLATE_SIDE, factor, TEMPLATE_SIDE, factor).mean((1, 3)) > 0.5


def harmonics(patch):
    """Returns the strength of the harmonics of the radius over the angle, divided by the mean radius."""
    y, x = np.nonzero(patch)
    y, x = y - y.mean(), x - x.mean()
    angles, distances = np.arctan2(y, x), np.hypot(y, x)
    # The largest distance in each direction; the outline has pixels for about 40 directions.
    directions = 40
    bins = ((angles + np.pi) / (2 * np.pi) * directions).astype(int) % directions
    radius = np.zeros(directions)
    np.maximum.at(radius, bins, distances)
    return np.abs(np.fft.rfft(radius)) / radius.sum() * 2


def shape_of_outline(patch):
    """Returns the shape of a patch that nothing hides: n corners are the nth harmonic of the outline."""
    strength = harmonics(patch)
    best = max(CORNERS, key=lambda shape: strength[CORNERS[shape][0]])
    corners, typical = CORNERS[best]
    return best if strength[corners] > typical / 2 else "circle"


def background(image):
    """Returns the name of the background color: the most frequent one."""
    counts = np.bincount(nearest_colors(image).ravel(), minlength=len(NAMES))
    sums = {}
    for (kind, name), count in zip(NAMES, counts, strict=True):
        if kind == "background":
            sums[name] = sums.get(name, 0) + int(count)
    return max(sums, key=sums.get)


def checkers(image):
    """Returns how strongly a background is checkered: 0 for none, about 0.16 for a drawn one without objects.

    Checkers of the demo have four periods along each side. The result is the amplitude of such a wave, as a share of
    the brightness. Stripes have waves in one diagonal direction only, so the weaker of both counts.
    """
    brightness = image.mean(2)
    hidden = np.zeros(brightness.shape, bool)
    for patch in patches(image).values():
        hidden |= ndimage.binary_dilation(patch, iterations=TOUCH_DISTANCE)
    mean = brightness[~hidden].mean()
    waves = 4 * np.abs(np.fft.fft2(np.where(hidden, 0, brightness / mean - 1))) / brightness.size
    return min(waves[3:6, 3:6].max(), waves[3:6, -5:-2].max())
