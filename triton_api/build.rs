//! Turns `include/triton_api.h` into Rust declarations (`sys`).

use std::env;
use std::error::Error;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEADER: &str = "include/triton_api.h";

const NO_LIBCLANG: &str = "bindgen could not load libclang. Set LIBCLANG_PATH to the folder that \
     contains libclang.so; the Python wheel `libclang` has one in its folder `clang/native`, and \
     `make build` installs it and sets the variable.";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={HEADER}");
    println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");

    let mut builder = bindgen::Builder::default()
        .header(HEADER)
        .allowlist_file(r".*triton_api\.h")
        .prepend_enum_name(false)
        .generate_comments(false)
        .layout_tests(false)
        .rust_edition(bindgen::RustEdition::Edition2024);
    if let Some(include) = compiler_headers() {
        builder = builder.clang_arg("-isystem").clang_arg(include);
    }

    // bindgen panics if the library is missing. The error includes bindgen's message, without a backtrace.
    panic::set_hook(Box::new(|_| {}));
    let bindings =
        panic::catch_unwind(panic::AssertUnwindSafe(|| builder.generate())).map_err(|payload| {
            match payload.downcast::<String>() {
                Ok(reason) => format!("{NO_LIBCLANG} ({reason})"),
                Err(_) => NO_LIBCLANG.to_owned(),
            }
        })??;
    drop(panic::take_hook());
    let out = PathBuf::from(env::var("OUT_DIR")?).join("sys.rs");
    bindings.write_to_file(out)?;
    Ok(())
}

/// Returns the C compiler's folder with `stddef.h` and `stdbool.h`. The libclang of the Python wheel has no headers.
fn compiler_headers() -> Option<String> {
    let compiler = env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
    let output = Command::new(compiler).arg("-print-file-name=include").output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&folder).is_absolute().then_some(folder)
}
