"""The parts of the check, their verdicts, the table and the JSON file."""

import dataclasses
import json
import math


@dataclasses.dataclass
class Part:
    """One part of the check.

    `rows` are dictionaries with equal keys, one for each line of the table. The key `ok` is the verdict of the line.
    `error` is why the part could not run; `skipped` is why it was not meant to. `notes` are lines for
    the reader.
    """

    name: str
    rows: list = dataclasses.field(default_factory=list)
    error: str | None = None
    skipped: str | None = None
    notes: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self):
        """False if the part could not run, or if a line failed."""
        return self.error is None and all(row.get("ok", True) for row in self.rows)


def text_of(value):
    """A value as the table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "ok" if value else "FAILED"
    if isinstance(value, float):
        return "equal" if value == math.inf else f"{value:.2f}"
    return str(value)


def table(rows):
    """A plain text table: a header of the keys, then one line for each row. Numbers are on the right."""
    if not rows:
        return ""
    keys = list(rows[0])
    lines = [keys] + [[text_of(row.get(key)) for key in keys] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(keys))]
    numeric = [all(isinstance(row.get(key), (int, float, type(None))) for row in rows) for key in keys]

    def form(line):
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join(form(line) for line in lines)


def describe(part):
    """A part as text: its name and verdict, then its table and its notes."""
    verdict = "skipped" if part.skipped else "ok" if part.passed else "FAILED"
    lines = [f"{part.name}: {verdict} ({part.seconds:.0f} s)"]
    if part.skipped:
        lines.append(part.skipped)
    if part.rows:
        lines.append(table(part.rows))
    lines.extend(part.notes)
    if part.error:
        lines.append(f"error: {part.error}")
    return "\n".join(lines) + "\n"


def _plain(value):
    """Replaces numbers that JSON does not have: an infinite PSNR means equal images."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "equal" if value == math.inf else None
    return value


def to_json(facts, parts):
    """The report as JSON text: the facts about the machine, `passed`, and the parts with their rows."""
    members = [dataclasses.asdict(part) | {"passed": part.passed} for part in parts]
    report = facts | {"passed": all(part.passed for part in parts), "parts": members}
    return json.dumps(_plain(report), indent=2, allow_nan=False) + "\n"
