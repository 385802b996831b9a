//! Sets where the program finds libtorch when it runs.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    // Beside the program, as in `dist/backends/diffusion`; in Triton's folder of backends, from a `bin` folder or from
    // the folder above; and where `make setup` put it, for what runs from `target/release` and the folders in it.
    for place in [
        "$ORIGIN",
        "$ORIGIN/../backends/diffusion",
        "$ORIGIN/backends/diffusion",
        "$ORIGIN/../libtorch/lib",
        "$ORIGIN/../../libtorch/lib",
    ] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{place}");
    }
    if let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) {
        let fetched = libtorch.join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", fetched.display());
    }
}
