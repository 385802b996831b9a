//! The errors of libtorch are converted by `diffusion_core`, which owns the error type.

pub use diffusion_core::libtorch::{from_message, is_out_of_memory};

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "a test fails by panicking")]
    use diffusion_core::Error;

    #[test]
    fn a_real_allocation_failure_is_recognised() {
        let failed = tch::Tensor::f_empty([1 << 50], (tch::Kind::Float, tch::Device::Cpu));
        let error = Error::from(failed.expect_err("four petabytes cannot be had"));
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    }
}
