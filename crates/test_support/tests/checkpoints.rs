//! The checkpoints: complete, generated once, and the same as the ones of `tools/seeded_checkpoints.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use test_support::checkpoints::write;
use test_support::{checkpoint, temporary_folder};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn data() -> PathBuf {
    root().join("tests/data/checkpoints")
}

/// Every file below a folder by its relative path; links are followed.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            let below = files(&path).into_iter();
            found.extend(below.map(|(path, bytes)| (name.join(path), bytes)));
        } else {
            found.push((name, fs::read(path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn checkpoint_holds_weights_instead_of_recipes() {
    for family in fs::read_dir(data()).unwrap() {
        let family = family.unwrap().file_name().into_string().unwrap();
        let names: Vec<PathBuf> = files(&checkpoint(&family)).into_iter().map(|(name, _)| name).collect();
        assert!(
            names.contains(&"unet/diffusion_pytorch_model.safetensors".into()),
            "{names:?}"
        );
        assert!(names.contains(&"model_index.json".into()), "{names:?}");
        assert!(!names.iter().any(|name| name.ends_with("weights.json")), "{names:?}");
    }
}

#[test]
fn write_by_several_threads_generates_once() {
    let folder = temporary_folder();
    let out = folder.path().join("checkpoints");
    let made = || -> SystemTime {
        write(&data(), &out).unwrap();
        fs::metadata(out.join("sd1/model_index.json"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let times: Vec<SystemTime> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(made)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(times.iter().all(|time| *time == times[0]), "{times:?}");
    // Nothing but the folder and the lock is left.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn write_after_a_change_generates_anew() {
    let folder = temporary_folder();
    let (source, out) = (folder.path().join("data"), folder.path().join("checkpoints"));
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/b/config.json"), "{}").unwrap();
    write(&source, &out).unwrap();
    fs::write(source.join("a/b/config.json"), "[]").unwrap();
    std::os::unix::fs::symlink("b", source.join("a/c")).unwrap();
    write(&source, &out).unwrap();
    assert_eq!(fs::read(out.join("a/c/config.json")).unwrap(), b"[]");
    assert!(out.join("a/c").is_symlink());
}

#[test]
fn recipe_with_another_digest_is_refused() {
    let folder = temporary_folder();
    let source = folder.path().join("data/a/unet");
    fs::create_dir_all(&source).unwrap();
    let recipe = r#"{"file": "w.safetensors", "sha256": "00", "seed": "s", "tensors": {"x": {"bias": [[2], "bias"]}}}"#;
    fs::write(source.join("weights.json"), recipe).unwrap();
    let out = folder.path().join("checkpoints");
    let error = write(&folder.path().join("data"), &out).unwrap_err().to_string();
    assert!(error.starts_with("weights of s: expected sha256 00, got "), "{error}");
    assert!(!out.exists());
}

#[test]
fn write_gives_the_files_of_python() {
    let python = root().join(".venv/bin/python");
    if !python.exists() {
        println!("skipped: no .venv; make setup installs it");
        return;
    }
    let folder = temporary_folder();
    let (ours, theirs) = (folder.path().join("rust"), folder.path().join("python"));
    write(&data(), &ours).unwrap();
    let status = Command::new(python)
        .arg(root().join("tools/seeded_checkpoints.py"))
        .arg("--out")
        .arg(&theirs)
        .status();
    assert!(status.unwrap().success());
    // The stamps too: each side takes the other's folder for up to date.
    assert!(files(&ours) == files(&theirs));
}
