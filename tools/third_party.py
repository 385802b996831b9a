"""Collects the licenses of what the built files contain: the crates, with the C libraries in them, and libtorch."""

import importlib.metadata
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
_NAMES = ("LICEN", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")
_HEAD = """The library and the command are built from these crates, and from Rust's standard library (MIT OR Apache-2.0,
https://github.com/rust-lang/rust).

"""


def crate_licenses():
    """Returns one text with name, version and licenses of each third-party crate in the library and the command."""
    listing = subprocess.run(
        [
            ROOT / "tools" / "cargo.sh",
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform=x86_64-unknown-linux-gnu",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    metadata = json.loads(listing)
    linked = _linked(metadata)
    packages = [package for package in metadata["packages"] if package["id"] in linked and package["source"]]
    # The same text comes with many crates.
    crates_of = {}
    heads = []
    for package in sorted(packages, key=lambda package: (package["name"], package["version"])):
        crate = f"{package['name']} {package['version']}"
        heads.append(f"{crate}: {package['license']}, {package['repository']}\n")
        for text in _texts(pathlib.Path(package["manifest_path"]).parent):
            crates_of.setdefault(text, []).append(crate)
    bodies = [f"{'=' * 80}\n{', '.join(dict.fromkeys(crates))}\n\n{text}\n" for text, crates in crates_of.items()]
    return "".join([_HEAD, *heads, "\n", *bodies])


def _linked(metadata):
    """Returns the ids of the packages that the command links: normal dependencies only, and no procedural macros."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    macros = {
        package["id"]
        for package in metadata["packages"]
        if any("proc-macro" in target["kind"] for target in package["targets"])
    }
    todo = [package["id"] for package in metadata["packages"] if package["name"] == "triton-diffusion-cli"]
    found = set()
    while todo:
        package = todo.pop()
        if package in found or package in macros:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return found


def _texts(folder):
    """Returns the texts of the license files in a crate, also of the C libraries in its folders."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name.upper().startswith(_NAMES))
    texts = (file.read_text(encoding="utf-8", errors="replace").strip() for file in files if not _is_code(file))
    return [text for text in dict.fromkeys(texts) if text]


def _is_code(file):
    return file.suffix in (".rs", ".c", ".h", ".cc", ".cpp", ".py", ".html")


def package_licenses(packages):
    """Returns {PACKAGE/FILE: bytes} of the license files of packages of this Python environment.

    packages: names as in a requirements file.
    """
    licenses = {}
    for name in packages:
        # From the list of all files: some packages have the license next to their libraries.
        files = [file for file in importlib.metadata.files(name) or () if file.name.upper().startswith(_NAMES)]
        if not files:
            raise FileNotFoundError(f"the package {name}: expected a license file, found none")
        licenses |= {f"{name}/{file.name}": file.read_binary() for file in files if not _is_code(file)}
    return licenses
