//! The transcendental functions, on vectors.

use super::simd::{Exponent, Simd};
use candle_core::WithDType;

/// `sqrt(2 / pi)`
pub(crate) const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of the tanh approximation.
pub(crate) const GELU_CUBIC: f64 = 0.044715;

/// `e^x` to about one unit in the last place, saturating instead of overflowing (cephes' `expf`).
#[inline(always)]
pub(crate) fn exp_f32<V: Exponent>(x: V) -> V {
    let x = V::splat(88.376_26).min(V::splat(-87.336_54).max(x));
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.fma(V::splat(2.121_944_4e-4), n.fma(V::splat(-0.693_359_4), x));
    let p = r.fma(V::splat(1.987_569_1e-4), V::splat(1.398_199_9e-3));
    let p = p.fma(r, V::splat(8.333_452e-3));
    let p = p.fma(r, V::splat(4.166_579_6e-2));
    let p = p.fma(r, V::splat(1.666_666_5e-1));
    let p = p.fma(r, V::splat(0.5));
    p.fma(r.mul(r), r.add(V::splat(1.))).scale(n)
}

/// `e^x` lane by lane: double precision serves checks, not speed.
#[inline(always)]
pub(crate) fn exp_f64<V: Simd<Elem = f64>>(x: V) -> V {
    let mut lanes = [0f64; 16];
    unsafe { x.store(lanes.as_mut_ptr()) };
    for lane in &mut lanes[..V::LANES] {
        *lane = lane.exp();
    }
    unsafe { V::load(lanes.as_ptr()) }
}

#[inline(always)]
pub(crate) fn constant<V: Simd>(x: f64) -> V {
    V::splat(V::Elem::from_f64(x))
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid<V: Simd>(x: V) -> V {
    let one = constant::<V>(1.);
    one.div(one.add(constant::<V>(0.).sub(x).exp()))
}

/// `gelu(x)` and its slope. With `u = sqrt(2/pi) (x + 0.044715 x^3)` it is `x sigmoid(2u)`, the same function as
/// `x (1 + tanh u) / 2` without the cancellation at negative `x`.
#[inline(always)]
pub(crate) fn gelu<V: Simd>(x: V) -> V {
    let inner = x.mul(x).fma(constant(2. * GELU_SCALE * GELU_CUBIC), constant(2. * GELU_SCALE));
    x.mul(sigmoid(x.mul(inner)))
}

#[inline(always)]
pub(crate) fn gelu_slope<V: Simd>(x: V) -> V {
    let square = x.mul(x);
    let s = sigmoid(x.mul(square.fma(constant(2. * GELU_SCALE * GELU_CUBIC), constant(2. * GELU_SCALE))));
    let inner = square.fma(constant(6. * GELU_SCALE * GELU_CUBIC), constant(2. * GELU_SCALE));
    x.mul(inner).mul(constant::<V>(1.).sub(s)).fma(s, s)
}

#[inline(always)]
pub(crate) fn silu<V: Simd>(x: V) -> V {
    x.mul(sigmoid(x))
}

#[inline(always)]
pub(crate) fn silu_slope<V: Simd>(x: V) -> V {
    let s = sigmoid(x);
    x.mul(constant::<V>(1.).sub(s)).fma(s, s)
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Job, Real, Simd};

    struct Exp(Vec<f32>);
    impl Job<f32> for Exp {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<V: Simd<Elem = f32>>(self) -> Vec<f32> {
            let mut out = self.0;
            for chunk in out.chunks_mut(V::LANES) {
                unsafe {
                    let y = V::load_n(chunk.as_ptr(), chunk.len(), 0.).exp();
                    y.store_n(chunk.as_mut_ptr(), chunk.len());
                }
            }
            out
        }
    }

    #[test]
    fn exp_is_accurate_on_every_instruction_set() {
        let x: Vec<f32> = (0..40_001).map(|i| (i as f32 - 20_000.) * 0.0043).collect();
        let check = |y: Vec<f32>| {
            for (x, y) in x.iter().zip(y) {
                let exact = f64::from(*x).exp();
                assert!((f64::from(y) - exact).abs() <= 2.5e-7 * exact, "exp({x}) = {y}, not {exact}");
            }
        };
        check(f32::dispatch(Exp(x.clone())));
        check(<f32 as Real>::Plain::enter(Exp(x.clone())));
        #[cfg(target_arch = "x86_64")]
        if super::super::simd::isa() >= super::super::simd::Isa::Avx2 {
            check(<f32 as Real>::Avx2::enter(Exp(x.clone())));
        }
    }
}
