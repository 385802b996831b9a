"""Writes the results of the benches into docs/benchmarks.md, and the plot docs/benchmarks.svg.

    .venv-bench/bin/python benches/report.py

The tables go between the lines `<!-- begin KIND -->` and `<!-- end KIND -->`; the text around them stays. A kind
without a result stays as it is. Each table has the commands that make it again.
"""

import argparse
import pathlib
import re

import comparison
import tables

ROOT = pathlib.Path(__file__).resolve().parents[1]


def machine(found: list[dict]) -> str:
    """Returns the machine and the versions of all results.

    Raises SystemExit if the results come from different machines.
    """
    machines = {tuple(sorted(result["machine"].items())): result["machine"] for result in found}
    if len(machines) > 1:
        raise SystemExit("the results come from different machines: remove those of the others from target/bench")
    versions: dict[str, list[str]] = {}
    for result in found:
        for name, version in result["versions"].items():
            known = versions.setdefault(name, [])
            if version not in known:
                known.append(version)
    dates = sorted({result["date"] for result in found})
    facts = next(iter(machines.values())) | {name: ", ".join(each) for name, each in versions.items()}
    facts["measured"] = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return tables.table(["", ""], [[name, value] for name, value in facts.items()])


def commands(found: list[dict]) -> str:
    """Returns the commands of results as a code block."""
    return "\n".join(["```", *(result["command"] for result in found), "```"])


def replace(text: str, kind: str, content: str) -> str:
    """Replaces what is between the lines of a kind. Raises SystemExit if they are missing."""
    lines = re.compile(rf"(<!-- begin {kind} -->\n).*?(<!-- end {kind} -->)", re.DOTALL)
    if not lines.search(text):
        raise SystemExit(f"docs/benchmarks.md has no lines <!-- begin {kind} --> and <!-- end {kind} -->")
    return lines.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "target" / "bench", help="folder of results")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--plot", type=pathlib.Path, default=ROOT / "docs" / "benchmarks.svg")
    arguments = parser.parse_args()
    found = comparison.read(arguments.results)
    if not found:
        raise SystemExit(f"{arguments.results} has no results: run 'make bench'")
    text = replace(arguments.page.read_text(), "machine", machine(found))
    for kind, write in tables.KINDS.items():
        of_kind = sorted((result for result in found if result["bench"] == kind), key=tables.order)
        if of_kind:
            text = replace(text, kind, f"{write(of_kind)}\n\n{commands(of_kind)}")
    arguments.page.write_text(text)
    # matplotlib is in .venv-bench only.
    import plot

    plot.write(found, arguments.plot)
    print(f"wrote {arguments.page} and {arguments.plot}")


if __name__ == "__main__":
    main()
