"""Names what a picture of the demo's family shows, by plain image code: colour masks, areas, outlines. No network sees
it.

found = recognise.things(picture)            # {"red": Found(shape="circle", area=0.09, x=0.5, y=0.4)}
recognise.ground(picture)                    # "green"
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import fft, ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

import scenes

# What is smaller than this share of the picture is no thing but an edge between two colours.
LEAST_AREA = 0.008
# How strong the harmonic of its corners is in the outline of a whole triangle, square and star, the medians of 120 drawn
# ones. A circle has none of them, so that half of it is where one shape ends and the other begins.
CORNERS = {"triangle": (3, 0.29), "square": (4, 0.15), "star": (5, 0.31)}
# Things nearer to each other than this many pixels touch: one may hide a part of the other.
TOUCH = 5
# Pixels along the outline of what hides a thing whose colour is a mixture.
MIXED = 2
# The side of the pictures in which shapes are laid over what is seen of a thing.
SMALL = 64


@dataclass(frozen=True)
class Found:
    """A thing: its shape's name, its area as a share of the picture, its centre in shares of the sides."""

    shape: str
    area: float
    x: float
    y: float
    mask: np.ndarray


def palette():
    """Every colour that a pixel may have, with what it stands for: (kind, name), float (n, 3)."""
    names, colours = [], []
    for name, colour in scenes.COLOURS.items():
        for light in (1.05, 0.95):
            names.append(("thing", name)), colours.append(np.clip(np.array(colour) * light, 0, 255))
    for name, colour in scenes.BACKGROUNDS.items():
        for light in (1.03, 0.95, 0.84, 0.76):
            names.append(("ground", name)), colours.append(np.clip(np.array(colour) * light, 0, 255))
    return names, np.array(colours, np.float64)


NAMES, PALETTE = palette()


def nearest(picture):
    """For each pixel the number of the nearest colour of the palette. `picture`: uint8 (height, width, 3)."""
    pixels = picture.reshape(-1, 3).astype(np.float64)
    distances = (pixels**2).sum(1)[:, None] - 2 * pixels @ PALETTE.T + (PALETTE**2).sum(1)
    return distances.argmin(1).reshape(picture.shape[:2])


def patches(picture):
    """The largest patch of each of the things' colours, its holes filled: {colour: bool (height, width)}."""
    numbers = nearest(picture)
    found = {}
    for colour in scenes.COLOURS:
        mine = [n for n, name in enumerate(NAMES) if name == ("thing", colour)]
        mask = np.isin(numbers, mine)
        # Without lines a pixel or two wide, which are edges between two other colours; what is left keeps its corners.
        mask = ndimage.binary_propagation(ndimage.binary_opening(mask, np.ones((3, 3))), mask=mask)
        labels, count = ndimage.label(mask)
        if not count:
            continue
        patch = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
        if patch.mean() >= LEAST_AREA:
            found[colour] = patch
    return found


def things(picture):
    """What is seen in each of the things' colours: {colour: Found}. `picture`: uint8 (side, side, 3), a multiple of
    SMALL."""
    masks = patches(picture)
    found = {}
    for colour, patch in masks.items():
        hidden = np.zeros_like(patch)
        for other in masks.values():
            if other is not patch and touch(patch, other) and nearer(other, patch):
                hidden |= ndimage.binary_dilation(other, iterations=MIXED)
        shape = best_fit(patch, ~hidden)[0] if hidden.any() else outline(patch)
        y, x = ndimage.center_of_mass(patch)
        side = len(patch)
        found[colour] = Found(shape, patch.mean(), (x + 0.5) / side, (y + 0.5) / side, patch)
    return found


def touch(patch, other):
    """Whether two patches come so near to each other that one may hide a part of the other."""
    return (patch & ndimage.binary_dilation(other, iterations=TOUCH)).any()


def nearer(patch, other):
    """Whether of two things that touch the first is before the other: it lies on it, or is the more whole."""
    within = (patch & other).sum()
    if within:
        return within > 0.5 * patch.sum()
    everywhere = np.ones_like(patch)
    return best_fit(patch, everywhere)[1] > best_fit(other, everywhere)[1]


@cache
def templates():
    """Every shape in every size and turn: their names, and the spectra of their masks (n, SMALL, SMALL // 2 + 1)."""
    x = (np.arange(SMALL) + 0.5) / SMALL
    x, y = np.meshgrid(x, x)
    names, masks = [], []
    for shape in scenes.SHAPES:
        for radius in np.linspace(0.08, 0.34, 14):
            for angle in (0.0,) if shape == "circle" else (-0.24, -0.12, 0.0, 0.12, 0.24):
                names.append(shape)
                masks.append(scenes.distance(scenes.Thing(shape, "red", None, 0.5, 0.5, radius, angle), x, y) < 0)
    return names, fft.rfft2(np.array(masks, np.float32)).conj()


def best_fit(patch, told):
    """The shape that covers a patch best, wherever it is laid, and its intersection over union with it. Only pixels that
    are `told` count: the others may be hidden."""
    names, spectra = templates()
    told = shrunk(told)
    seen = shrunk(patch) & told

    def overlap(mask):
        return fft.irfft2(spectra * fft.rfft2(mask.astype(np.float32)), s=mask.shape)

    both = overlap(seen)
    fits = (both / np.maximum(overlap(told) + seen.sum() - both, 1)).max((1, 2))
    return names[fits.argmax()], fits.max()


def shrunk(mask):
    """A mask of SMALL x SMALL: true where more than half is."""
    times = len(mask) // SMALL
    return mask.reshape(SMALL, times, SMALL, times).mean((1, 3)) > 0.5


def harmonics(patch):
    """Of the distance from the centre to the outline, over the angle: the strength of the first harmonics, by its
    mean."""
    y, x = np.nonzero(patch)
    y, x = y - y.mean(), x - x.mean()
    angles, reach = np.arctan2(y, x), np.hypot(y, x)
    # As many directions as the outline has pixels for: the farthest pixel in each.
    directions = 40
    bins = ((angles + np.pi) / (2 * np.pi) * directions).astype(int) % directions
    radius = np.zeros(directions)
    np.maximum.at(radius, bins, reach)
    strength = np.abs(np.fft.rfft(radius)) / radius.sum() * 2
    return strength


def outline(patch):
    """The shape's name: three, four or five corners are the third, fourth or fifth harmonic of the outline."""
    strength = harmonics(patch)
    best = max(CORNERS, key=lambda shape: strength[CORNERS[shape][0]])
    corners, whole = CORNERS[best]
    return best if strength[corners] > whole / 2 else "circle"


def ground(picture):
    """The name of the background's colour: the most frequent of the backgrounds' colours."""
    counts = np.bincount(nearest(picture).ravel(), minlength=len(NAMES))
    sums = {}
    for (kind, name), count in zip(NAMES, counts, strict=True):
        if kind == "ground":
            sums[name] = sums.get(name, 0) + int(count)
    return max(sums, key=sums.get)
