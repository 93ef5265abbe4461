//! Threads that compute ahead.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use fpdm_core::{Error, Result};

use super::{Batch, DataSource};

type Function<T> = dyn Fn(u64) -> Result<T> + Send + Sync;

/// The values of a pure function of a number, computed ahead of who asks for them one after the other.
///
/// Whatever the threads do, [`Ahead::get`] returns what the function returns, errors included: an error comes when its
/// number is asked for and not before. Asking for another number than the next starts anew from there.
///
/// ```
/// use fpdm_train::Ahead;
///
/// let squares = Ahead::new(2, 4, |i| Ok(i * i))?;
/// assert_eq!([squares.get(0)?, squares.get(1)?, squares.get(2)?, squares.get(9)?], [0, 1, 4, 81]);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
pub struct Ahead<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    function: Box<Function<T>>,
    depth: u64,
    queue: Mutex<Queue<T>>,
    /// Something has become ready.
    ready: Condvar,
    /// There is room again, or nothing more to do.
    room: Condvar,
}

struct Queue<T> {
    /// The number that is asked for next; nothing below it is kept. `None` until somebody asks.
    base: Option<u64>,
    /// The number that is computed next.
    next: u64,
    /// Rises when the numbers start anew: what is under way then is thrown away.
    generation: u64,
    done: BTreeMap<u64, Result<T>>,
    closed: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        while !queue.closed {
            let Some(number) = queue.base.filter(|base| queue.next < base + self.depth).map(|_| queue.next) else {
                queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.next += 1;
            let generation = queue.generation;
            drop(queue);
            let value = catch_unwind(AssertUnwindSafe(|| (self.function)(number)))
                .unwrap_or_else(|_| Err(Error::config("data", format!("batch {number}: its thread has panicked"))));
            queue = self.lock();
            if queue.generation == generation {
                queue.done.insert(number, value);
                self.ready.notify_all();
            }
        }
    }
}

impl<T: Send + 'static> Ahead<T> {
    /// Starts `threads` threads that keep at most `depth` values. They wait until the first is asked for.
    ///
    /// # Errors
    /// [`Error::Config`] for no thread or no depth; [`Error::Io`] where the system has no thread left.
    pub fn new(
        threads: usize,
        depth: usize,
        function: impl Fn(u64) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        for (field, value) in [("threads", threads), ("depth", depth)] {
            if value == 0 {
                return Err(Error::config(field, "0 prepares nothing ahead; use 1 or more"));
            }
        }
        let queue = Queue { base: None, next: 0, generation: 0, done: BTreeMap::new(), closed: false };
        let shared = Arc::new(Shared {
            function: Box::new(function),
            depth: depth as u64,
            queue: Mutex::new(queue),
            ready: Condvar::new(),
            room: Condvar::new(),
        });
        // From here on dropping it ends the threads that have started.
        let mut ahead = Self { shared, threads: Vec::with_capacity(threads) };
        for i in 0..threads {
            let shared = ahead.shared.clone();
            let thread = std::thread::Builder::new().name(format!("fpdm-data-{i}")).spawn(move || shared.work());
            ahead.threads.push(thread.map_err(|e| Error::io("a thread for data", e))?);
        }
        Ok(ahead)
    }

    /// The value of `number`, waiting for it where it is not ready.
    ///
    /// # Errors
    /// The function's for this number.
    pub fn get(&self, number: u64) -> Result<T> {
        let mut queue = self.shared.lock();
        if queue.base != Some(number) {
            queue.generation += 1;
            queue.done.clear();
            (queue.base, queue.next) = (Some(number), number);
            self.shared.room.notify_all();
        }
        loop {
            if let Some(value) = queue.done.remove(&number) {
                queue.base = Some(number + 1);
                self.shared.room.notify_all();
                return value;
            }
            queue = self.shared.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in it has been reported as the error of its batch.
            let _ = thread.join();
        }
    }
}

/// Any source, read by threads ahead of who trains on it. Batches are the source's own.
pub struct Prefetch {
    source: Arc<dyn DataSource>,
    size: usize,
    ahead: Ahead<Batch>,
}

impl Prefetch {
    /// Reads batches of `size` samples with `threads` threads, at most `depth` ahead.
    ///
    /// # Errors
    /// [`Ahead::new`]'s.
    pub fn new(source: Arc<dyn DataSource>, size: usize, threads: usize, depth: usize) -> Result<Self> {
        let inside = source.clone();
        let ahead = Ahead::new(threads, depth, move |index| inside.batch(index, size))?;
        Ok(Self { source, size, ahead })
    }
}

impl DataSource for Prefetch {
    /// Batches of another size than was announced are read when they are asked for.
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        if size == self.size { self.ahead.get(index) } else { self.source.batch(index, size) }
    }
}
