//! What a model's samples are worth for what they cost: many settings in one process, one line of JSON each.
//!
//! ```sh
//! cargo run --release --example claims -- measure fpdm=MODEL dit=OTHER --settings budgets \
//!     --reference faces.tar#..12000 --held-out faces.tar#12000.. --out results.jsonl
//! cargo run --release --example claims -- table results.jsonl
//! cargo run --release --example claims -- costs fpdm=RUN dit=OTHER_RUN
//! ```
//!
//! `docs/claims/` has a script for each table. No picture is written.

mod device;
mod evaluation {
    pub(crate) mod features;
    pub(crate) mod set;
}
mod measuring;
mod sampling;

use anyhow::Result;
use clap::Parser;

use measuring::options::{Command, Verb};

fn main() -> Result<()> {
    match Command::parse().verb {
        Verb::Measure(options) => measuring::measure::run(&options),
        Verb::Table(options) => measuring::table::print(&options),
        Verb::Costs(options) => measuring::costs::print(&options),
    }
}
