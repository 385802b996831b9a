//! The conversion of libtorch's errors, which is in `diffusion_core` with the error type.

pub use diffusion_core::libtorch::{from_message, is_out_of_memory};

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "a test fails by panicking")]
    use diffusion_core::Error;

    #[test]
    fn failed_allocation_is_out_of_memory() {
        let failed = tch::Tensor::f_empty([1 << 50], (tch::Kind::Float, tch::Device::Cpu));
        let error = Error::from(failed.expect_err("four petabytes cannot be had"));
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    }
}
