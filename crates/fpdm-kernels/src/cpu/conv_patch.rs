//! A strip of a picture, padded so that every place of the kernel is one fixed offset away.

use super::scratch::Scratch;
use super::simd::Real;

/// How a picture is seen before padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zoom {
    /// Every pixel so many times along each side.
    Repeat(usize),
    /// Every pixel followed by zeros, so many pixels from one to the next.
    Spread(usize),
}

impl Zoom {
    /// The pixel behind position `at`, if it is one.
    #[inline(always)]
    fn source(self, at: isize, size: usize) -> Option<usize> {
        let at = usize::try_from(at).ok()?;
        let source = match self {
            Zoom::Repeat(n) => at / n,
            Zoom::Spread(n) if at % n == 0 => at / n,
            Zoom::Spread(_) => return None,
        };
        (source < size).then_some(source)
    }
}

/// One picture of a convolution: what goes in, what comes out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) channels: usize,
    /// Height and width of what goes in.
    pub(crate) size: [usize; 2],
    pub(crate) zoom: Zoom,
    /// Zeros above and to the left; negative crops.
    pub(crate) before: [isize; 2],
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Height and width of what comes out.
    pub(crate) out: [usize; 2],
}

impl Geometry {
    /// Places of the kernel, over all channels.
    pub(crate) fn taps(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// Columns of a strip, per phase.
    pub(crate) fn columns(&self) -> usize {
        self.out[1] + (self.kernel[1] - 1) / self.stride
    }

    /// Elements of a strip of one row.
    pub(crate) fn row(&self) -> usize {
        self.channels * self.columns() * self.stride.min(self.kernel[0]) * self.stride.min(self.kernel[1])
    }
}

/// Elements behind a plane that a tile may read without using.
const SLACK: usize = 64;

/// Where everything is in strips of at most `rows` rows of the result.
///
/// With a stride the pixels are sorted by their remainders, the phases: then neighbours in the result are neighbours
/// in the strip, whatever the place of the kernel. Output (y, x) is at flat position `(y - first)·columns + x`.
pub(crate) struct Patch {
    pub(crate) geometry: Geometry,
    phases: [usize; 2],
    plane: usize,
    channel: usize,
    /// From a flat position to what each place of the kernel sees, in the order of the weights.
    pub(crate) offsets: Vec<usize>,
}

impl Patch {
    pub(crate) fn new(geometry: Geometry, rows: usize) -> Self {
        let Geometry { stride, kernel, .. } = geometry;
        let phases = kernel.map(|k| k.min(stride));
        let columns = geometry.columns();
        let plane = (rows + (kernel[0] - 1) / stride) * columns + SLACK;
        // An odd number of cache lines: channels that start in the same set would evict each other.
        let channel = ((plane * phases[0] * phases[1]).div_ceil(16) | 1) * 16;
        let mut offsets = Vec::with_capacity(geometry.taps());
        for c in 0..geometry.channels {
            for y in 0..kernel[0] {
                for x in 0..kernel[1] {
                    let phase = (y % stride) * phases[1] + x % stride;
                    offsets.push(c * channel + phase * plane + (y / stride) * columns + x / stride);
                }
            }
        }
        Self { geometry, phases, plane, channel, offsets }
    }

    /// Space for one strip.
    pub(crate) fn space<T>(&self) -> Scratch {
        Scratch::new::<T>(self.channel * self.geometry.channels)
    }

    /// Copies what the rows of the result from `first` on see of one channel of `picture`.
    ///
    /// # Safety
    /// `strip` is a [`Patch::space`] that no one else uses for this channel; `picture` is (H, W).
    pub(crate) unsafe fn fill<T: Real>(&self, picture: &[T], channel: usize, first: usize, strip: *mut T) {
        let Geometry { size: [height, width], zoom, before, stride, .. } = self.geometry;
        let columns = self.geometry.columns();
        let mut out = unsafe { std::slice::from_raw_parts_mut(strip.add(channel * self.channel), self.channel) };
        let top = (first * stride) as isize - before[0];
        for phase in 0..self.phases[0] * self.phases[1] {
            let (py, px) = (phase / self.phases[1], phase % self.phases[1]);
            let (plane, rest) = out.split_at_mut(self.plane);
            out = rest;
            let (rows, slack) = plane.split_at_mut(self.plane - SLACK);
            slack.fill(T::default());
            for (i, row) in rows.chunks_exact_mut(columns).enumerate() {
                let Some(y) = zoom.source(top + (i * stride + py) as isize, height) else {
                    row.fill(T::default());
                    continue;
                };
                let line = &picture[y * width..][..width];
                let left = px as isize - before[1];
                match zoom {
                    Zoom::Repeat(1) if stride == 1 => shifted(line, left, row),
                    Zoom::Repeat(1) => strided(line, left, stride, row),
                    Zoom::Repeat(2) if stride == 1 => doubled(line, left, row),
                    _ => {
                        for (j, to) in row.iter_mut().enumerate() {
                            let source = zoom.source(left + (j * stride) as isize, width);
                            *to = source.map_or(T::default(), |x| line[x]);
                        }
                    }
                }
            }
        }
    }
}

/// `row[j] = line[j + left]`, zero outside.
fn shifted<T: Real>(line: &[T], left: isize, row: &mut [T]) {
    let blank = usize::try_from(-left).unwrap_or(0).min(row.len());
    let skip = usize::try_from(left).unwrap_or(0).min(line.len());
    let count = (line.len() - skip).min(row.len() - blank);
    row[..blank].fill(T::default());
    row[blank..blank + count].copy_from_slice(&line[skip..skip + count]);
    row[blank + count..].fill(T::default());
}

/// `row[j] = line[stride·j + left]`, zero outside.
fn strided<T: Real>(line: &[T], left: isize, stride: usize, row: &mut [T]) {
    let blank = usize::try_from(-left).unwrap_or(0).div_ceil(stride).min(row.len());
    // Not below 0 by the choice of `blank`, unless nothing of the line is seen.
    let start = usize::try_from(left + (blank * stride) as isize).unwrap_or(line.len()).min(line.len());
    let (outside, inside) = row.split_at_mut(blank);
    outside.fill(T::default());
    let count = (line.len() - start).div_ceil(stride).min(inside.len());
    let (inside, behind) = inside.split_at_mut(count);
    match stride {
        // A constant step is what the compiler can turn into vectors.
        2 => {
            for (to, from) in inside.iter_mut().zip(line[start..].chunks(2)) {
                *to = from[0];
            }
        }
        _ => {
            for (to, from) in inside.iter_mut().zip(line[start..].iter().step_by(stride)) {
                *to = *from;
            }
        }
    }
    behind.fill(T::default());
}

/// `row[j] = line[(j + left) / 2]`, zero outside.
fn doubled<T: Real>(line: &[T], left: isize, row: &mut [T]) {
    let blank = usize::try_from(-left).unwrap_or(0).min(row.len());
    let skip = usize::try_from(left).unwrap_or(0).min(2 * line.len());
    let count = (2 * line.len() - skip).min(row.len() - blank);
    row[..blank].fill(T::default());
    let inside = &mut row[blank..blank + count];
    match skip {
        0 => {
            for (pair, &x) in inside.chunks_mut(2).zip(line) {
                pair.fill(x);
            }
        }
        _ => {
            for (j, to) in inside.iter_mut().enumerate() {
                *to = line[(j + skip) / 2];
            }
        }
    }
    row[blank + count..].fill(T::default());
}
