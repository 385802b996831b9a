"""Checkpoints from seeds have the bytes that their recipes name, and are generated once."""

import hashlib
import json
import multiprocessing

import pytest

import seeded_checkpoints
from seeded_checkpoints import DATA, RECIPE, STAMP, write

RECIPES = sorted(DATA.glob(f"*/*/{RECIPE}"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return write(tmp_path_factory.mktemp("work") / "checkpoints")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.relative_to(DATA).as_posix())
def test_weights_have_the_digest_of_the_recipe(generated, path):
    recipe = json.loads(path.read_text())
    file = generated / path.parent.relative_to(DATA) / recipe["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == recipe["sha256"]


def test_small_files_and_links_are_the_same(generated):
    for path in sorted(DATA.glob("*/*")):
        copy = generated / path.relative_to(DATA)
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
        else:
            names = {file.name for file in path.iterdir()}
            if RECIPE in names:
                names = names - {RECIPE} | {json.loads((path / RECIPE).read_text())["file"]}
            assert {file.name for file in copy.iterdir()} == names


def test_write_by_several_processes_generates_once(tmp_path):
    out = tmp_path / "checkpoints"
    processes = [multiprocessing.Process(target=write, args=(out,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    inode = (out / STAMP).stat().st_ino
    write(out)
    assert (out / STAMP).stat().st_ino == inode
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "checkpoints.lock"}


def test_write_after_a_change_generates_anew(tmp_path):
    data, out = tmp_path / "data", tmp_path / "checkpoints"
    (data / "a").mkdir(parents=True)
    (data / "a" / "config.json").write_text("{}")
    write(out, data)
    (data / "a" / "config.json").write_text("[]")
    write(out, data)
    assert (out / "a" / "config.json").read_text() == "[]"


def test_weights_with_another_digest_are_refused():
    recipe = {"file": "w.safetensors", "sha256": "00", "seed": "s", "tensors": {"x": {"bias": [[2], "bias"]}}}
    with pytest.raises(ValueError, match=r"weights of s: expected sha256 00, got [0-9a-f]{64}"):
        seeded_checkpoints.weights(recipe)
