"""What is in the wheel, and what its command says without the right libtorch."""

import base64
import csv
import hashlib
import io
import zipfile

import pytest

import build_wheel
from installation import Environment, build, run

VERSION = build_wheel.version()


def test_record_lists_every_file(wheel):
    with zipfile.ZipFile(wheel) as opened:
        assert opened.namelist()[-1] == f"triton_diffusion-{VERSION}.dist-info/RECORD"
        record = {row[0]: row[1:] for row in csv.reader(io.StringIO(opened.read(opened.namelist()[-1]).decode()))}
        assert list(record) == opened.namelist()
        for name in opened.namelist()[:-1]:
            data = opened.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert record[name] == [f"sha256={digest}", str(len(data))], name


def test_libtorch_is_required_and_not_contained(wheel):
    with zipfile.ZipFile(wheel) as opened:
        libraries = [name for name in opened.namelist() if ".so" in name]
        text = opened.read(f"triton_diffusion-{VERSION}.dist-info/METADATA").decode()
    assert libraries == ["triton_diffusion/backends/diffusion/libtriton_diffusion.so"]
    assert f"\nVersion: {VERSION}\n" in text
    assert "\nRequires-Dist: torch==2.11.0\n" in text


def test_same_files_give_same_bytes(wheel, tmp_path):
    again = build("build_wheel.py", tmp_path)
    assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())


def test_command_runs(environment, tmp_path):
    expected = f"triton-diffusion {VERSION}\n"
    assert run(environment.command, "--version", folder=tmp_path) == expected
    assert run(environment.python, "-m", "triton_diffusion", "--version", folder=tmp_path) == expected
    assert "unknown" in run(environment.command, "inspect", "--unknown", folder=tmp_path, status=2)


def test_shell_and_man_find_files(environment):
    share = environment.folder / "share"
    assert (share / "man" / "man1" / "triton-diffusion-generate.1").exists()
    for path in build_wheel.COMPLETIONS.values():
        assert "backend-directory" in (share / path).read_text(), path


def test_missing_and_other_libtorch_are_errors(wheel, tmp_path):
    environment = Environment(tmp_path / "environment", wheel)
    error = run(environment.command, "--version", status=1)
    assert f"{environment.packages}/torch/lib/libtorch_cpu.so does not exist" in error
    assert "torch 2.11.0" in error
    environment.add_libtorch()
    (environment.packages / "torch-2.11.0.dist-info").unlink()
    other = environment.packages / "torch-2.12.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.12.1+cpu\n")
    assert "torch 2.11.0 is needed, but torch 2.12.1 is installed" in run(environment.command, "--version", status=1)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cpu\n")
    assert VERSION in run(environment.command, "--version")


@pytest.mark.parametrize(
    ("symbols", "tag"),
    [
        # Never below torch.
        ("GLIBC_2.2.5 memcpy", "manylinux_2_28_x86_64"),
        ("(GLIBC_2.34) x\n(GLIBCXX_3.4.29) y\n(GLIBC_2.4) z", "manylinux_2_34_x86_64"),
        # The C library alone, libstdc++ alone.
        ("(GLIBC_2.36) x\n(GLIBCXX_3.4.9) y", "manylinux_2_36_x86_64"),
        ("(GLIBC_2.17) x\n(GLIBCXX_3.4.30) y", "manylinux_2_35_x86_64"),
        ("(GLIBC_2.17) x\n(CXXABI_1.3.15) y", "manylinux_2_39_x86_64"),
        ("(GLIBC_2.17) x\n(GCC_4.2.0) y", "manylinux_2_28_x86_64"),
        ("(GLIBC_2.17) x\n(GCC_12.0.0) y", "manylinux_2_35_x86_64"),
    ],
)
def test_platform_tag_is_that_of_the_newest_symbol(symbols, tag):
    assert build_wheel.platform_tag(build_wheel.symbol_versions(symbols)) == tag


def test_symbol_newer_than_every_system_is_an_error():
    with pytest.raises(build_wheel.WheelError, match="newer libstdc"):
        build_wheel.platform_tag(build_wheel.symbol_versions("(GLIBCXX_3.4.99) x"))
