"""The report of the benches: medians, ratios within a round, and the text of the page that must stay."""

import pathlib

import pytest

import comparison
import report
import tables

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
# The machine was twice as slow in the second round.
SAMPLES = {"fast": [1.0, 2.0, 1.0], "python": [2.0, 4.0, 3.0]}


def result(kind, rows, **settings):
    """Makes a result of a bench."""
    return {"bench": kind, "name": "name", "command": "make it", "settings": settings, "rows": rows}


def test_ratios_of_a_slow_round_are_those_of_that_round():
    assert comparison.ratios(SAMPLES, "python", "fast") == [2.0, 2.0, 3.0]
    assert comparison.spread([2.0, 2.0, 3.0]) == "2.00 (2.00 to 3.00)"


def test_digits_of_any_median_are_three():
    assert [comparison.digits_of([value]) for value in (0.123, 1.23, 12.3, 123.0)] == [3, 2, 1, 0]


def test_table_of_requests_has_a_row_for_each_contender():
    settings = dict(checkpoint="tiny", side=128, steps=20, clients=4)
    text = tables.whole([result("whole", [{"what": "request", "samples": SAMPLES}], **settings)])
    assert text.splitlines()[2:] == [
        "| tiny, 128x128, 20 steps, 4 clients at once | `fast` | 1.00 (1.00 to 2.00) | | 1 |",
        "| | Python backend | 3.00 (2.00 to 4.00) | | 2.00 (2.00 to 3.00) |",
    ]


def test_table_of_growth_has_the_power_of_the_pixels():
    points = [
        dict(side=256, steps=4, images=1, step_s=1.0, decode_s=1.0, request_s=6.0, peak_bytes=2**30),
        dict(side=512, steps=4, images=1, step_s=8.0, decode_s=4.0, request_s=38.0, peak_bytes=2**31),
    ]
    rows = [{"what": what, "points": points} for what in ("pixels", "images", "steps")]
    text = tables.growth([result("growth", rows, checkpoint="tiny", numerics="fast", side=256)])
    assert "| 512x512 | 8 | 1.50 | 4 | 1.00 | 2.00 |" in text


def test_page_keeps_the_text_around_a_table():
    page = "before\n<!-- begin whole -->\nold\n<!-- end whole -->\nafter\n"
    changed = report.replace(page, "whole", "new")
    assert changed == page.replace("old", "new")
    with pytest.raises(SystemExit, match="begin parts"):
        report.replace(page, "parts", "new")


@pytest.mark.parametrize("kind", ["machine", *tables.KINDS])
def test_page_has_a_place_for_every_kind(kind):
    assert "new" in report.replace(PAGE.read_text(), kind, "new")


def test_results_of_two_machines_are_refused():
    found = [dict(machine={"processor": name}, versions={}, date="2026-01-01") for name in ("one", "two")]
    with pytest.raises(SystemExit, match="different machines"):
        report.machine(found)
