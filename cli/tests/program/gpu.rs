//! The program on a pretend GPU (tests/gpu/pretend), in the folders that `make backend CUDA=1` makes.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{checkpoint, succeed, temporary};

fn repository(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    assert!(path.exists(), "{} is missing: run `make pretend`", path.display());
    path.canonicalize().unwrap()
}

/// Puts the program into `bin`, libtorch into `backends/diffusion`, and the pretend GPU into its `cuda`.
fn install(folder: &Path) {
    let backend = folder.join("backends/diffusion");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(backend.join("cuda")).unwrap();
    fs::copy(
        env!("CARGO_BIN_EXE_triton-diffusion"),
        folder.join("bin/triton-diffusion"),
    )
    .unwrap();
    for name in [
        "libtorch_cpu.so",
        "libc10.so",
        "libgomp.so.1",
        "libcudart.so.13",
        "libcupti.so.13",
    ] {
        symlink(repository("target/libtorch/lib").join(name), backend.join(name)).unwrap();
    }
    symlink(
        repository("target/pretend/libtorch_cuda.so"),
        backend.join("cuda/libtorch_cuda.so"),
    )
    .unwrap();
}

/// Runs the program as a shell finds it in `PATH`.
fn run_from_path(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("triton-diffusion");
    command
        .args(arguments)
        .current_dir(folder)
        .env("PATH", folder.join("bin"))
        .env("OMP_NUM_THREADS", "1")
        .env_remove("TRITON_DIFFUSION_CUDA_PATH");
    // A process that another test starts has the copy open for writing for a moment.
    let output = loop {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::sleep(Duration::from_millis(10)),
            output => break output.unwrap(),
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn program_in_path_finds_cuda_next_to_libtorch() {
    let folder = temporary();
    install(folder.path());
    let model = checkpoint("sd1").display().to_string();
    let arguments = [
        "--prompt",
        "a",
        "--set",
        "num_inference_steps=2",
        "--device",
        "cuda:0",
        "--out",
        "gpu.png",
    ];
    let told = run_from_path(folder.path(), &[&["generate", &model], &arguments[..]].concat());
    assert!(told.ends_with("gpu.png\n"), "{told}");
    assert!(folder.path().join("gpu.png").exists());
}

#[test]
fn benchmark_prints_the_times_of_each_number_of_images() {
    let folder = temporary();
    install(folder.path());
    let model = checkpoint("sd1").display().to_string();
    let arguments = [
        "benchmark",
        &model,
        "--steps",
        "4",
        "--images",
        "1,2",
        "--json",
        "--width",
        "64",
    ];
    let on_the_cpu = succeed(folder.path(), &arguments);
    let on_the_gpu = run_from_path(folder.path(), &[&arguments[..], &["--device", "cuda:0"]].concat());
    for (text, device, dtype) in [(on_the_cpu, "cpu", "float32"), (on_the_gpu, "cuda:0", "float16")] {
        let result: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&result["device"], &result["dtype"]), (&device.into(), &dtype.into()));
        assert!(result["load_seconds"].as_f64().unwrap() > 0.0);
        assert!(result["weights_bytes"].as_u64().unwrap() > 0);
        let runs = result["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        for (run, images) in runs.iter().zip([1, 2]) {
            assert_eq!(run["images"], images);
            for time in ["prepare_ms", "first_step_ms", "step_ms", "finish_ms"] {
                assert!(run[time].as_f64().unwrap() > 0.0, "{time} in {run}");
            }
            assert_eq!(run["memory_used_bytes"].is_null(), device == "cpu");
        }
    }
}
