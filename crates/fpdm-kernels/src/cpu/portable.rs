//! Vectors for any processor: small arrays that the compiler may turn into registers.

use super::math;
use super::simd::{Exponent, Job, Simd, simd};
use super::tile::{Tile, tile4};

macro_rules! plain {
    ($module:ident, $elem:ty, $n:literal) => {
        mod $module {
            pub(super) type R = [$elem; $n];
            #[inline(always)]
            fn zip(a: R, b: R, f: impl Fn($elem, $elem) -> $elem) -> R {
                std::array::from_fn(|i| f(a[i], b[i]))
            }
            #[inline(always)]
            pub(super) unsafe fn set(x: $elem) -> R {
                [x; $n]
            }
            #[inline(always)]
            pub(super) unsafe fn load(p: *const $elem) -> R {
                unsafe { p.cast::<R>().read_unaligned() }
            }
            #[inline(always)]
            pub(super) unsafe fn store(p: *mut $elem, x: R) {
                unsafe { p.cast::<R>().write_unaligned(x) }
            }
            #[inline(always)]
            pub(super) unsafe fn add(a: R, b: R) -> R {
                zip(a, b, |a, b| a + b)
            }
            #[inline(always)]
            pub(super) unsafe fn sub(a: R, b: R) -> R {
                zip(a, b, |a, b| a - b)
            }
            #[inline(always)]
            pub(super) unsafe fn mul(a: R, b: R) -> R {
                zip(a, b, |a, b| a * b)
            }
            #[inline(always)]
            pub(super) unsafe fn div(a: R, b: R) -> R {
                zip(a, b, |a, b| a / b)
            }
            #[inline(always)]
            pub(super) unsafe fn max(a: R, b: R) -> R {
                zip(a, b, |a, b| if a > b { a } else { b })
            }
            #[inline(always)]
            pub(super) unsafe fn min(a: R, b: R) -> R {
                zip(a, b, |a, b| if a < b { a } else { b })
            }
            // `mul_add` is a slow library call where the target has no such instruction.
            #[inline(always)]
            pub(super) unsafe fn fma(a: R, b: R, c: R) -> R {
                if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
                } else {
                    std::array::from_fn(|i| a[i] * b[i] + c[i])
                }
            }
            #[inline(always)]
            pub(super) unsafe fn sum(a: R) -> $elem {
                a.iter().sum()
            }
            #[inline(always)]
            pub(super) unsafe fn peak(a: R) -> $elem {
                a.iter().fold(<$elem>::NEG_INFINITY, |m, &x| if m > x { m } else { x })
            }
        }
    };
}

plain!(single, f32, 4);
plain!(double, f64, 2);

simd!(PlainF32(single::R) of f32, 4 lanes, 4 rows by tile4, exp math::exp_f32, single::set, single::load, single::store,
      single::add, single::sub, single::mul, single::div, single::max, single::min, single::fma, single::sum, single::peak);
simd!(PlainF64(double::R) of f64, 2 lanes, 4 rows by tile4, exp math::exp_f64, double::set, double::load, double::store,
      double::add, double::sub, double::mul, double::div, double::max, double::min, double::fma, double::sum, double::peak);

impl Exponent for PlainF32 {
    #[inline(always)]
    fn round(self) -> Self {
        // 1.5 * 2^23: the sum has no room for a fraction. `round` would be a library call here.
        const SHIFT: f32 = 12_582_912.;
        Self(self.0.map(|x| (x + SHIFT) - SHIFT))
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * f32::from_bits(((n.0[i] as i32 + 127) << 23) as u32)))
    }
}
