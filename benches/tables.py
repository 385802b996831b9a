"""Makes tables in Markdown from results."""

import math
import statistics
from collections.abc import Callable, Sequence

from comparison import CONTENDERS, OURS, Samples, digits_of, ratios, spread

SIZES = {"tiny": "tiny", "full_size": "full size"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def order(result: dict) -> tuple:
    """Sorts results: small before large."""
    settings = result["settings"]
    return settings["checkpoint"] != "tiny", settings.get("side", 0), settings.get("steps", 0), result["name"]


def square(side: int) -> str:
    """Returns the size of a square image."""
    return f"{side}x{side}"


def contenders(what: str, samples: Samples) -> list[list[str]]:
    """Returns a row for each contender: its value, and how many times as much as each of ours it is."""
    rows = []
    for name, values in samples.items():
        times = [
            "" if base not in samples else "1" if base == name else spread(ratios(samples, name, base)) for base in OURS
        ]
        rows.append([what if not rows else "", CONTENDERS[name], spread(values, digits_of(values)), *times])
    return rows


def whole(found: list[dict]) -> str:
    """Returns the table of complete requests."""
    rows = []
    for result in found:
        settings = result["settings"]
        what = f"{SIZES[settings['checkpoint']]}, {square(settings['side'])}, {settings['steps']} steps"
        what += f", {settings['clients']} clients at once" if settings["clients"] > 1 else ""
        for row in result["rows"]:
            rows += contenders(what, row["samples"])
    return table(["request", "", "seconds per image", "times `exact`", "times `fast`"], rows)


def parts(found: list[dict]) -> str:
    """Returns the table of a UNet step and of a decode."""
    rows = []
    for result in found:
        settings = result["settings"]
        for row in result["rows"]:
            what = f"{row['what']}, {SIZES[settings['checkpoint']]}, {square(settings['side'])}"
            rows += contenders(what, row["samples"])
    return table(["part", "", "seconds", "times `exact`", "times `fast`"], rows)


def load(found: list[dict]) -> str:
    """Returns the table of load times and of the memory of many models."""
    rows = []
    for result in found:
        for row in result["rows"]:
            ours = next(name for name in OURS if name in row["samples"])
            here, peer = row["samples"][ours], row["samples"]["python"]
            unit = row.get("unit", "s")
            times = [f"{spread(values, digits_of(values))} {unit}" for values in (here, peer)]
            share = f"{statistics.median(here) / statistics.median(peer):.1%}"
            rows.append([f"{row['what']}, {SIZES[result['settings']['checkpoint']]}", *times, share])
    return table(["", "this backend", "Python backend", "share"], rows)


def flags(found: list[dict]) -> str:
    """Returns the table of the flags of stable-diffusion.cpp."""
    rows = []
    for result in found:
        step, decode = (row["samples"] for row in result["rows"])
        for name in step:
            texts = [spread(values[name], digits_of(values[name])) for values in (step, decode)]
            rows.append([f"`{name}`", square(result["settings"]["side"]), *texts])
    return table(["flags", "image", "step, seconds", "decode, seconds"], rows)


def slope(points: list[dict], key: str, value: Callable[[dict], float]) -> tuple[float, float]:
    """Returns the base and the slope of the line through points with the least squares."""
    across, up = [point[key] for point in points], [value(point) for point in points]
    if len(set(across)) < 2:
        return statistics.mean(up), 0.0
    gradient, base = statistics.linear_regression(across, up)
    return base, gradient


def exponent(before: dict | None, point: dict, key: str) -> str:
    """Returns with which power of the pixels a value grew from one point to the next."""
    if before is None or before["side"] == point["side"]:
        return ""
    return f"{math.log(point[key] / before[key]) / math.log((point['side'] / before['side']) ** 2):.2f}"


def gib(point: dict) -> float:
    """Returns the peak memory in GiB."""
    return point["peak_bytes"] / 2**30


def growth(found: list[dict]) -> str:
    """Returns the tables of how cost grows."""
    texts = []
    for result in found:
        settings = result["settings"]
        series = {row["what"]: row["points"] for row in result["rows"]}
        what = f"{SIZES[settings['checkpoint']]}, `{settings['numerics']}`"
        rows = []
        for before, point in zip([None, *series["pixels"]], series["pixels"], strict=False):
            powers = [exponent(before, point, key) for key in ("step_s", "decode_s")]
            times = [f"{point[key]:.3g}" for key in ("step_s", "decode_s")]
            rows.append([square(point["side"]), times[0], powers[0], times[1], powers[1], f"{gib(point):.2f}"])
        head = ["pixels", "step, s", "power of pixels", "decode, s", "power of pixels", "peak memory, GiB"]
        texts += [f"One image, {what}:", table(head, rows)]

        side = square(settings["side"])
        rows = [
            [
                str(point["images"]),
                f"{point['step_s']:.3g}",
                f"{point['step_s'] / point['images']:.3g}",
                f"{gib(point):.2f}",
            ]
            for point in series["images"]
        ]
        step, memory = (slope(series["images"], "images", value) for value in (lambda each: each["step_s"], gib))
        texts += [
            f"Images that are generated together, {what}, {side}: each image adds {step[1]:.3g} s to a step of "
            f"{step[0]:.3g} s, and {memory[1]:.2f} GiB to {memory[0]:.2f} GiB.",
            table(["images", "step, s", "step per image, s", "peak memory, GiB"], rows),
        ]
        rows = [[str(each["steps"]), f"{each['request_s']:.3g}", f"{gib(each):.2f}"] for each in series["steps"]]
        base, gradient = slope(series["steps"], "steps", lambda each: each["request_s"])
        texts += [
            f"Steps, {what}, {side}: each step adds {gradient:.3g} s to {base:.3g} s for text and decoder.",
            table(["steps", "image, s", "peak memory, GiB"], rows),
        ]
    return "\n\n".join(texts)


def neighbors(found: list[dict]) -> str:
    """Returns the table of requests next to others."""
    names = {"two": "two instances", "two_and_loads": "two instances, and loads of a third model"}
    rows = []
    for result in found:
        settings = result["settings"]
        for name, values in result["rows"][0]["samples"].items():
            what = f"{SIZES[settings['checkpoint']]}, {square(settings['side'])}, {settings['steps']} steps"
            rows.append([names[name], what, f"`{settings['numerics']}`", spread(values)])
    return table(["", "request", "", "times its share"], rows)


def mixed_load(found: list[dict]) -> str:
    """Returns the table of the latency of mixed requests."""
    names = {"fast": "all at once", "fifo": "first in, first out"}
    rows = []
    for result in found:
        settings = result["settings"]
        sides = " and ".join(square(side) for side in settings["sides"])
        for row in result["rows"]:
            for name, values in row["samples"].items():
                if row["what"] != "alone" and name in names:
                    times = "1" if name == "fast" else spread(ratios(row["samples"], name, "fast"))
                    what = f"{row['what']}, {SIZES[settings['checkpoint']]}, {sides}"
                    rows.append([what, names[name], spread(values, digits_of(values)), times])
    return table(["latency", "", "seconds", "times all at once"], rows)


def psnr(found: list[dict]) -> str:
    """Returns the table of differences between images."""
    rows = []
    for result in found:
        for row in result["rows"]:
            for name, values in row["samples"].items():
                title = row["what"] if name == next(iter(row["samples"])) else ""
                rows.append([title, f"`{name}`", f"{statistics.mean(values):.1f}", f"{min(values):.1f}"])
    return table(["", "", "PSNR, mean, dB", "smallest, dB"], rows)


def approximations(found: list[dict]) -> str:
    """Returns the table of what approximations save."""
    rows = []
    for result in found:
        step, decode = (row["samples"] for row in result["rows"])
        for name in step:
            cells = []
            for samples in (step, decode):
                values = samples[name]
                cells += [spread(values, digits_of(values)), spread(ratios(samples, name, "without"))]
            rows.append([f"`{name}`" if name != "without" else name, square(result["settings"]["side"]), *cells])
    return table(["", "image", "mean step, s", "times without", "decode, s", "times without"], rows)


KINDS = {
    "whole": whole,
    "parts": parts,
    "load": load,
    "flags": flags,
    "growth": growth,
    "neighbors": neighbors,
    "mixed_load": mixed_load,
    "psnr": psnr,
    "approximations": approximations,
}
