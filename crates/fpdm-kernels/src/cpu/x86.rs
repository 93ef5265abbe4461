//! AVX-512 and AVX2 vectors.

use super::math;
use super::simd::{Exponent, Job, Simd, simd, transpose};
use super::tile::{Tile, tile6, tile14};
use std::arch::x86_64::*;

simd!(#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
      F32x16(__m512) of f32, 16 lanes, 14 rows by tile14, exp math::exp_f32, transpose transpose_f32x16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps,
      _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_max_ps, _mm512_min_ps, _mm512_fmadd_ps,
      _mm512_reduce_add_ps, _mm512_reduce_max_ps);
simd!(#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
      F64x8(__m512d) of f64, 8 lanes, 14 rows by tile14, exp math::exp_f64, transpose transpose::<f64, 8>, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd,
      _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd, _mm512_div_pd, _mm512_max_pd, _mm512_min_pd, _mm512_fmadd_pd,
      _mm512_reduce_add_pd, _mm512_reduce_max_pd);
simd!(#[target_feature(enable = "avx2,fma")]
      F32x8(__m256) of f32, 8 lanes, 6 rows by tile6, exp math::exp_f32, transpose transpose::<f32, 8>, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps,
      _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_max_ps, _mm256_min_ps, _mm256_fmadd_ps,
      sum_f32x8, peak_f32x8);
simd!(#[target_feature(enable = "avx2,fma")]
      F64x4(__m256d) of f64, 4 lanes, 6 rows by tile6, exp math::exp_f64, transpose transpose::<f64, 4>, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd,
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

/// Pairs, then fours, then the 128-bit quarters change places.
#[inline(always)]
unsafe fn transpose_f32x16(src: *const f32, from: usize, dst: *mut f32, to: usize) {
    unsafe {
        let mut r = [_mm512_setzero_ps(); 16];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_loadu_ps(src.add(i * from));
        }
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in (0..16).step_by(4) {
            r[i] = low_pairs(t[i], t[i + 2]);
            r[i + 1] = high_pairs(t[i], t[i + 2]);
            r[i + 2] = low_pairs(t[i + 1], t[i + 3]);
            r[i + 3] = high_pairs(t[i + 1], t[i + 3]);
        }
        for j in 0..4 {
            let a = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
            let b = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
            let c = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
            let d = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
            _mm512_storeu_ps(dst.add(j * to), _mm512_shuffle_f32x4::<0x88>(a, c));
            _mm512_storeu_ps(dst.add((4 + j) * to), _mm512_shuffle_f32x4::<0x88>(b, d));
            _mm512_storeu_ps(dst.add((8 + j) * to), _mm512_shuffle_f32x4::<0xdd>(a, c));
            _mm512_storeu_ps(dst.add((12 + j) * to), _mm512_shuffle_f32x4::<0xdd>(b, d));
        }
    }
}

#[inline(always)]
unsafe fn low_pairs(a: __m512, b: __m512) -> __m512 {
    unsafe { _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
}

#[inline(always)]
unsafe fn high_pairs(a: __m512, b: __m512) -> __m512 {
    unsafe { _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))) }
}
