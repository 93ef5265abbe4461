use std::path::Path;

use fpdm_core::{Error, Result};

use super::{AllocationPolicy, Counts, Curve, Ledger};

/// An allocation from a text file, one line a point; `#` begins a comment.
///
/// One number a line is [`Counts`]: applications, the noisiest solve first. Two are a [`Curve`]: progress `u` and a
/// weight.
///
/// ```
/// use fpdm_sample::Table;
///
/// assert!(matches!(Table::parse("# from noise\n4\n2\n1\n")?, Table::Counts(c) if c.total() == 7));
/// assert!(matches!(Table::parse("0 1\n0.5 3 # the middle\n1 1")?, Table::Curve(_)));
/// assert!(Table::parse("0 1\n2").is_err());
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Table {
    /// One count a solve.
    Counts(Counts),
    /// Weights over progress.
    Curve(Curve),
}

impl Table {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; or what [`Table::parse`] says.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?)
    }

    /// Reads a text.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the line that is neither one count nor a pair, or unlike the lines before it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let refuse =
                |why: &str| Err(Error::config("allocation", format!("line {}, `{}`: {why}", i + 1, line.trim())));
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let Ok(row) = words.iter().map(|w| w.parse()).collect::<std::result::Result<Vec<f64>, _>>() else {
                return refuse("no number; use `count`, or `u weight`");
            };
            if row.len() > 2 || rows.first().is_some_and(|first| first.len() != row.len()) {
                return refuse("use one number in every line, `count`, or two, `u weight`");
            }
            if row.len() == 1 && !(row[0] >= 1. && row[0].fract() == 0. && row[0] < 1e9) {
                return refuse("a count is a whole number from 1");
            }
            rows.push(row);
        }
        match rows.first().map(Vec::len) {
            None => Err(Error::config("allocation", "an empty table; give one `count` or `u weight` a line")),
            Some(1) => Ok(Self::Counts(Counts { from_noise: rows.iter().map(|row| row[0] as usize).collect() })),
            Some(_) => Ok(Self::Curve(Curve::new(rows.iter().map(|row| (row[0], row[1])).collect())?)),
        }
    }
}

impl AllocationPolicy for Table {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        match self {
            Self::Counts(counts) => counts.propose(ledger),
            Self::Curve(curve) => curve.propose(ledger),
        }
    }
}
