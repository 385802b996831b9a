//! What the tests of the program share.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use test_support::recipe::Recipe;
pub use test_support::{checkpoint, copy_folder, temporary_folder as temporary};

/// A copy of a generated checkpoint, to be changed.
pub fn copy(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    copy_folder(&checkpoint(name), &folder);
    folder
}

/// A checkpoint as it lies in the Hugging Face cache: every file is a link to a blob.
pub fn linked(name: &str, to: &Path) -> PathBuf {
    let blobs = copy(name, &to.join("blobs"));
    let folder = to.join(format!("models--org--{name}/snapshots/0123abcd"));
    link_files(&blobs, &folder);
    folder
}

fn link_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            link_files(&entry.path(), &target);
        } else {
            symlink(entry.path(), target).unwrap();
        }
    }
}

/// Runs the program in `folder`.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_triton-diffusion"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// What the program prints when all is well.
pub fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the program says when it fails; on its error output, with status 1.
pub fn fail(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Every file below a folder with its contents, by its path in it.
pub fn files(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    add_files(folder, folder, &mut files);
    files
}

fn add_files(root: &Path, folder: &Path, files: &mut std::collections::BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_files(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// Writes a file of a LoRA of the goldens: tensors, or a configuration.
pub fn write_lora(name: &str, file: &Path) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/goldens/adapters.json");
    let manifest: Value = serde_json::from_str(&fs::read_to_string(goldens).unwrap()).unwrap();
    let files = manifest["files"].as_array().unwrap();
    let found = files.iter().find(|one| one["path"] == name).unwrap();
    let content = &found["content"];
    let bytes = if content.get("tensors").is_some() {
        let recipe: Recipe = serde_json::from_value(content.clone()).unwrap();
        recipe.weights().unwrap()
    } else {
        content.to_string().into_bytes()
    };
    fs::write(file, bytes).unwrap();
}
