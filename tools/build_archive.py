"""Writes dist/triton-diffusion-VERSION-linux-x86_64.tar.gz, to be unpacked in /opt/tritonserver/backends.

It has one folder, `diffusion`: the files of dist/backends/diffusion, the command, and the licenses. With --cuda it has
libtorch's CUDA libraries too, and `cuda` in its name. The same files give the same bytes.
"""

import argparse
import gzip
import io
import pathlib
import re
import tarfile

import third_party
from build_wheel import DIST, ROOT, version

# The packages whose files dist/backends/diffusion has; with CUDA, those of requirements-cuda.txt too.
PACKAGES = ("torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti")


def license_files(cuda):
    """Returns {path below `licenses`: bytes}."""
    packages = list(PACKAGES)
    if cuda:
        requirements = (ROOT / "tools" / "requirements-cuda.txt").read_text()
        packages += re.findall(r"^([a-z0-9-]+)==", requirements, re.MULTILINE)
    files = {name: (ROOT / name).read_bytes() for name in ("LICENSE", "NOTICE")}
    files["THIRD_PARTY_LICENSES"] = third_party.crate_licenses().encode()
    return files | third_party.package_licenses(packages)


def members(cuda):
    """Returns {path in the archive: a file, or the bytes of one}."""
    backend = DIST / "backends" / "diffusion"
    files = [file for file in backend.rglob("*") if file.is_file() and (cuda or file.parent.name != "cuda")]
    found = {f"diffusion/{file.relative_to(backend)}": file for file in files}
    found["diffusion/triton-diffusion"] = DIST / "bin" / "triton-diffusion"
    return found | {f"diffusion/licenses/{path}": data for path, data in license_files(cuda).items()}


def write(archive, files, compression):
    """Writes the archive: sorted, links as files, and without the times and owners of this machine."""
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=compression, fileobj=raw, mtime=0) as compressed,
        tarfile.open(mode="w", fileobj=compressed, format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path, source in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            if isinstance(source, bytes):
                entry.mode, entry.size = 0o644, len(source)
                tar.addfile(entry, io.BytesIO(source))
                continue
            entry.mode, entry.size = 0o755, source.stat().st_size
            with open(source, "rb") as content:
                tar.addfile(entry, content)


def main():
    parser = argparse.ArgumentParser(description="Writes the archive of the files that `make backend` built.")
    parser.add_argument("--cuda", action="store_true", help="with libtorch's CUDA libraries")
    parser.add_argument("--compression", type=int, choices=range(10), default=6, help="the level of gzip (default: 6)")
    parser.add_argument("--out", type=pathlib.Path, default=DIST, help="the folder of the archive (default: dist)")
    arguments = parser.parse_args()
    backend = DIST / "backends" / "diffusion"
    needed = [backend / "libtriton_diffusion.so", DIST / "bin" / "triton-diffusion"]
    if arguments.cuda:
        needed.append(backend / "cuda" / "libtorch_cuda.so")
    for file in needed:
        if not file.exists():
            parser.exit(
                1, f"build_archive: {file} is missing: run 'make backend{' CUDA=1' if arguments.cuda else ''}'\n"
            )
    device = "-cuda" if arguments.cuda else ""
    archive = arguments.out / f"triton-diffusion-{version()}{device}-linux-x86_64.tar.gz"
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(archive, members(arguments.cuda), arguments.compression)
    print(f"archive: {archive}")


if __name__ == "__main__":
    main()
