//! Full softmax attention, one task for each head of each sample.

use super::epilogue::{Identity, ScaleRows};
use super::gemm::multiply;
use super::matrix::{Dest, Matrix, written};
use super::pack::Packed;
use super::parallel;
use super::scratch::Scratch;
use super::simd::{Job, Real, Simd};
use super::softmax::{exponentials, gradient_row, scale_row};

/// Queries whose scores are held at a time.
const QUERIES: usize = 112;

/// The packed projections and how they are cut into heads.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T> {
    /// (batch * tokens, 3 * heads * size)
    pub(crate) qkv: Matrix<'a, T>,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
}

impl<'a, T: Real> Heads<'a, T> {
    fn tokens(&self) -> usize {
        self.qkv.rows / self.batch
    }

    fn size(&self) -> usize {
        self.qkv.cols / 3 / self.heads
    }

    fn scale(&self) -> f64 {
        1. / (self.size() as f64).sqrt()
    }

    /// First row and column of a task's head in a matrix of width `heads * size`.
    fn corner(&self, task: usize) -> (usize, usize) {
        (task / self.heads * self.tokens(), task % self.heads * self.size())
    }

    /// Queries (0), keys (1) or values (2) of a task: (tokens, size).
    fn part(&self, task: usize, which: usize) -> Matrix<'a, T> {
        let (row, col) = self.corner(task);
        self.qkv.block(row, self.tokens(), which * self.heads * self.size() + col, self.size())
    }
}

struct Forward<'a, T> {
    heads: Heads<'a, T>,
    task: usize,
    out: Dest<T>,
}

impl<T: Real> Job<T> for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { heads, task, out } = self;
        let tokens = heads.tokens();
        let queries = heads.part(task, 0);
        let keys = Packed::new::<V>(heads.part(task, 1).t());
        let values = Packed::new::<V>(heads.part(task, 2));
        let (row, col) = heads.corner(task);
        let mut scratch = Scratch::new::<T>(QUERIES * tokens);
        let scores = unsafe { std::slice::from_raw_parts_mut(scratch.ptr::<T>(), QUERIES * tokens) };
        let mut inverse = [T::default(); QUERIES];
        for q0 in (0..tokens).step_by(QUERIES) {
            let count = QUERIES.min(tokens - q0);
            multiply::<V, _>(queries.block(q0, count, 0, queries.cols), &keys, Dest::of(scores, tokens), Identity);
            for (q, inverse) in inverse.iter_mut().enumerate().take(count) {
                let row = scores[q * tokens..].as_mut_ptr();
                *inverse = T::from_f64(1.) / unsafe { exponentials::<V>(row, row, tokens, heads.scale()) };
            }
            multiply::<V, _>(
                Matrix::new(scores, count, tokens, tokens, 1),
                &values,
                out.offset(row + q0, col),
                ScaleRows(&inverse),
            );
        }
    }
}

/// (batch * tokens, heads * size)
pub(crate) fn forward<T: Real>(heads: Heads<'_, T>) -> Vec<T> {
    unsafe {
        written(heads.qkv.rows, heads.qkv.cols / 3, |out| {
            parallel::each(heads.batch * heads.heads, |task| T::dispatch(Forward { heads, task, out }))
        })
    }
}

struct Backward<'a, T> {
    heads: Heads<'a, T>,
    /// (batch * tokens, heads * size)
    g: Matrix<'a, T>,
    task: usize,
    out: Dest<T>,
}

impl<T: Real> Job<T> for Backward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<V: Simd<Elem = T>>(self) {
        let Self { heads, g, task, out } = self;
        let (tokens, size, scale) = (heads.tokens(), heads.size(), heads.scale());
        let [queries, keys, values] = [0, 1, 2].map(|which| heads.part(task, which));
        let (row, col) = heads.corner(task);
        let g = g.block(row, tokens, col, size);
        let mut scratch = Scratch::new::<T>(2 * tokens * tokens);
        let both = unsafe { std::slice::from_raw_parts_mut(scratch.ptr::<T>(), 2 * tokens * tokens) };
        let (weights, slopes) = both.split_at_mut(tokens * tokens);
        multiply::<V, _>(queries, &Packed::new::<V>(keys.t()), Dest::of(weights, tokens), Identity);
        multiply::<V, _>(g, &Packed::new::<V>(values.t()), Dest::of(slopes, tokens), Identity);
        for (w, s) in weights.chunks_mut(tokens).zip(slopes.chunks_mut(tokens)) {
            let w = w.as_mut_ptr();
            unsafe {
                let sum = exponentials::<V>(w, w, tokens, scale);
                scale_row::<V>(w, tokens, T::from_f64(1.) / sum);
                gradient_row::<V>(w, s.as_mut_ptr(), s.as_mut_ptr(), tokens, scale);
            }
        }
        let weights = Matrix::new(weights, tokens, tokens, tokens, 1);
        let slopes = Matrix::new(slopes, tokens, tokens, tokens, 1);
        let width = heads.heads * size;
        multiply::<V, _>(slopes, &Packed::new::<V>(keys), out.offset(row, col), Identity);
        multiply::<V, _>(slopes.t(), &Packed::new::<V>(queries), out.offset(row, width + col), Identity);
        multiply::<V, _>(weights.t(), &Packed::new::<V>(g), out.offset(row, 2 * width + col), Identity);
    }
}

/// The gradient of the packed projections. Scores are computed again: keeping them would take tokens^2 for each head.
pub(crate) fn backward<T: Real>(heads: Heads<'_, T>, g: Matrix<'_, T>) -> Vec<T> {
    unsafe {
        written(heads.qkv.rows, heads.qkv.cols, |out| {
            parallel::each(heads.batch * heads.heads, |task| T::dispatch(Backward { heads, g, task, out }))
        })
    }
}
