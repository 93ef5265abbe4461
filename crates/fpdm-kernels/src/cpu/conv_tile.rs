//! The innermost loops of a convolution: tiles that stay in registers.

use super::simd::{Job, Real, Simd};

/// `out (R, NV vectors) = weights (taps, R)ᵀ . x (taps, NV vectors)`, where row p of `x` starts at `x + offsets[p]`;
/// `R` is 4 or 8.
///
/// This is the tile of a matrix product whose right operand is never written down: a place of the kernel is an offset
/// into the padded strip.
pub(crate) struct Forward<'a, T, const R: usize, const NV: usize> {
    pub(crate) x: *const T,
    pub(crate) offsets: &'a [usize],
    pub(crate) weights: *const T,
    /// Rows `NV` vectors apart.
    pub(crate) out: *mut T,
}

/// Columns of a tile of the weights' gradient.
pub(crate) const TAPS: usize = 3;

/// The products of `R` rows of `g` with [`TAPS`] views of `x`, summed over `len` elements; `R` is 4 or 8.
pub(crate) struct Weight<T, const R: usize> {
    /// Rows `stride` apart.
    pub(crate) g: *const T,
    pub(crate) stride: usize,
    pub(crate) x: [*const T; TAPS],
    /// A multiple of the vector's length.
    pub(crate) len: usize,
}

/// Defines both tiles with a named accumulator for each row: an array of rows would be left in memory.
macro_rules! tiles {
    ($forward:ident, $weight:ident: $($row:ident $i:literal),*) => {
        #[inline(always)]
        unsafe fn $forward<V: Simd, const R: usize, const NV: usize>(t: &Forward<'_, V::Elem, R, NV>) {
            let zero = V::splat(V::Elem::default());
            $(let mut $row = [zero; NV];)*
            unsafe {
                let mut weights = t.weights;
                for &offset in t.offsets {
                    let mut x = [zero; NV];
                    for j in 0..NV {
                        x[j] = V::load(t.x.add(offset + j * V::LANES));
                    }
                    $(
                        let w = V::splat(*weights.add($i));
                        for j in 0..NV {
                            $row[j] = w.fma(x[j], $row[j]);
                        }
                    )*
                    weights = weights.add(R);
                }
                $(
                    for j in 0..NV {
                        $row[j].store(t.out.add(($i * NV + j) * V::LANES));
                    }
                )*
            }
        }

        #[inline(always)]
        unsafe fn $weight<V: Simd, const R: usize>(t: &Weight<V::Elem, R>, sums: &mut [[V::Elem; TAPS]; R]) {
            let zero = V::splat(V::Elem::default());
            $(let mut $row = [zero; TAPS];)*
            let mut at = 0;
            while at < t.len {
                let mut x = [zero; TAPS];
                for j in 0..TAPS {
                    x[j] = unsafe { V::load(t.x[j].add(at)) };
                }
                $(
                    let g = unsafe { V::load(t.g.add($i * t.stride + at)) };
                    for j in 0..TAPS {
                        $row[j] = g.fma(x[j], $row[j]);
                    }
                )*
                at += V::LANES;
            }
            $(
                for j in 0..TAPS {
                    sums[$i][j] = $row[j].sum();
                }
            )*
        }
    };
}

tiles!(forward4, weight4: r0 0, r1 1, r2 2, r3 3);
tiles!(forward8, weight8: r0 0, r1 1, r2 2, r3 3, r4 4, r5 5, r6 6, r7 7);

impl<T: Real, const R: usize, const NV: usize> Job<T> for Forward<'_, T, R, NV> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        unsafe { if R == 8 { forward8::<V, R, NV>(&self) } else { forward4::<V, R, NV>(&self) } }
    }
}

impl<T: Real, const R: usize> Job<T> for Weight<T, R> {
    type Out = [[T; TAPS]; R];
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) -> [[T; TAPS]; R] {
        let mut sums = [[T::default(); TAPS]; R];
        unsafe { if R == 8 { weight8::<V, R>(&self, &mut sums) } else { weight4::<V, R>(&self, &mut sums) } }
        sums
    }
}
