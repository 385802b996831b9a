//! A look at memory before a library makes large buffers.
//!
//! libtorch reports an allocation that fails. A buffer of Rust or of an image library that cannot be allocated ends the
//! process, where a limit of the address space or the system refuses memory.

use std::hint::black_box;

use crate::error::{Error, Result};

/// Checks that `bytes` can be allocated now. `what` names the user of the memory, for the error.
///
/// # Errors
/// `OutOfMemory` with the number of bytes.
pub fn check_available(bytes: u64, what: &str) -> Result<()> {
    let mut probe = Vec::<u8>::new();
    let reserved = usize::try_from(bytes).is_ok_and(|bytes| probe.try_reserve_exact(bytes).is_ok());
    // Without this, the compiler may leave the allocation out.
    black_box(&probe);
    if reserved {
        return Ok(());
    }
    Err(Error::out_of_memory(format!(
        "{what} needs {} MiB",
        bytes.div_ceil(1 << 20)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_refused_is_an_error() {
        assert_eq!(check_available(1 << 20, "a test"), Ok(()));
        let error = check_available(1 << 60, "a test");
        assert_eq!(error, Err(Error::out_of_memory("a test needs 1099511627776 MiB")));
    }
}
