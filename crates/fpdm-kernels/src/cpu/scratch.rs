//! Reused work space: a fresh megabyte costs more in page faults than in arithmetic.

use std::sync::Mutex;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());
/// More buffers than threads ever hold at once would only be memory kept for nothing.
const KEEP: usize = 64;
/// Lines above which a buffer is not kept: its page faults are lost in the work that needs so much.
const LARGEST: usize = (32 << 20) / 64;

/// Elements of unspecified value, aligned to a cache line, returned to the pool on drop.
pub(crate) struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    pub(crate) fn new<T>(len: usize) -> Self {
        let wanted = (len * size_of::<T>()).div_ceil(64);
        let mut lines = {
            let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
            let fits = pool.iter().enumerate().filter(|(_, b)| b.len() >= wanted).min_by_key(|(_, b)| b.len());
            match fits.map(|(i, _)| i) {
                Some(i) => pool.swap_remove(i),
                None => pool.pop().unwrap_or_default(),
            }
        };
        if lines.len() < wanted {
            lines.clear();
            lines.resize(wanted, Line([0; 64]));
        }
        Self { lines }
    }

    pub(crate) fn ptr<T>(&mut self) -> *mut T {
        self.lines.as_mut_ptr().cast()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
        if pool.len() < KEEP && self.lines.len() <= LARGEST {
            pool.push(std::mem::take(&mut self.lines));
        }
    }
}
