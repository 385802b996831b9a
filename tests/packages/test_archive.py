"""What is in the archive for /opt/tritonserver/backends."""

import tarfile

import build_archive
import build_wheel
from installation import DIST


def test_files_are_those_of_dist_and_the_licenses(archive):
    assert archive.name == f"triton-diffusion-{build_wheel.version()}-linux-x86_64.tar.gz"
    with tarfile.open(archive) as opened:
        entries = opened.getmembers()
    names = [entry.name for entry in entries]
    built = {f"diffusion/{file.name}" for file in (DIST / "backends" / "diffusion").iterdir() if file.is_file()}
    licenses = {name for name in names if name.startswith("diffusion/licenses/")}
    assert set(names) - licenses == built | {"diffusion/triton-diffusion"}
    for expected in ("LICENSE", "THIRD_PARTY_LICENSES", "torch/LICENSE", "nvidia-cuda-runtime/License.txt"):
        assert f"diffusion/licenses/{expected}" in licenses


def test_nothing_depends_on_this_machine(archive):
    with tarfile.open(archive) as opened:
        entries = opened.getmembers()
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    for entry in entries:
        assert entry.isreg(), entry.name
        assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", ""), entry.name
        expected = 0o644 if entry.name.startswith("diffusion/licenses/") else 0o755
        assert entry.mode == expected, entry.name
    # The header of gzip: no name, and no time.
    assert archive.read_bytes()[3:8] == bytes(5)


def test_cuda_adds_its_libraries_and_licenses(tmp_path, monkeypatch):
    backend = tmp_path / "backends" / "diffusion"
    (backend / "cuda").mkdir(parents=True)
    (backend / "libtorch_cpu.so").touch()
    (backend / "cuda" / "libtorch_cuda.so").touch()
    monkeypatch.setattr(build_archive, "DIST", tmp_path)
    monkeypatch.setattr(build_archive, "license_files", lambda cuda: {})
    without = {"diffusion/libtorch_cpu.so", "diffusion/triton-diffusion"}
    assert build_archive.members(cuda=False).keys() == without
    assert build_archive.members(cuda=True).keys() == without | {"diffusion/cuda/libtorch_cuda.so"}
