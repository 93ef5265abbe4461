//! Vectors of the machine behind one trait, chosen once at run time.
//!
//! Generic code is written against [`Simd`] in the `run` of a [`Job`]. [`Real::dispatch`] finds the widest instruction
//! set of the processor and enters the job through a function that has it enabled; everything the job calls is
//! inlined there. This is why the arithmetic below is safe to call: a vector type is only ever named inside a job
//! that was entered after detection.

use super::portable::{PlainF32, PlainF64};
use super::tile::Tile;
use candle_core::WithDType;
use std::sync::OnceLock;

/// Code that wants to be compiled once for every instruction set.
pub(crate) trait Job<T: Real> {
    type Out;
    /// Must be `#[inline(always)]`, and so must everything it calls that takes vectors.
    fn run<V: Simd<Elem = T>>(self) -> Self::Out;
}

/// A vector of `LANES` floating-point numbers.
pub(crate) trait Simd: Copy {
    type Elem: Real;
    const LANES: usize;
    /// Rows of the tile of a matrix product that stays in registers, two vectors wide.
    const ROWS: usize;

    fn splat(x: Self::Elem) -> Self;
    /// # Safety
    /// `p` is valid for reads of `LANES` elements.
    unsafe fn load(p: *const Self::Elem) -> Self;
    /// # Safety
    /// `p` is valid for writes of `LANES` elements.
    unsafe fn store(self, p: *mut Self::Elem);
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    /// The larger one; `o` if either is NaN.
    fn max(self, o: Self) -> Self;
    /// The smaller one; `o` if either is NaN.
    fn min(self, o: Self) -> Self;
    /// `self * b + c`
    fn fma(self, b: Self, c: Self) -> Self;
    fn exp(self) -> Self;
    fn sum(self) -> Self::Elem;
    fn peak(self) -> Self::Elem;

    /// Runs `job` with the instruction set of this type enabled.
    fn enter<J: Job<Self::Elem>>(job: J) -> J::Out;
    /// # Safety
    /// See [`Tile`].
    unsafe fn tile<const NV: usize>(t: &Tile<Self::Elem>);

    /// The first `n` lanes from `p`, the others `fill`.
    ///
    /// # Safety
    /// `p` is valid for reads of `n` elements.
    #[inline(always)]
    unsafe fn load_n(p: *const Self::Elem, n: usize, fill: Self::Elem) -> Self {
        if n == Self::LANES {
            return unsafe { Self::load(p) };
        }
        let mut lanes = [fill; 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            *lane = unsafe { *p.add(i) };
        }
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// # Safety
    /// `p` is valid for writes of `n` elements.
    #[inline(always)]
    unsafe fn store_n(self, p: *mut Self::Elem, n: usize) {
        if n == Self::LANES {
            return unsafe { self.store(p) };
        }
        let mut lanes = [Self::Elem::from_f64(0.); 16];
        unsafe { self.store(lanes.as_mut_ptr()) };
        for (i, lane) in lanes.iter().enumerate().take(n) {
            unsafe { *p.add(i) = *lane };
        }
    }
}

/// Vectors of `f32` that know the exponent bits, which is what [`math::exp_f32`] needs.
pub(crate) trait Exponent: Simd<Elem = f32> {
    fn round(self) -> Self;
    /// `self * 2^n` for an integer `n` in the exponent's range.
    fn scale(self, n: Self) -> Self;
}

/// An element type with native kernels.
pub(crate) trait Real: WithDType + Default {
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Elem = Self>;
    type Plain: Simd<Elem = Self>;

    #[cfg(target_arch = "x86_64")]
    fn dispatch<J: Job<Self>>(job: J) -> J::Out {
        match isa() {
            Isa::Avx512 => Self::Avx512::enter(job),
            Isa::Avx2 => Self::Avx2::enter(job),
            Isa::Plain => Self::Plain::enter(job),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn dispatch<J: Job<Self>>(job: J) -> J::Out {
        Self::Plain::enter(job)
    }
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = super::x86::F32x16;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = super::x86::F32x8;
    type Plain = PlainF32;
}

impl Real for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = super::x86::F64x8;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = super::x86::F64x4;
    type Plain = PlainF64;
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Isa {
    Plain,
    Avx2,
    Avx512,
}

/// The instruction set in use: the best of the processor, or less if `FPDM_KERNELS_ISA` (`plain`, `avx2`) says so.
#[cfg(target_arch = "x86_64")]
pub(crate) fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let best = if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            Isa::Avx512
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Isa::Avx2
        } else {
            Isa::Plain
        };
        match std::env::var("FPDM_KERNELS_ISA").as_deref() {
            Ok("plain") => Isa::Plain,
            Ok("avx2") if best >= Isa::Avx2 => Isa::Avx2,
            _ => best,
        }
    })
}

/// Walks `0..n` in steps of the vector `V`: the body sees the offset and how many lanes are valid.
macro_rules! lanes {
    ($v:ty, $n:expr, |$i:ident, $c:ident| $body:block) => {{
        let n = $n;
        let mut $i = 0;
        while $i + <$v>::LANES <= n {
            let $c = <$v>::LANES;
            $body;
            $i += <$v>::LANES;
        }
        if $i < n {
            let $c = n - $i;
            $body;
        }
    }};
}
pub(crate) use lanes;

/// Implements [`Simd`] for a wrapper of a register by naming its instructions.
macro_rules! simd {
    ($(#[$enable:meta])* $name:ident($reg:ty) of $elem:ty, $lanes:literal lanes, $rows:literal rows by $tile:ident, exp $exp:path,
     $set:path, $load:path, $store:path, $add:path, $sub:path, $mul:path, $div:path, $max:path, $min:path, $fma:path, $sum:path, $peak:path) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name($reg);

        impl Simd for $name {
            type Elem = $elem;
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;
            #[inline(always)]
            fn splat(x: $elem) -> Self {
                Self(unsafe { $set(x) })
            }
            #[inline(always)]
            unsafe fn load(p: *const $elem) -> Self {
                Self(unsafe { $load(p) })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $elem) {
                unsafe { $store(p, self.0) }
            }
            #[inline(always)]
            fn add(self, o: Self) -> Self {
                Self(unsafe { $add(self.0, o.0) })
            }
            #[inline(always)]
            fn sub(self, o: Self) -> Self {
                Self(unsafe { $sub(self.0, o.0) })
            }
            #[inline(always)]
            fn mul(self, o: Self) -> Self {
                Self(unsafe { $mul(self.0, o.0) })
            }
            #[inline(always)]
            fn div(self, o: Self) -> Self {
                Self(unsafe { $div(self.0, o.0) })
            }
            #[inline(always)]
            fn max(self, o: Self) -> Self {
                Self(unsafe { $max(self.0, o.0) })
            }
            #[inline(always)]
            fn min(self, o: Self) -> Self {
                Self(unsafe { $min(self.0, o.0) })
            }
            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                Self(unsafe { $fma(self.0, b.0, c.0) })
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn sum(self) -> $elem {
                unsafe { $sum(self.0) }
            }
            #[inline(always)]
            fn peak(self) -> $elem {
                unsafe { $peak(self.0) }
            }
            fn enter<J: Job<$elem>>(job: J) -> J::Out {
                $(#[$enable])*
                unsafe fn inner<J: Job<$elem>>(job: J) -> J::Out {
                    job.run::<$name>()
                }
                unsafe { inner(job) }
            }
            #[inline(always)]
            unsafe fn tile<const NV: usize>(t: &Tile<$elem>) {
                unsafe { $tile::<Self, NV>(t) }
            }
        }
    };
}
pub(crate) use simd;
