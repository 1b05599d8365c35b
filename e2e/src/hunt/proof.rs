//! The proof that a hunt can fail: without each safeguard in turn, it finds what that one is against.

use std::{fmt, path::Path};

use clap::ValueEnum;

use super::{Report, Safeguard, Settings, run};
use crate::{error::Result, progress::Progress};

/// By then the leak has shown: several times what it takes.
const PODS: usize = 600;
const CHANGES: usize = 120;

/// A hunt without a safeguard.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The safeguard that was left out.
    pub without: Safeguard,
    /// What the hunt found.
    pub report: Report,
}

/// Hunts without a safeguard until it shows, or has had its chance.
///
/// # Errors
/// When the lab fails.
pub fn prove(programs: &Path, without: Safeguard, seed: u64, progress: &Progress) -> Result<Proof> {
    let settings = Settings {
        pods: PODS,
        changes: CHANGES,
        seed,
        until_wrong: true,
        favour: Some(without),
        values: Vec::new(),
        without: vec![without],
    };
    let report = run(programs, &settings, progress)?;
    Ok(Proof { without, report })
}

impl Proof {
    /// Whether the hunt has found what the safeguard is against.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.without.shows(&self.report)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.without.to_possible_value();
        let name = value.as_ref().map_or("", |value| value.get_name());
        let verdict = if self.holds() { "found" } else { "NOT FOUND" };
        let Report {
            pods,
            changes,
            misdirected,
            tally,
            took,
            ..
        } = &self.report;
        write!(
            formatter,
            "without {name}: {verdict} after {} s, {pods} pods, {changes} changes: {} packets wrong of {}, \
             {misdirected} misdirected",
            took.as_secs(),
            tally.wrong,
            tally.judged,
        )
    }
}
