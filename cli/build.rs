//! Sets where the program finds libtorch when it runs.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    // libtorch is in the program's folder; in Triton's folder of backends, seen from a `bin` folder or from the folder above
    // it; in the package `torch` next to the package `triton_diffusion`, which has the program in its `bin`; or, for programs
    // in `target/release` and below, where `make setup` put it.
    for place in [
        "$ORIGIN",
        "$ORIGIN/../backends/diffusion",
        "$ORIGIN/backends/diffusion",
        "$ORIGIN/../../torch/lib",
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
