"""Components that several model folders share are stored once."""

import pathlib

import pytest

from linked_components import contents, link_equal_components
from seeded_checkpoints import DATA

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_equal_components_become_relative_links(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, {"vae/config.json": "1", "unet/config.json": "2", "model_index.json": "3"})
    write(two, {"vae/config.json": "1", "unet/config.json": "4", "model_index.json": "3"})
    before = contents(two)
    link_equal_components([one, two])
    assert (two / "vae").readlink() == pathlib.Path("../one/vae")
    assert not (two / "unet").is_symlink()
    assert not (one / "vae").is_symlink()
    assert {name: (two / name).read_bytes() for name in before} == before
    link_equal_components([one, two])
    assert (two / "vae").readlink() == pathlib.Path("../one/vae")


@pytest.mark.parametrize("parent", [DATA, ROOT / "demo" / "models"], ids=["tests", "demo"])
def test_stored_models_hold_each_component_once(parent):
    components = [path for path in parent.glob("*/*") if path.is_dir() and not path.is_symlink()]
    known = [(path.name, contents(path)) for path in components]
    assert all(first not in known[:number] for number, first in enumerate(known))
    for link in (path for path in parent.glob("*/*") if path.is_symlink()):
        assert link.resolve().parents[1] == parent.resolve()
        assert link.is_dir()
