//! Compiles the C++ shim of `src/torch` and sets how the library finds libtorch.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    for file in ["shim.cpp", "shim.h", "cpu_allocator.cpp", "cpu_allocator.h"] {
        println!("cargo:rerun-if-changed=src/torch/{file}");
    }

    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo:error=LIBTORCH is not set: build with `make build`, which fetches libtorch");
        return;
    };
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        // The wheels of libtorch are built with the C++11 ABI since 2.6.
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // libtorch's headers are not free of warnings.
        .warnings(false)
        .file("src/torch/shim.cpp")
        .file("src/torch/cpu_allocator.cpp")
        .compile("td_shim");

    // The shipped library finds libtorch in its own folder; or, as part of the wheel (`triton_diffusion/backends/diffusion`
    // in `site-packages`), in the package `torch`. Programs in the build folder (`target/release` and below) find it where
    // `make setup` put it.
    for place in [
        "$ORIGIN",
        "$ORIGIN/../../../torch/lib",
        "$ORIGIN/../libtorch/lib",
        "$ORIGIN/../../libtorch/lib",
    ] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{place}");
    }
    let fetched = libtorch.join("lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", fetched.display());
}
