"""The options that all benches have, and the JSON files that they write."""

import argparse
import datetime
import json
import pathlib
import shlex
import sys

import machine
from python_backend import REFERENCE_VENV, ROOT, WORK

BENCH_VENV = ROOT / ".venv-bench"
# These options change where files are, and no number.
FOLDERS = ("--out", "--reference-venv", "--bench-venv")


def add_options(parser: argparse.ArgumentParser, name: str, rounds: int | None = None) -> None:
    """Adds the options that all benches have; --rounds if a number is given."""
    parser.add_argument("--name", default=name, help=f"name of the result [default: {name}]")
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help=f"measurements of each contender [default: {rounds}]"
        )
    parser.add_argument("--out", type=pathlib.Path, default=WORK, help="folder of results [default: target/bench]")
    parser.add_argument("--reference-venv", type=pathlib.Path, default=REFERENCE_VENV, help="with diffusers")
    parser.add_argument("--bench-venv", type=pathlib.Path, default=BENCH_VENV, help="with the other peers")


def save(
    arguments: argparse.Namespace,
    kind: str,
    settings: dict,
    rows: list[dict],
    *,
    server: str | None = None,
    peak_bytes: dict[str, int] | None = None,
) -> None:
    """Writes a result of the bench `kind` to a file named by --name.

    `server` is the version of tritonserver, `peak_bytes` the peak memory of each contender's process.
    """
    venv = arguments.bench_venv if arguments.bench_venv.exists() else arguments.reference_venv
    result = {
        "bench": kind,
        "name": arguments.name,
        "command": command_line(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine.facts(),
        "versions": machine.versions(venv, server),
        "settings": settings,
        "rows": rows,
        "peak_bytes": peak_bytes or {},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{arguments.name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {file}")


def command_line() -> str:
    """Returns the command that makes this result again."""
    program = pathlib.Path(sys.argv[0]).resolve().relative_to(ROOT)
    words, given = [], iter(sys.argv[1:])
    for word in given:
        if word in FOLDERS:
            next(given, None)
        elif word.partition("=")[0] not in FOLDERS:
            words.append(word)
    return shlex.join([".venv/bin/python", str(program), *words])
