//! Checks what each folder of `src/` may import. The crates under `crates/` need no check: Cargo refuses what is not in
//! their `Cargo.toml`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a folder of `src/` may use.
struct Rule {
    folder: &'static str,
    /// Other folders of `src/`. A folder may only name folders that come after it in `RULES`, so there is no circle.
    folders: &'static [&'static str],
    /// Crates that others may not use.
    crates: &'static [&'static str],
    /// Whether `unsafe` is allowed. Elsewhere only `unsafe impl Frozen` is, next to the model that it is about.
    may_be_unsafe: bool,
}

const RULES: [Rule; 9] = [
    Rule {
        folder: "backend",
        folders: &["request", "pipelines", "weights", "torch"],
        crates: &["triton_api", "diffusion_engine", "diffusion_image", "diffusion_request"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "request",
        folders: &[],
        crates: &["triton_api", "diffusion_request"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "pipelines",
        folders: &["adapters", "models", "processors", "schedulers", "weights", "torch"],
        crates: &["tch", "diffusion_engine", "diffusion_image", "diffusion_request"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "adapters",
        folders: &["models", "weights"],
        crates: &["tch"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "models",
        folders: &["weights", "torch"],
        crates: &["tch"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "processors",
        folders: &["weights", "torch"],
        crates: &["tch", "diffusion_image"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "schedulers",
        folders: &["torch"],
        crates: &["tch"],
        may_be_unsafe: false,
    },
    Rule {
        folder: "weights",
        folders: &["torch"],
        crates: &["tch"],
        may_be_unsafe: true,
    },
    Rule {
        folder: "torch",
        folders: &[],
        crates: &["tch", "torch_sys", "diffusion_kernels"],
        may_be_unsafe: true,
    },
];

/// Crates whose use is restricted to the folders that name them above.
const RESTRICTED_CRATES: [&str; 7] = [
    "tch",
    "torch_sys",
    "triton_api",
    "diffusion_engine",
    "diffusion_image",
    "diffusion_kernels",
    "diffusion_request",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The Rust files below a folder, without test modules in files of their own.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code of a file: without comments and without inline test modules, which end the file.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first names of paths that start with `prefix`, such as `weights` of `crate::weights::Loader`; those in braces too.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let name = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let inside_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &code[at + prefix.len()..];
        if inside_word {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (index, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if c.is_whitespace() => {}
                        _ if start => {
                            names.insert(name(&group[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => {
                names.insert(name(rest));
            }
        }
    }
    names
}

/// Whether the code names a crate: `tch::...`, or `use tch;`.
fn uses_crate(code: &str, name: &str) -> bool {
    !names_after(code, &format!("{name}::")).is_empty() || code.contains(&format!("use {name};"))
}

/// What a file does that its folder's rule forbids.
fn violations(rule: &Rule, code: &str) -> Vec<String> {
    let folders: BTreeSet<&str> = RULES.iter().map(|rule| rule.folder).collect();
    let mut found = Vec::new();
    for name in names_after(code, "crate::") {
        if name != rule.folder && folders.contains(name.as_str()) && !rule.folders.contains(&name.as_str()) {
            found.push(format!("`{}` imports `crate::{name}`", rule.folder));
        }
    }
    for name in RESTRICTED_CRATES {
        if !rule.crates.contains(&name) && uses_crate(code, name) {
            found.push(format!("`{}` uses the crate `{name}`", rule.folder));
        }
    }
    if code.contains("triton_api::sys") {
        found.push(format!("`{}` uses Triton's raw bindings", rule.folder));
    }
    for line in code.lines() {
        let is_unsafe = names_after(line, "unsafe ").iter().any(|name| !name.is_empty()) || line.contains("unsafe {");
        if is_unsafe && !rule.may_be_unsafe && !line.trim_start().starts_with("unsafe impl Frozen for ") {
            found.push(format!("`{}` has unsafe code: {}", rule.folder, line.trim()));
        }
    }
    found
}

#[test]
fn every_folder_imports_only_what_its_rule_allows() {
    let mut found = Vec::new();
    for rule in &RULES {
        for file in rust_files(&root().join("src").join(rule.folder)) {
            let broken = violations(rule, &code(&file));
            found.extend(broken.into_iter().map(|what| format!("{}: {what}", file.display())));
        }
    }
    assert!(
        found.is_empty(),
        "docs/architecture.md says who may import what:\n{}",
        found.join("\n")
    );
}

#[test]
fn every_folder_has_a_rule() {
    let known: BTreeSet<&str> = RULES.iter().map(|rule| rule.folder).collect();
    let folders: BTreeSet<String> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(folders.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn rules_name_only_folders_that_come_later() {
    for (index, rule) in RULES.iter().enumerate() {
        let later: BTreeSet<&str> = RULES[index + 1..].iter().map(|rule| rule.folder).collect();
        assert!(
            rule.folders.iter().all(|folder| later.contains(folder)),
            "{}",
            rule.folder
        );
    }
}

/// Files and folders inside these folders import each other in one direction.
#[test]
fn modules_of_a_folder_form_no_circle() {
    for (folder, prefix) in [
        ("src/models", "crate::models::"),
        ("src/models/layers", "crate::models::layers::"),
        ("src/schedulers", "crate::schedulers::"),
        ("src/pipelines", "crate::pipelines::"),
        ("cli/src", "crate::"),
        ("cli/src/convert", "crate::convert::"),
    ] {
        let folder = root().join(folder);
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for file in rust_files(&folder) {
            let module = file.strip_prefix(&folder).unwrap().iter().next().unwrap();
            let module = module.to_string_lossy().trim_end_matches(".rs").to_owned();
            if ["mod", "main"].contains(&module.as_str()) {
                continue;
            }
            let code = code(&file);
            let mut named = names_after(&code, prefix);
            if file.parent() == Some(folder.as_path()) {
                named.extend(names_after(&code, "super::"));
            } else {
                named.extend(names_after(&code, "super::super::"));
            }
            imports.entry(module).or_default().extend(named);
        }
        for module in imports.keys() {
            let mut reached = BTreeSet::new();
            let mut next: Vec<&String> = imports[module].iter().filter(|name| *name != module).collect();
            while let Some(name) = next.pop() {
                if reached.insert(name) {
                    next.extend(imports.get(name).into_iter().flatten());
                }
            }
            assert!(
                !reached.contains(module),
                "{}: `{module}` imports itself through {reached:?}",
                folder.display()
            );
        }
    }
}

#[test]
fn a_forbidden_import_is_found() {
    let rule = RULES.iter().find(|rule| rule.folder == "schedulers").unwrap();
    for (code, what) in [
        ("use crate::pipelines::Job;", "imports `crate::pipelines`"),
        ("use crate::{torch, models::clip};", "imports `crate::models`"),
        ("fn f(request: &triton_api::Request) {}", "uses the crate `triton_api`"),
        ("let x = unsafe { y() };", "has unsafe code"),
        ("unsafe impl Send for X {}", "has unsafe code"),
    ] {
        let found = violations(rule, code).join("\n");
        assert!(found.contains(what), "{code}: {found}");
    }
    assert!(violations(rule, "use crate::torch::Generator;\nuse tch::Tensor;").is_empty());
}
