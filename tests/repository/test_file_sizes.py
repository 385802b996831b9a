"""A clone stays small: a large file needs a line in large_files.txt."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 1_000_000
ALLOWED = pathlib.Path(__file__).with_name("large_files.txt")


def tracked_files():
    """Paths of all regular files that git tracks. Skips the test where there is no git or no repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [path for path in listing.split("\0") if path]
    return [path for path in paths if (ROOT / path).is_file() and not (ROOT / path).is_symlink()]


def allowed_files():
    """The reason of each allowed path."""
    lines = [line for line in ALLOWED.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split(maxsplit=1) for line in lines)


def test_large_files_are_allowed_with_a_reason():
    large = {path for path in tracked_files() if (ROOT / path).stat().st_size > LIMIT}
    allowed = allowed_files()
    assert large - allowed.keys() == set(), f"files over {LIMIT:,} bytes that {ALLOWED.name} does not list"
    assert allowed.keys() - large == set(), f"lines of {ALLOWED.name} without such a file"
