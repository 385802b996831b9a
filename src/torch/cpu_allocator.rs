//! The memory of libtorch's tensors on the CPU.
//!
//! The C library returns the memory of a large tensor to the system when it is freed, and gets new memory, page by page,
//! for the next. That takes a twelfth of a UNet step and of the VAE's decoder at 512x512 pixels (docs/benchmarks.md). The
//! allocator of `cpu_allocator.cpp` keeps the memory instead, in huge pages and up to a limit. Numbers do not change.

use std::sync::Once;

use super::memory;

unsafe extern "C" {
    fn td_cpu_allocator_install(max_cached: usize);
    fn td_cpu_allocator_trim();
    fn td_cpu_allocator_cached() -> usize;
    fn td_cpu_allocator_count_thread();
    fn td_cpu_allocator_counted() -> usize;
}

/// Memory that is kept at most. The VAE frees and allocates tensors of 134 and 268 MB for an image of 512x512 pixels; with
/// 4 GiB it is not faster.
const MAX_CACHED: u64 = 1 << 30;
/// The share of the available memory that is kept at most.
const MAX_SHARE: u64 = 8;

/// Replaces libtorch's CPU allocator in this process, once. Must be called before libtorch allocates anything: memory of
/// the former allocator is freed by the former allocator.
pub fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let available = memory::available(0).unwrap_or(u64::MAX);
        let max_cached = usize::try_from(MAX_CACHED.min(available / MAX_SHARE)).unwrap_or(0);
        // SAFETY: passes a number. Tensors keep the function that frees them, so tensors of the former allocator stay valid.
        unsafe { td_cpu_allocator_install(max_cached) }
    });
}

/// Returns the kept memory to the system.
pub fn trim() {
    // SAFETY: passes nothing; the cache has its own lock.
    unsafe { td_cpu_allocator_trim() }
}

/// Returns the bytes of kept memory.
pub fn cached_bytes() -> u64 {
    // SAFETY: as in `trim`.
    unsafe { td_cpu_allocator_cached() as u64 }
}

/// Counts the large tensors that the calling thread makes from now on: the activations of the jobs of its engine.
pub fn count_this_thread() {
    // SAFETY: passes nothing; sets a flag of the thread.
    unsafe { td_cpu_allocator_count_thread() }
}

/// Returns the bytes of the tensors that threads have made after [`count_this_thread`], and that are in use.
pub fn counted_bytes() -> u64 {
    // SAFETY: as in `trim`; the number is atomic.
    unsafe { td_cpu_allocator_counted() as u64 }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tch::{Kind, Tensor};

    /// One test, since the cache is of the process.
    #[test]
    fn memory_of_large_tensors_is_kept_and_returned() {
        install();
        let large = || Tensor::ones([16 << 20], (Kind::Float, tch::Device::Cpu));
        let first = large();
        let address = first.data_ptr();
        drop(first);
        assert!(cached_bytes() >= 64 << 20);
        let second = large();
        assert_eq!(second.data_ptr(), address, "the memory is used again");
        assert_eq!(address as usize % 64, 0);
        assert_eq!(second.sum(Kind::Double).double_value(&[]), f64::from(16 << 20));
        // A little smaller fits too; half would waste the rest.
        drop(second);
        let smaller = Tensor::ones([15 << 20], (Kind::Float, tch::Device::Cpu));
        assert_eq!(smaller.data_ptr(), address);
        drop(smaller);
        let half = Tensor::ones([8 << 20], (Kind::Float, tch::Device::Cpu));
        assert_ne!(half.data_ptr(), address);
        drop(half);
        trim();
        assert!(cached_bytes() < 64 << 20);
        // More than the limit is never kept.
        for _ in 0..3 {
            drop(
                (0..6)
                    .map(|_| Tensor::zeros([256 << 20], (Kind::Uint8, tch::Device::Cpu)))
                    .collect::<Vec<_>>(),
            );
            assert!(cached_bytes() <= MAX_CACHED);
        }
        trim();
    }

    #[test]
    fn tensors_of_a_counting_thread_are_counted_until_they_are_freed() {
        install();
        let large = || Tensor::zeros([8 << 20], (Kind::Uint8, tch::Device::Cpu));
        let before = counted_bytes();
        let uncounted = large();
        assert_eq!(counted_bytes(), before);
        let counted = std::thread::spawn(move || {
            count_this_thread();
            large()
        });
        let counted = counted.join().unwrap();
        assert_eq!(counted_bytes(), before + (8 << 20));
        drop(uncounted);
        assert_eq!(counted_bytes(), before + (8 << 20));
        // On another thread.
        drop(counted);
        assert_eq!(counted_bytes(), before);
    }

    #[test]
    fn resized_tensor_keeps_its_values() {
        install();
        let mut tensor = Tensor::arange(3 << 20, (Kind::Float, tch::Device::Cpu));
        let _ = tensor.resize_([6 << 20]);
        assert_eq!(tensor.double_value(&[(3 << 20) - 1]), f64::from((3 << 20) - 1));
    }
}
