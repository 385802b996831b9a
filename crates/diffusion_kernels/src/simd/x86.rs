//! Vectors of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// Runs a kernel in a function that is compiled for AVX2.
///
/// # Safety
/// The machine must have AVX2, FMA and F16C; further conditions are those of the kernel.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

/// Runs a kernel in a function that is compiled for AVX-512.
///
/// # Safety
/// The machine must have AVX-512F, AVX2, FMA and F16C; further conditions are those of the kernel.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}

/// Eight values in a register.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Sixteen values in a register.
#[derive(Clone, Copy)]
pub struct Avx512;

/// Writes 8 rows as 8 columns.
///
/// # Safety
/// As [`Simd::transpose_f32`].
#[inline(always)]
unsafe fn store_transposed(rows: [__m256; 8], to: *mut f32, to_stride: usize) {
    let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
    // SAFETY: the machine has AVX2, and the caller gives 8 rows of 8 values.
    unsafe {
        let t0 = _mm256_unpacklo_ps(r0, r1);
        let t1 = _mm256_unpackhi_ps(r0, r1);
        let t2 = _mm256_unpacklo_ps(r2, r3);
        let t3 = _mm256_unpackhi_ps(r2, r3);
        let t4 = _mm256_unpacklo_ps(r4, r5);
        let t5 = _mm256_unpackhi_ps(r4, r5);
        let t6 = _mm256_unpacklo_ps(r6, r7);
        let t7 = _mm256_unpackhi_ps(r6, r7);
        let s0 = _mm256_shuffle_ps::<0x44>(t0, t2);
        let s1 = _mm256_shuffle_ps::<0xee>(t0, t2);
        let s2 = _mm256_shuffle_ps::<0x44>(t1, t3);
        let s3 = _mm256_shuffle_ps::<0xee>(t1, t3);
        let s4 = _mm256_shuffle_ps::<0x44>(t4, t6);
        let s5 = _mm256_shuffle_ps::<0xee>(t4, t6);
        let s6 = _mm256_shuffle_ps::<0x44>(t5, t7);
        let s7 = _mm256_shuffle_ps::<0xee>(t5, t7);
        let low = [(s0, s4), (s1, s5), (s2, s6), (s3, s7)];
        for (column, (a, b)) in low.into_iter().enumerate() {
            _mm256_storeu_ps(to.add(column * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(to.add((column + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}

/// Reads 8 float16 values.
///
/// # Safety
/// The machine has F16C, and there are 8 values.
#[inline(always)]
unsafe fn load_f16(from: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

/// Reads 8 bfloat16 values.
///
/// # Safety
/// The machine has AVX2, and there are 8 values.
#[inline(always)]
unsafe fn load_bf16(from: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

macro_rules! transposes {
    () => {
        #[inline(always)]
        unsafe fn transpose_f32(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                let row = |i: usize| _mm256_loadu_ps(from.add(i * from_stride));
                store_transposed(
                    [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)],
                    to,
                    to_stride,
                );
            }
        }
        #[inline(always)]
        unsafe fn transpose_f16(from: *const u16, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                let row = |i: usize| load_f16(from.add(i * from_stride));
                store_transposed(
                    [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)],
                    to,
                    to_stride,
                );
            }
        }
        #[inline(always)]
        unsafe fn transpose_bf16(from: *const u16, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: the caller's promise.
            unsafe {
                let row = |i: usize| load_bf16(from.add(i * from_stride));
                store_transposed(
                    [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)],
                    to,
                    to_stride,
                );
            }
        }
    };
}

macro_rules! operators {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {
        $(#[inline(always)]
        unsafe fn $name($($arg: Self::V),*) -> Self::V {
            // SAFETY: the machine has the instruction set.
            unsafe { $intrinsic($($arg),*) }
        })*
    };
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    // 12 sums, 2 columns and 1 value of a row in 16 registers.
    const ROWS: usize = 6;

    operators! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        mul_add(a, b, c) = _mm256_fmadd_ps;
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: the machine has the instruction set.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // SAFETY: the machine has the instruction set.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale_by_exp2(a: Self::V, n: Self::V) -> Self::V {
        // SAFETY: the machine has the instruction set.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    transposes!();
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    // 24 sums, 2 columns and 1 value of a row in 32 registers.
    const ROWS: usize = 12;

    operators! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        mul_add(a, b, c) = _mm512_fmadd_ps;
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: the machine has the instruction set.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // SAFETY: the machine has the instruction set.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale_by_exp2(a: Self::V, n: Self::V) -> Self::V {
        // SAFETY: the machine has the instruction set.
        unsafe {
            // True for NaN too. Products below 2⁻¹²⁶, with which the processor computes slowly, become 0.
            let normal = _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(n, _mm512_set1_ps(-127.0));
            _mm512_maskz_scalef_ps(normal, a, n)
        }
    }
    transposes!();
}
