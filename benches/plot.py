"""Draws the results: ratios, and how cost grows. The file has text instead of outlines, so it is small."""

import pathlib
import statistics

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparison import CONTENDERS, ratios
from tables import SIZES, gib, order, square

# The hash salt makes the same file from the same results.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9}
COLORS = {
    "exact": "#4c78a8",
    "fast": "#1b4f8a",
    "python": "#e45756",
    "diffusers": "#e45756",
    "openvino": "#f2a241",
    "sdcpp": "#8a6fb0",
}


def bars(found: list[dict]) -> list[tuple[str, str, list[float]]]:
    """Returns for each bar its setting, its contender and its ratios to `fast`."""
    result = []
    for each in sorted((each for each in found if each["bench"] in ("whole", "parts")), key=order):
        settings = each["settings"]
        for row in each["rows"]:
            if "fast" not in row["samples"]:
                continue
            what = f"{SIZES[settings['checkpoint']]}, {square(settings['side'])}"
            if each["bench"] == "parts":
                what = f"{row['what']}, {what}"
            else:
                what += f", {settings['steps']} steps"
                what += f", {settings['clients']} clients" if settings["clients"] > 1 else ""
            peers = [name for name in row["samples"] if name != "fast"]
            result += [(what, name, ratios(row["samples"], name, "fast")) for name in peers]
    return result


def draw_ratios(axes: Axes, found: list[dict]) -> None:
    """Draws how many times as long as `fast` each contender takes, with the spread."""
    drawn = bars(found)
    for place, (_, name, values) in enumerate(drawn):
        middle = statistics.median(values)
        error = [[middle - min(values)], [max(values) - middle]]
        axes.barh(place, middle, xerr=error, color=COLORS[name], error_kw={"linewidth": 0.8})
        axes.text(max(values), place, f" {middle:.2f}", va="center")
    labels = [f"{what}: {CONTENDERS[name].strip('`')}" for what, name, _ in drawn]
    axes.set_yticks(range(len(drawn)), labels)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_title("times as long as fast")


def draw_growth(time: Axes, memory: Axes, batch: Axes, result: dict) -> None:
    """Draws time and memory against pixels, and the time of a step against the batch size."""
    series = {row["what"]: row["points"] for row in result["rows"]}
    points = series["pixels"]
    pixels = [point["side"] ** 2 / 2**20 for point in points]
    for key, label in (("step_s", "step"), ("decode_s", "decode")):
        time.loglog(pixels, [point[key] for point in points], marker="o", markersize=3, label=label)
    time.loglog(pixels, [points[0]["step_s"] * each / pixels[0] for each in pixels], "k:", label="as the pixels")
    time.set(title="seconds, one image", xlabel="megapixels")
    time.legend(loc="upper left")
    memory.plot(pixels, [gib(point) for point in points], marker="o", markersize=3)
    memory.set(title="peak memory in GiB, one image", xlabel="megapixels", ylim=(0, None))
    images = [point["images"] for point in series["images"]]
    batch.plot(images, [point["step_s"] for point in series["images"]], marker="o", markersize=3)
    batch.set(title=f"seconds of a step, {square(result['settings']['side'])}", xlabel="images", ylim=(0, None))


@matplotlib.rc_context(STYLE)
def write(found: list[dict], file: pathlib.Path) -> None:
    """Draws all results to an SVG file."""
    grown = [each for each in found if each["bench"] == "growth"]
    heights = [0.6 + 0.25 * len(bars(found))] + ([2.8] if grown else [])
    figure = Figure(figsize=(9, sum(heights)), layout="constrained", facecolor="white")
    panels = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    draw_ratios(panels[0][0].subplots(), found)
    if grown:
        draw_growth(*panels[1][0].subplots(1, 3), sorted(grown, key=order)[-1])
    figure.savefig(file, metadata={"Date": None})
