//! AVX-512 and AVX2 vectors.

use super::math;
use super::simd::{Exponent, Job, Simd, simd};
use super::tile::{Tile, tile6, tile14};
use std::arch::x86_64::*;

simd!(#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
      F32x16(__m512) of f32, 16 lanes, 14 rows by tile14, exp math::exp_f32, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps,
      _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_max_ps, _mm512_min_ps, _mm512_fmadd_ps,
      _mm512_reduce_add_ps, _mm512_reduce_max_ps);
simd!(#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
      F64x8(__m512d) of f64, 8 lanes, 14 rows by tile14, exp math::exp_f64, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd,
      _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd, _mm512_div_pd, _mm512_max_pd, _mm512_min_pd, _mm512_fmadd_pd,
      _mm512_reduce_add_pd, _mm512_reduce_max_pd);
simd!(#[target_feature(enable = "avx2,fma")]
      F32x8(__m256) of f32, 8 lanes, 6 rows by tile6, exp math::exp_f32, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps,
      _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_max_ps, _mm256_min_ps, _mm256_fmadd_ps,
      sum_f32x8, peak_f32x8);
simd!(#[target_feature(enable = "avx2,fma")]
      F64x4(__m256d) of f64, 4 lanes, 6 rows by tile6, exp math::exp_f64, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd,
      _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd, _mm256_div_pd, _mm256_max_pd, _mm256_min_pd, _mm256_fmadd_pd,
      sum_f64x4, peak_f64x4);

impl Exponent for F32x16 {
    #[inline(always)]
    fn round(self) -> Self {
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }
}

impl Exponent for F32x8 {
    #[inline(always)]
    fn round(self) -> Self {
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        unsafe {
            let bits = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127));
            Self(_mm256_mul_ps(self.0, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits))))
        }
    }
}

#[inline(always)]
unsafe fn sum_f32x8(x: __m256) -> f32 {
    let mut lanes = [0f32; 8];
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), x) };
    (lanes[0] + lanes[4]) + (lanes[1] + lanes[5]) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]))
}

#[inline(always)]
unsafe fn peak_f32x8(x: __m256) -> f32 {
    let mut lanes = [0f32; 8];
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), x) };
    lanes.into_iter().fold(f32::NEG_INFINITY, |m, x| if m > x { m } else { x })
}

#[inline(always)]
unsafe fn sum_f64x4(x: __m256d) -> f64 {
    let mut lanes = [0f64; 4];
    unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), x) };
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

#[inline(always)]
unsafe fn peak_f64x4(x: __m256d) -> f64 {
    let mut lanes = [0f64; 4];
    unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), x) };
    lanes.into_iter().fold(f64::NEG_INFINITY, |m, x| if m > x { m } else { x })
}
