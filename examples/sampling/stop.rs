//! Ctrl-C ends a run between two steps, when no file is half written.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::files;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C. A second one ends the program at once, but for a file that is being written.
pub(crate) fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            let _whole = files::none_written();
            std::process::exit(130);
        }
        eprintln!("stopping after this step");
    })?;
    Ok(())
}

/// Fails once Ctrl-C was pressed.
pub(crate) fn check() -> Result<()> {
    anyhow::ensure!(!ASKED.load(Ordering::SeqCst), "interrupted; every file written so far is complete");
    Ok(())
}
