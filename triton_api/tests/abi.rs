//! The header, the real server and the fake server declare the same functions.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use object::{Object, ObjectSymbol};

const HEADER: &str = include_str!("../include/triton_api.h");

/// Returns the functions that the header declares: API names before a parenthesis.
fn declared() -> BTreeSet<String> {
    let mut code = String::new();
    for (index, part) in HEADER.split("/*").enumerate() {
        code += if index == 0 {
            part
        } else {
            part.split_once("*/").expect("a comment ends").1
        };
    }
    code.match_indices('(')
        .filter_map(|(at, _)| {
            let before = &code[..at];
            let start = before
                .rfind(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .map_or(0, |last| last + 1);
            let name = &before[start..];
            (name.starts_with("TRITONSERVER_") || name.starts_with("TRITONBACKEND_")).then(|| name.to_owned())
        })
        .collect()
}

/// Returns the path of the server's library, from the environment or the repository's virtual environment.
fn server_library() -> PathBuf {
    if let Some(path) = env::var_os("TRITON_SERVER_LIBRARY") {
        return path.into();
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
    let children = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    children(&lib)
        .iter()
        .flat_map(|python| children(&python.join("site-packages/nvidia_pytriton.libs")))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libtritonserver") && name.contains(".so")
        })
        .unwrap_or_else(|| {
            panic!(
                "no libtritonserver*.so below {}: run `make setup`, or set TRITON_SERVER_LIBRARY \
                 to the library of a server",
                lib.display()
            )
        })
}

#[test]
fn real_server_exports_all_declared_functions() {
    let path = server_library();
    let data = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = object::File::parse(data.as_slice()).expect("an ELF library");
    let exported: BTreeSet<&str> = file
        .dynamic_symbols()
        .filter(|symbol| symbol.is_definition())
        .filter_map(|symbol| symbol.name().ok())
        .collect();
    let declared = declared();
    assert!(declared.len() > 50, "only found {declared:?}");
    let missing: Vec<_> = declared
        .iter()
        .filter(|name| !exported.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "{}: lacks {missing:?}", path.display());
}

#[test]
fn fake_server_defines_all_declared_functions() {
    let defined: BTreeSet<String> = triton_fake::DEFINED.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(declared(), defined);
}
