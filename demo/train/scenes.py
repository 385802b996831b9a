"""Captioned scenes: one or two flat shapes in front of a textured background, with their depth.

A scene is drawn from signed distances, so any window of it can be rendered at any resolution without aliasing. Lengths
are shares of the image's side, (0, 0) is the top left corner, and y points down.
"""

from dataclasses import dataclass, field, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")

# sRGB, 0 to 255. Objects are saturated and backgrounds pale: "a red circle on a red background" is visible.
COLORS = {
    "red": (214, 39, 40),
    "green": (34, 139, 52),
    "blue": (38, 84, 206),
    "yellow": (250, 215, 40),
    "orange": (250, 135, 20),
    "purple": (130, 50, 170),
    "white": (250, 250, 250),
    "black": (24, 24, 24),
}
BACKGROUNDS = {
    "red": (232, 158, 158),
    "green": (160, 212, 160),
    "blue": (158, 188, 236),
    "yellow": (240, 228, 150),
    "purple": (204, 172, 224),
    "gray": (168, 168, 168),
}
TEXTURES = ("plain", "striped", "checkered", "dotted")

# Range of the radius of the circle around a shape, as a share of the side.
RADII = {"small": (0.11, 0.135), None: (0.17, 0.2), "large": (0.25, 0.29)}
PLACES = {
    "on the left": (0.3, 0.5),
    "on the right": (0.7, 0.5),
    "at the top": (0.5, 0.3),
    "at the bottom": (0.5, 0.7),
    "in the middle": (0.5, 0.5),
}
RELATIONS = ("left of", "right of", "above", "below", "in front of")

# Depth for the estimator and the depth-conditioned UNet: larger is nearer, as in MiDaS.
FAR, FLOOR, OBJECT, BEHIND, FRONT = 0.05, 0.25, 0.75, 0.55, 0.95


@dataclass(frozen=True)
class Object:
    """A shape: its attributes, its center and radius, its angle in radians, its depth."""

    shape: str
    color: str
    size: str | None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2
    angle: float = 0.0
    depth: float = OBJECT

    def phrase(self):
        """Returns the words for the object, such as "a small red circle"."""
        words = " ".join(word for word in (self.size, self.color, self.shape) if word)
        return f"an {words}" if words.startswith("orange") else f"a {words}"


@dataclass(frozen=True)
class Scene:
    """A background and the objects in front of it, the farthest first."""

    background: str
    texture: str
    caption: str
    phase: tuple = (0.0, 0.0, 0.0)
    objects: tuple = field(default=())
    relation: str | None = None
    place: str | None = None

    def without(self, *indices):
        """Returns the scene without some of its objects."""
        return replace(self, objects=tuple(each for n, each in enumerate(self.objects) if n not in indices))


def background_phrase(texture, background):
    """Returns the words for a background, such as "a striped red background"."""
    return f"a {background} background" if texture == "plain" else f"a {texture} {background} background"


def sample_background(rng):
    """Draws a scene without objects and caption."""
    background = str(rng.choice(list(BACKGROUNDS)))
    texture = str(rng.choice(TEXTURES, p=(0.4, 0.2, 0.2, 0.2)))
    return Scene(background, texture, "", tuple(rng.uniform(0, 1, 3)))


def sample(rng):
    """Draws a scene: about half have two objects, most others one, a few none."""
    scene = sample_background(rng)
    kind = rng.uniform()
    if kind < 0.06:
        words = background_phrase(scene.texture, scene.background)
        return replace(scene, caption=words if rng.uniform() < 0.5 else words.replace("a ", "an empty ", 1))
    if kind < 0.5:
        return with_one_object(rng, scene)
    return with_two_objects(rng, scene)


def sample_pair(rng):
    """Draws a scene with two objects."""
    return with_two_objects(rng, sample_background(rng))


def sample_object(rng, excluded=(), sizes=(None, "small", "large")):
    """Draws an object whose color is not excluded; the caller sets its position."""
    colors = [color for color in COLORS if color not in excluded]
    size = sizes[rng.integers(len(sizes))]
    return Object(
        str(rng.choice(SHAPES)),
        str(rng.choice(colors)),
        size,
        radius=rng.uniform(*RADII[size]),
        angle=rng.uniform(-0.2, 0.2),
    )


def jitter(rng, center, radius, spread=0.04):
    """Draws a position near `center` at which the object is completely inside the image."""
    low, high = radius + 0.02, 0.98 - radius
    return [float(np.clip(value + rng.uniform(-spread, spread), low, high)) for value in center]


def with_one_object(rng, scene):
    """Adds an object and the caption to a background."""
    only = sample_object(rng)
    place = None
    if rng.uniform() < 0.4:
        place = str(rng.choice(list(PLACES)))
        x, y = jitter(rng, PLACES[place], only.radius)
    else:
        x, y = jitter(rng, (0.5, 0.5), only.radius, 0.14)
    only = replace(only, x=x, y=y)
    background = background_phrase(scene.texture, scene.background)
    caption = f"{only.phrase()} {place} on {background}" if place else f"{only.phrase()} on {background}"
    return replace(scene, objects=(only,), caption=caption, place=place)


def with_two_objects(rng, scene):
    """Adds two objects, one in relation to the other, and the caption to a background."""
    relation = str(rng.choice(RELATIONS))
    if relation == "in front of":
        first = sample_object(rng, sizes=("small", None))
        second = sample_object(rng, (first.color,), ("large",))
        x, y = jitter(rng, (0.5, 0.5), second.radius, 0.08)
        second = replace(second, x=x, y=y, depth=BEHIND)
        turn = rng.uniform(0, 2 * np.pi)
        offset = second.radius * rng.uniform(0.5, 0.9)
        x, y = jitter(rng, (x + offset * np.cos(turn), y + offset * np.sin(turn)), first.radius, 0.0)
        first = replace(first, x=x, y=y, depth=FRONT)
    else:
        first = sample_object(rng)
        second = sample_object(
            rng, (first.color,), (None, "small") if first.size == "large" else (None, "small", "large")
        )
        free = 1.0 - 2 * (first.radius + second.radius)
        gap = rng.uniform(0.02, max(0.03, min(0.2, free * 0.8)))
        distance = first.radius + second.radius + gap
        start = rng.uniform(0.02, max(0.03, 0.98 - distance - first.radius - second.radius))
        along = (start + first.radius, start + first.radius + distance)
        across = [jitter(rng, (0.5, 0.5), item.radius, 0.1)[0] for item in (first, second)]
        if relation in ("right of", "below"):
            along = (1 - along[0], 1 - along[1])
        if relation in ("left of", "right of"):
            first = replace(first, x=along[0], y=across[0])
            second = replace(second, x=along[1], y=across[1])
        else:
            first = replace(first, x=across[0], y=along[0])
            second = replace(second, x=across[1], y=along[1])
    background = background_phrase(scene.texture, scene.background)
    caption = f"{first.phrase()} {relation} {second.phrase()} on {background}"
    return replace(scene, objects=(second, first), caption=caption, relation=relation)


def distance(item, x, y):
    """Returns the signed distance of points to an object's outline, in shares of the side; negative inside."""
    dx, dy = x - item.x, y - item.y
    if item.shape == "circle":
        return np.hypot(dx, dy) - item.radius
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    if item.shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - item.radius * 0.8
    if item.shape == "triangle":
        # Equilateral with a corner at the top: three half planes at half of the radius from the center.
        sides = np.maximum(np.abs(dx) * (3**0.5 / 2) - dy / 2, dy)
        return sides - item.radius * 0.5
    # A star of five points: the plane is folded into one tenth, which has one edge from the tip to the inner corner.
    tenth = np.pi / 5
    turn = np.arctan2(dx, -dy)
    turn = np.abs((turn + tenth) % (2 * tenth) - tenth)
    reach = np.hypot(dx, dy)
    px, py = reach * np.cos(turn), reach * np.sin(turn)
    inner = 0.45 * item.radius
    tip, corner = (item.radius, 0.0), (inner * np.cos(tenth), inner * np.sin(tenth))
    ex, ey = corner[0] - tip[0], corner[1] - tip[1]
    return (ex * (py - tip[1]) - ey * (px - tip[0])) * (-1 / np.hypot(ex, ey))


def pattern(scene, x, y):
    """Returns the signed distance of points to the darker part of the texture; negative inside."""
    a, b, turn = scene.phase
    if scene.texture == "striped":
        turn = (turn - 0.5) * np.pi / 2 + np.pi / 4
        u = (x * np.cos(turn) + y * np.sin(turn)) * 6 + a
        return (np.abs(u % 1 - 0.5) - 0.25) / 6
    if scene.texture == "checkered":
        u, v = x * 4 + a, y * 4 + b
        du, dv = np.abs(u % 1 - 0.5) - 0.25, np.abs(v % 1 - 0.5) - 0.25
        return np.where((du < 0) == (dv < 0), -1.0, 1.0) * np.minimum(np.abs(du), np.abs(dv)) / 4
    if scene.texture == "dotted":
        u, v = x * 6 + a, y * 6 + b
        return (np.hypot(u % 1 - 0.5, v % 1 - 0.5) - 0.24) / 6
    return np.ones_like(x)


def render(scene, pixels, window=(0.0, 0.0, 1.0)):
    """Renders a window (left, top, side) of the scene.

    Returns the image, float32 [pixels, pixels, 3] from 0 to 1, and its depth, float32 [pixels, pixels] from 0 to 1.
    """
    left, top, side = window
    step = side / pixels
    x = (left + (np.arange(pixels, dtype=np.float32) + 0.5) * step)[None, :]
    y = (top + (np.arange(pixels, dtype=np.float32) + 0.5) * step)[:, None]
    x, y = np.broadcast_arrays(x, y)

    def cover(signed):
        return np.clip(0.5 - signed / step, 0, 1)[..., None]

    base = np.array(BACKGROUNDS[scene.background], np.float32) / 255
    # Light from above: no part has one flat color, but no color changes its name.
    light = (1.05 - 0.12 * y)[..., None]
    image = np.broadcast_to(base, (*x.shape, 3)).astype(np.float32)
    if scene.texture != "plain":
        image = image * (1 - 0.2 * cover(pattern(scene, x, y)))
    image = image * light
    depth = (FAR + (FLOOR - FAR) * y).astype(np.float32)
    for item in scene.objects:
        signed = distance(item, x, y)
        shade = cover(signed)
        local = ((y - item.y) / item.radius)[..., None]
        color = np.array(COLORS[item.color], np.float32) / 255 * (1 - 0.07 * local)
        image = image * (1 - shade) + color * shade
        depth = np.where(signed < 0, np.float32(item.depth), depth)
    return np.clip(image, 0, 1).astype(np.float32), depth.astype(np.float32)
