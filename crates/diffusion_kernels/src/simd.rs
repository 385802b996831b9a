//! Vectors of float32 values for each instruction set, and the choice of one at run time.
//!
//! A kernel is written once, generic over [`Simd`]. [`Level::run`] calls it in a function that is compiled for the
//! instruction set. All of its code must be inlined into that function, so everything here is `#[inline(always)]`.

use std::sync::OnceLock;

mod portable;
pub mod widen;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// Vectors of one instruction set.
///
/// # Safety
/// The machine must have the instruction set. Pointers need no alignment; `load` and `store` access `LANES` values.
pub trait Simd: Copy {
    /// A vector of `LANES` values.
    type V: Copy;
    /// Values of a vector.
    const LANES: usize;
    /// Values of two vectors: the columns that the matrix kernel computes at once.
    const COLUMNS: usize = 2 * Self::LANES;
    /// The largest number of rows that the matrix kernel computes at once: its sums, two vectors for each row, must fit
    /// into the registers.
    const ROWS: usize;

    /// A vector of equal values.
    unsafe fn splat(value: f32) -> Self::V;
    /// Reads a vector.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Writes a vector.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// a + b
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a · b
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each pair; the second value if one of them is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each pair; the second value if one of them is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest whole number, halves to the even one.
    unsafe fn round(a: Self::V) -> Self::V;
    /// a · 2ⁿ of whole numbers n from -126 to 127, 0 for -127, infinity or a · 2ⁿ for 128, and any value for others. NaN if
    /// a is NaN.
    unsafe fn scale_by_exp2(a: Self::V, n: Self::V) -> Self::V;
    /// Reads 8 rows of 8 values, `from_stride` values apart, and writes them as 8 columns: `to[i·to_stride + j]` is value
    /// `i` of row `j`.
    unsafe fn transpose_f32(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
    /// As [`Simd::transpose_f32`], of float16 values.
    unsafe fn transpose_f16(from: *const u16, from_stride: usize, to: *mut f32, to_stride: usize);
    /// As [`Simd::transpose_f32`], of bfloat16 values.
    unsafe fn transpose_bf16(from: *const u16, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// A kernel that is generic over the instruction set.
pub trait Kernel {
    /// Runs the kernel.
    ///
    /// # Safety
    /// The machine must have the instruction set; further conditions are those of the kernel.
    unsafe fn run<S: Simd>(self);
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The instruction sets of this machine, the fastest last.
    pub fn all() -> &'static [Self] {
        static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
        LEVELS.get_or_init(|| {
            #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "nothing is added"))]
            let mut levels = vec![Self(Set::Portable)];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Self(Set::Avx2));
                if is_x86_feature_detected!("avx512f") {
                    levels.push(Self(Set::Avx512));
                }
            }
            levels
        })
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Self {
        Self::all().last().copied().unwrap_or(Self(Set::Portable))
    }

    /// The values of a vector.
    pub fn lanes(self) -> usize {
        match self.0 {
            Set::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => Avx512::LANES,
        }
    }

    /// The columns that the matrix kernel computes at once.
    pub fn columns(self) -> usize {
        2 * self.lanes()
    }

    /// The name of the instruction set.
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "AVX-512",
        }
    }

    /// Runs a kernel with this instruction set.
    ///
    /// # Safety
    /// Those of the kernel.
    pub unsafe fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: a `Level` exists only for an instruction set of this machine (`Level::all`); the rest is the caller's
        // promise.
        unsafe {
            match self.0 {
                Set::Portable => kernel.run::<Portable>(),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => x86::run_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512 => x86::run_avx512(kernel),
            }
        }
    }
}
