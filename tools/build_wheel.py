"""Writes the Python wheel with the library and the command: dist/triton_diffusion-VERSION-py3-none-PLATFORM.whl.

The wheel has no libtorch. It requires the package torch, which pip installs next to it, where the library and the
command search (the rpaths of build.rs and cli/build.rs). The command is in the package, and not in the environment's
`bin`: from there, the path to libtorch depends on the version of Python. maturin builds either a library or a command,
and places a command in `bin`. So the archive is written here. The same files give the same bytes.
"""

import argparse
import base64
import hashlib
import pathlib
import re
import subprocess
import tempfile
import tomllib
import zipfile

import third_party

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
# The completions of each shell, below `share`, where its packages place them.
COMPLETIONS = {
    "bash": "bash-completion/completions/triton-diffusion",
    "zsh": "zsh/site-functions/_triton-diffusion",
    "fish": "fish/vendor_completions.d/triton-diffusion.fish",
}
# The newest symbols in the libstdc++ and libgcc of systems with this glibc, ascending. Source: manylinux-policy.json of
# auditwheel.
COMPILER_LIBRARIES = {
    (2, 28): {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)},
    (2, 31): {"GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12), "GCC": (7, 0, 0)},
    (2, 34): {"GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)},
    (2, 35): {"GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)},
    (2, 39): {"GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0)},
}


class WheelError(RuntimeError):
    """The wheel cannot be built from these files."""


def version():
    """Returns the version in Cargo.toml. Only plain numbers read the same in Cargo and in Python's packaging."""
    text = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise WheelError(f"Cargo.toml: version: expected three numbers, got {text}")
    return text


def torch_requirement():
    """Returns the line of tools/requirements.txt for torch."""
    found = re.search(r"^torch==[\d.]+$", (ROOT / "tools" / "requirements.txt").read_text(), re.MULTILINE)
    if not found:
        raise WheelError("tools/requirements.txt: expected a line torch==VERSION")
    return found.group()


def symbol_versions(symbols):
    """Returns {library of the GNU system: its newest version} in the output of `objdump -T`."""
    newest = {}
    for name, text in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", symbols):
        number = tuple(int(part) for part in text.split("."))
        newest[name] = max(number, newest.get(name, ()))
    return newest


def platform_tag(needed):
    """Returns the platform tag (PEP 600) of files that need these versions.

    It is never below that of torch, which is manylinux_2_28.
    """
    for glibc, has in COMPILER_LIBRARIES.items():
        if all(needed.get(name, ()) <= newest for name, newest in has.items()):
            major, minor = max(glibc, needed.get("GLIBC", ()))[:2]
            return f"manylinux_{major}_{minor}_x86_64"
    raise WheelError(f"the files need a newer libstdc++ or libgcc than the systems in this script have: {needed}")


def run(*command):
    """Returns the standard output of a command."""
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout


def shared_files(command):
    """Returns {path below `share`: bytes}: the manual pages and the completions that the command generates."""
    files = {path: run(command, "completions", shell) for shell, path in COMPLETIONS.items()}
    with tempfile.TemporaryDirectory() as folder:
        run(command, "man", "--out", folder)
        for page in pathlib.Path(folder).iterdir():
            files[f"man/man1/{page.name}"] = page.read_bytes()
    return files


def metadata():
    """Returns the text of METADATA, version 2.4."""
    fields = {
        "Metadata-Version": "2.4",
        "Name": "triton-diffusion",
        "Version": version(),
        "Summary": "A Triton Inference Server backend that serves Stable Diffusion from libtorch",
        "License-Expression": "Apache-2.0",
        "License-File": ["LICENSE", "NOTICE", "THIRD_PARTY_LICENSES"],
        "Keywords": "triton,stable-diffusion,diffusers,libtorch,inference",
        "Classifier": ["Operating System :: POSIX :: Linux", "Programming Language :: Rust"],
        "Requires-Dist": torch_requirement(),
        # As torch.
        "Requires-Python": ">=3.10",
        "Description-Content-Type": "text/markdown",
    }
    lines = [
        f"{name}: {value}"
        for name, values in fields.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    description = (
        "The backend `diffusion` of the Triton Inference Server, and the command `triton-diffusion`:\n\n"
        "```\ntritonserver --model-repository=models "
        '--backend-directory="$(triton-diffusion backend-directory)"\n```\n'
    )
    return "\n".join(lines) + "\n\n" + description


def contents(library, command, tag):
    """Returns {path in the wheel: (bytes, mode)}, without RECORD."""
    name = f"triton_diffusion-{version()}"
    information = f"{name}.dist-info"
    files = {
        "triton_diffusion/backends/diffusion/libtriton_diffusion.so": (library.read_bytes(), 0o755),
        "triton_diffusion/bin/triton-diffusion": (command.read_bytes(), 0o755),
    }
    for source in sorted((ROOT / "tools" / "wheel" / "triton_diffusion").glob("*.py")):
        files[f"triton_diffusion/{source.name}"] = (source.read_bytes(), 0o644)
    texts = {
        "METADATA": metadata(),
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: build_wheel\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n",
        "entry_points.txt": "[console_scripts]\ntriton-diffusion = triton_diffusion.__main__:main\n",
        "licenses/LICENSE": (ROOT / "LICENSE").read_text(),
        "licenses/NOTICE": (ROOT / "NOTICE").read_text(),
        "licenses/THIRD_PARTY_LICENSES": third_party.crate_licenses(),
    }
    files |= {f"{information}/{path}": (text.encode(), 0o644) for path, text in texts.items()}
    files |= {f"{name}.data/data/share/{path}": (data, 0o644) for path, data in shared_files(command).items()}
    return files


def write(wheel, files, record):
    """Writes the archive: sorted, with RECORD last, and without the times and owners of this machine."""
    lines = []
    for path, (data, _) in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    lines.append(f"{record},,\n")
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, (data, mode) in [*sorted(files.items()), (record, ("".join(lines).encode(), 0o644))]:
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=6)


def main():
    parser = argparse.ArgumentParser(description="Writes the wheel of the files that `make backend` built.")
    parser.add_argument("--out", type=pathlib.Path, default=DIST, help="the folder of the wheel (default: dist)")
    out = parser.parse_args().out
    library = DIST / "backends" / "diffusion" / "libtriton_diffusion.so"
    command = DIST / "bin" / "triton-diffusion"
    for file in (library, command):
        if not file.exists():
            parser.exit(1, f"build_wheel: {file} is missing: run 'make backend'\n")
    tag = platform_tag(symbol_versions(run("objdump", "-T", library, command).decode()))
    wheel = out / f"triton_diffusion-{version()}-py3-none-{tag}.whl"
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("triton_diffusion-*.whl"):
        old.unlink()
    write(wheel, contents(library, command, tag), f"triton_diffusion-{version()}.dist-info/RECORD")
    print(f"wheel: {wheel}")


if __name__ == "__main__":
    main()
