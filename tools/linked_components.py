"""Stores components that several model folders share once. The others are relative links, as a Hugging Face cache."""

import os
import shutil
from pathlib import Path


def files(folder):
    """Paths of all files below a folder; links to folders are followed."""
    return [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]


def contents(folder):
    """The bytes of every file below a folder, by its relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in files(folder)}


def link_equal_components(folders):
    """Replaces each component that equals one of an earlier folder, byte for byte, with a link to that one.

    The folders must have one parent. A link that is there already stays as it is.
    """
    known = []
    for folder in folders:
        for component in sorted(path for path in Path(folder).iterdir() if path.is_dir() and not path.is_symlink()):
            own = contents(component)
            original = next((path for path, theirs in known if path.name == component.name and theirs == own), None)
            if original is None:
                known.append((component, own))
                continue
            shutil.rmtree(component)
            component.symlink_to(Path("..", original.parent.name, original.name), target_is_directory=True)
