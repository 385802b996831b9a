"""Names what a picture of the demo's family shows, by plain image code: colour masks, areas, outlines. No network sees
it.

found = recognise.things(picture)            # {"red": Found(shape="circle", area=0.09, x=0.5, y=0.4)}
recognise.ground(picture)                    # "green"
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

import scenes  # noqa: E402

# What is smaller than this share of the picture is no thing but an edge between two colours.
LEAST_AREA = 0.012
# Below this a harmonic of the outline says nothing: the outline is a circle's. A square's fourth is 0.07, before any
# blur.
ROUND = 0.035


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


def things(picture):
    """The largest patch of each of the things' colours: {colour: Found}."""
    numbers = nearest(picture)
    found = {}
    for colour in scenes.COLOURS:
        mine = [n for n, name in enumerate(NAMES) if name == ("thing", colour)]
        mask = ndimage.binary_opening(np.isin(numbers, mine), np.ones((3, 3)))
        labels, count = ndimage.label(mask)
        if not count:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        patch = ndimage.binary_fill_holes(labels == sizes.argmax() + 1)
        area = patch.mean()
        if area < LEAST_AREA:
            continue
        y, x = ndimage.center_of_mass(patch)
        found[colour] = Found(outline(patch), area, (x + 0.5) / patch.shape[1], (y + 0.5) / patch.shape[0], patch)
    return found


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
    corners = {3: "triangle", 4: "square", 5: "star"}
    best = max(corners, key=lambda n: strength[n])
    return corners[best] if strength[best] > ROUND else "circle"


def ground(picture):
    """The name of the background's colour: the most frequent of the backgrounds' colours."""
    counts = np.bincount(nearest(picture).ravel(), minlength=len(NAMES))
    sums = {}
    for (kind, name), count in zip(NAMES, counts):
        if kind == "ground":
            sums[name] = sums.get(name, 0) + int(count)
    return max(sums, key=sums.get)
