"""The GPU check without a GPU: its arithmetic, its verdicts, its files, and the command in float32 on the CPU."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

import benchmark
import budget
import cases
import correctness
import fake_command
import fault
import images
import libraries
import memory
import report
import seeded_checkpoints
import speed
from command import Command, Outcome

CHECK = libraries.ROOT / "tools" / "gpu_check"
COMMAND = libraries.ROOT / "dist" / "bin" / "triton-diffusion"
WORKLOAD = {"device": "cpu", "dtype": "float32", "images": [1, 2], "steps": 3, "height": 64, "width": 64}


def check(*arguments, **variables):
    """Runs the check as a user does, with environment variables; returns the finished process."""
    return subprocess.run(
        [sys.executable, CHECK, *arguments], env=os.environ | variables, capture_output=True, text=True
    )


# Images and verdicts.


def test_psnr_of_equal_images_is_infinite():
    image = np.full((4, 4, 3), 7, np.uint8)
    assert images.psnr(image, image.copy()) == math.inf


def test_psnr_of_one_byte_in_fifteen_is_60_db():
    image = np.zeros((5, 5, 3), np.uint8)
    other = image.copy()
    other.reshape(-1)[::15] = 1
    assert images.psnr(image, other) == pytest.approx(10 * math.log10(255**2 * 15))
    assert images.psnr(image, other) == pytest.approx(60, abs=0.2)


def test_psnr_does_not_wrap_around():
    assert images.psnr(np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)) == 0


def test_psnr_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"expected an image of shape \[2, 1, 3\], got \[1, 2, 3\]"):
        images.psnr(np.zeros((1, 2, 3), np.uint8), np.zeros((2, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("float32", "float16", "ok"),
    [(math.inf, None, True), (60.0, 40.0, True), (59.9, 50.0, False), (80.0, 39.9, False), (math.nan, None, False)],
)
def test_correctness_verdict(float32, float16, ok):
    assert correctness.verdict({"float32_db": float32, "float16_db": float16}) is ok


@pytest.mark.parametrize(
    ("status", "stderr", "psnr", "ok", "text"),
    [
        (0, "", math.inf, True, "same image"),
        (0, "", 40.0, True, "same image"),
        (0, "", 39.9, False, "another image"),
        (0, "", None, False, "exit status 0 without an image"),
        (1, "error: out of memory: UNet call\n", None, True, "out of memory"),
        (1, "warning: w\nerror: an illegal memory access\n", None, False, "exit status 1: error: an illegal memory"),
        (101, "out of memory\n", None, False, "exit status 101: out of memory"),
        (-11, "", None, False, "signal 11"),
        (-6, "terminate called: out of memory", None, False, "signal 6: terminate called: out of memory"),
        (None, "", None, False, "stopped after 2 s"),
    ],
)
def test_memory_verdict(status, stderr, psnr, ok, text):
    verdict = memory.verdict(Outcome(status, "", stderr, 2.0), psnr)
    assert verdict[0] is ok
    assert verdict[1].startswith(text)


@pytest.mark.parametrize(
    ("most", "least", "verdicts"),
    [
        ("same image", "out of memory", [True, True]),
        ("same image", "same image", [True, False]),
        ("out of memory", "out of memory", [False, True]),
    ],
)
def test_memory_sweep_needs_an_image_and_an_error(most, least, verdicts):
    rows = [{"ok": True, "outcome": most}, {"ok": True, "outcome": least}]
    memory.check_ends(rows)
    assert [row["ok"] for row in rows] == verdicts


# A sweep over a command that needs 3 GiB.
SWEEP = """
import os, sys
sys.path[:0] = [{gpu_check!r}]
import images, numpy
limit = float(os.environ.get("PYTORCH_ALLOC_CONF", ":1").split(":")[1]) * (16 << 30)
if limit < 3 << 30:
    print("error: out of memory: loading", file=sys.stderr)
    sys.exit({status})
images.write(sys.argv[5], numpy.arange(48, dtype=numpy.uint8).reshape(4, 4, 3) * {factor})
"""
FACTS = {"memory_bytes": 16 << 30, "memory_free_bytes": 16 << 30}


def sweep(script, status=1, factor=1):
    command = Command(script(SWEEP.format(gpu_check=str(CHECK), status=status, factor=factor)), {})
    part = report.Part("memory")
    workload = WORKLOAD | {"device": "cuda:0"}
    memory.run(part, command, "folder", 2 << 30, workload, FACTS, budget.Deadline(60), quick=True)
    return part


def test_memory_sweep_over_a_good_command_passes(script):
    part = sweep(script)
    assert part.passed
    assert [row["outcome"] for row in part.rows] == ["same image", "out of memory", "out of memory"]
    assert [row["mib"] for row in part.rows] == [6144, 2252, 204]


def test_memory_sweep_over_a_crash_fails(script):
    assert not sweep(script, status=139).passed


def test_memory_sweep_refuses_an_image_of_one_color(script):
    with pytest.raises(memory.Failed, match="every byte of the image is 0"):
        sweep(script, factor=0)


# The table and the JSON file.


def test_table_aligns_text_left_and_numbers_right():
    rows = [
        {"case": "a", "db": math.inf, "n": 1, "ok": True, "note": None},
        {"case": "long", "db": 61.239, "n": 10, "ok": False, "note": "why"},
    ]
    assert report.table(rows).splitlines() == [
        "case     db   n      ok  note",
        "a     equal   1      ok  -",
        "long  61.24  10  FAILED  why",
    ]


def test_describe_names_verdict_notes_and_error():
    assert report.describe(report.Part("speed", skipped="needs a GPU")) == "speed: skipped (0 s)\nneeds a GPU\n"
    text = report.describe(report.Part("speed", rows=[{"images": 1, "ok": True}], notes=["a note"], error="no"))
    assert text == "speed: FAILED (0 s)\nimages  ok\n     1  ok\na note\nerror: no\n"


def test_json_has_no_infinities():
    part = report.Part("correctness", rows=[{"db": math.inf, "other": math.nan, "ok": True}])
    result = json.loads(report.to_json({"device": "cpu"}, [part]))
    assert result["device"] == "cpu"
    assert result["passed"] is True
    assert result["parts"][0]["passed"] is True
    assert result["parts"][0]["rows"] == [{"db": "equal", "other": None, "ok": True}]


@pytest.mark.parametrize(
    ("part", "passed"),
    [
        (report.Part("a"), True),
        (report.Part("a", rows=[{"ok": True}, {"ok": False}]), False),
        (report.Part("a", error="no"), False),
        (report.Part("a", skipped="no GPU"), True),
    ],
)
def test_part_passes_unless_a_line_or_the_part_failed(part, passed):
    assert part.passed is passed


def test_deadline_ends():
    clock = types.SimpleNamespace(now=100.0)
    deadline = budget.Deadline(10, lambda: clock.now)
    assert deadline.remaining() == 10
    assert deadline.remaining(3) == 3
    clock.now = 109.0
    assert deadline.remaining(3) == 1
    clock.now = 110.0
    with pytest.raises(budget.OutOfTime):
        deadline.remaining()


# The command's benchmark.


def run_of(**changes):
    run = {"images": 1, "prepare_ms": 1, "first_step_ms": 2, "step_ms": 3.5, "finish_ms": 4, "memory_used_bytes": None}
    return run | changes


def result_of(*runs, **changes):
    result = {"device": "cpu", "dtype": "float32", "load_seconds": 0.1, "weights_bytes": 5, "runs": list(runs)}
    return json.dumps({key: value for key, value in (result | changes).items() if value is not None})


def test_benchmark_result_is_read_by_images():
    text = result_of(run_of(), run_of(images=2, step_ms=6, memory_used_bytes=7))
    result, runs = benchmark.read(text, [1, 2])
    assert result["weights_bytes"] == 5
    assert runs[2]["step_ms"] == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one JSON object, got ''"),
        ("[]", "expected one JSON object, got '\\[\\]'"),
        (result_of(run_of(), weights_bytes=None), "expected the key weights_bytes"),
        (result_of(run_of(step_ms=0)), "run of 1 images: expected a positive step_ms, got 0"),
        (result_of(run_of(step_ms=math.nan)), "expected a positive step_ms, got nan"),
        (result_of(run_of(step_ms=None)), "expected a positive step_ms, got None"),
        (result_of(run_of(memory_used_bytes="7")), "run of 1 images: expected bytes, got 7"),
        (result_of(run_of(images=2)), r"expected runs of \[1\] images, got \[2\]"),
    ],
)
def test_benchmark_result_that_breaks_the_contract_is_refused(text, message):
    with pytest.raises(benchmark.Failed, match=message):
        benchmark.read(text, [1])


def test_speed_leaves_out_images_that_do_not_fit(script):
    command = Command(script(fake_command.BENCHMARK), {})
    part = report.Part("speed")
    speed.run(part, command, "folder", WORKLOAD | {"images": [1, 2, 4, 8]}, budget.Deadline(60), eager=False)
    assert part.passed
    assert [row["step_ms"] for row in part.rows] == [20.0, 20.0, None, None]
    assert [row["note"] for row in part.rows] == [None, None, "out of memory", "out of memory"]
    assert part.rows[1]["ms_per_image"] == 10
    assert part.rows[0]["memory_mib"] == 1024
    assert part.rows[0]["ratio"] is None


def test_speed_ratio_is_eager_divided_by_ours():
    row = speed.row(2, run_of(images=2, step_ms=10), {"images": 2, "step_ms": 18.0})
    assert row["ratio"] == 1.8
    assert speed.row(2, run_of(images=2), {"images": 2, "step_ms": None})["ratio"] is None


def test_benchmark_that_fails_is_an_error(script):
    command = Command(script("import sys\nsys.exit('error: no such folder')"), {})
    with pytest.raises(benchmark.Failed, match="benchmark: exit status 1: error: no such folder"):
        benchmark.of_command(command, "folder", WORKLOAD, budget.Deadline(60))


@pytest.mark.skipif(not COMMAND.exists(), reason="needs `make backend`")
def test_benchmark_of_the_command_keeps_the_contract():
    command = Command(COMMAND, libraries.environment("cpu", libraries.torch_folder()))
    folder = seeded_checkpoints.write() / "sd2_base"
    result, runs = benchmark.of_command(command, folder, WORKLOAD, budget.Deadline(120))
    assert (result["device"], result["dtype"]) == ("cpu", "float32")
    assert sorted(runs) == [1, 2]


# The libraries.


def test_environment_keeps_what_the_user_set(tmp_path, monkeypatch):
    folder = tmp_path / "torch" / "lib"
    folder.mkdir(parents=True)
    (folder / "libtorch_cuda.so").touch()
    (tmp_path / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    monkeypatch.delenv(libraries.CUDA_PATH, raising=False)
    on_gpu = libraries.environment("cuda:0", folder)
    assert on_gpu["LD_LIBRARY_PATH"] == f"/own:{folder}:{tmp_path}/nvidia/cu13/lib"
    assert on_gpu[libraries.CUDA_PATH] == str(folder)
    assert libraries.CUDA_PATH not in libraries.environment("cpu", folder)
    monkeypatch.setenv(libraries.CUDA_PATH, "/cuda")
    assert libraries.environment("cuda:0", folder)[libraries.CUDA_PATH] == "/cuda"
    assert libraries.environment("cuda:0", None)["LD_LIBRARY_PATH"] == "/own"


def test_pytorch_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(libraries, "installed_version", lambda: "2.10.0")
    assert libraries.torch_folder() is None


# The whole check.


def test_cases_exist_and_cover_each_pipeline_twice():
    loaded = list(cases.load())
    assert len(loaded) == 2 * len(cases.CASES)
    assert len(list(cases.load(quick=True))) == len(cases.CASES)
    for _, case, tensors in loaded:
        assert cases.expected(case, tensors).ndim == 3


def fake_generate(change):
    return fake_command.GENERATE.format(tools=str(CHECK.parent), gpu_check=str(CHECK), change=change)


@pytest.mark.parametrize(
    "status, stderr, ok",
    [
        (1, "error: GPU 3 failed: libtorch: CUDA error: device-side assert triggered", True),
        (1, "error: libtorch: CUDA error: device-side assert triggered", False),
        (-6, "terminate called\nGPU 3 failed", False),
        (0, "GPU 3 failed", False),
    ],
)
def test_fault_verdict(status, stderr, ok):
    assert fault.verdict(Outcome(status, "", stderr, 1.0), 3)[0] is ok


def test_fault_of_the_test_command_is_a_row(script):
    text = "import sys\nassert '--lose-device' in sys.argv\nsys.exit('error: GPU 0 failed: no reason')"
    part = report.Part("fault")
    workload = {"device": "cuda:0", "dtype": "float16"}
    fault.run(part, Command(script(text), {}), "folder", workload, budget.Deadline(60))
    assert [row["outcome"] for row in part.rows] == ["the error names the GPU"]


def test_check_with_equal_images_passes(script, tmp_path):
    out = tmp_path / "result.json"
    done = check("--device", "cpu", "--quick", "--command", script(fake_generate(0)), "--json", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("equal  ") == len(cases.CASES)
    assert "memory: skipped" in done.stdout
    result = json.loads(out.read_text())
    assert result["passed"] is True
    assert result["command"] == "fake 1"
    assert [part["name"] for part in result["parts"]] == ["correctness", "weights", "speed", "memory", "fault"]
    assert {row["float32_db"] for row in result["parts"][0]["rows"]} == {"equal"}


def test_check_with_other_images_fails(script, tmp_path):
    out = tmp_path / "result.json"
    done = check("--device", "cpu", "--quick", "--command", script(fake_generate(8)), "--json", out)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("gpu_check: FAILED")
    assert json.loads(out.read_text())["passed"] is False


def test_check_of_a_command_that_crashes_fails(script):
    text = "import os, sys\nif sys.argv[1] != '--version': os.kill(os.getpid(), 11)"
    done = check("--device", "cpu", "--quick", "--command", script(text))
    assert done.returncode == 1
    assert done.stdout.count("float32 on cpu: signal 11") == len(cases.CASES)


def test_check_without_time_fails(script):
    done = check("--device", "cpu", "--quick", "--minutes", "0", "--command", script(fake_generate(0)))
    assert done.returncode == 1
    assert "the time of this part is over" in done.stdout


def test_check_without_a_command_does_not_start(tmp_path):
    done = check("--device", "cpu", "--command", tmp_path / "none")
    assert done.returncode == 2
    assert "none is missing: run 'make backend'" in done.stderr


def test_test_command_serves_as_the_command_if_it_is_alone(script, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_check_main", CHECK / "__main__.py")
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    test_command = script("")
    for present, command in ((False, test_command), (True, tmp_path / "released")):
        monkeypatch.setattr(main, "DEFAULT_COMMAND", tmp_path / "released")
        if present:
            (tmp_path / "released").touch()
        assert main.arguments(["--test-command", str(test_command)]).command == command


def test_check_on_a_gpu_without_pytorch_does_not_start(script, tmp_path):
    # Found before the package that is installed.
    (tmp_path / "torch-0.0.dist-info").mkdir()
    (tmp_path / "torch-0.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 0.0\n")
    done = check("--command", script(""), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert f"expected a Python with PyTorch {libraries.expected_version()} for CUDA, got 0.0" in done.stderr


def test_check_with_an_unknown_part_does_not_start():
    done = check("--parts", "speed,size")
    assert done.returncode == 2
    assert "expected some of correctness,weights,speed,memory,fault, got size" in done.stderr


@pytest.mark.skipif(not COMMAND.exists(), reason="needs `make backend`")
def test_command_passes_the_check_on_the_cpu():
    done = check("--device", "cpu", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert shutil.which("nvidia-smi") or "speed: skipped" in done.stdout


def test_speed_on_the_cpu_runs_when_it_is_named(script):
    arguments = ["--device", "cpu", "--parts", "weights,speed", "--images", "1,2", "--checkpoint", "folder"]
    text = "import sys\nif sys.argv[1] == '--version': sys.exit()\n" + fake_command.BENCHMARK
    done = check(*arguments, "--minutes", "0.2", "--command", script(text))
    assert "--checkpoint names folder" in done.stdout
    assert " 20.00 " in done.stdout
