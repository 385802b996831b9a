"""Reads results, and forms medians, spreads and ratios. It needs the standard library only.

A result has rows. A row is one setting; its `samples` map each contender to its values, one for each round. The values
of one round were measured one after the other, so ratios are formed within a round.
"""

import json
import pathlib
import statistics
from collections.abc import Sequence

Samples = dict[str, list[float]]
OURS = ("exact", "fast")
# How reports name the contenders.
CONTENDERS = {
    "exact": "`exact`",
    "fast": "`fast`",
    "python": "Python backend",
    "diffusers": "diffusers",
    "openvino": "OpenVINO",
    "sdcpp": "stable-diffusion.cpp",
}


def read(folder: pathlib.Path) -> list[dict]:
    """Reads all results of a folder, sorted by name."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return [result for result in found if isinstance(result, dict) and "bench" in result]


def ratios(samples: Samples, contender: str, base: str) -> list[float]:
    """Returns how many times as much as `base` a contender took, for each round."""
    return [value / other for value, other in zip(samples[contender], samples[base], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns the median with the smallest and the largest value, such as "1.91 (1.88 to 1.95)"."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def digits_of(values: Sequence[float]) -> int:
    """Returns how many decimals show three digits of the median."""
    middle = statistics.median(values)
    return next((digits for digits, limit in enumerate((100, 10, 1)) if middle >= limit), 3)


def lines(samples: Samples, unit: str) -> list[str]:
    """Returns a text for each contender: its value, and how many times as much as each of ours it is."""
    texts = []
    for name, values in samples.items():
        text = f"  {name:<10} {spread(values, digits_of(values))} {unit}"
        for base in OURS:
            if base in samples and name != base:
                text += f"; {spread(ratios(samples, name, base))} times `{base}`"
        texts.append(text)
    return texts
