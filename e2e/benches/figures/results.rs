//! What comes out: records for `target/bench/results.json`, and the table.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stats::Summary;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// What was measured: `tunnel_tcp_throughput`.
    pub name: String,
    /// Under which circumstances: `pods`, `policies`, and in `baseline` what the baseline is.
    pub labels: BTreeMap<&'static str, String>,
    /// Unit of `value` and `baseline`.
    pub unit: &'static str,
    /// The median.
    pub value: f64,
    /// The median of what it is compared with.
    pub baseline: Option<f64>,
    /// The median of the ratios, each of two values of the same round.
    pub ratio: Option<f64>,
    /// From the first to the third quartile, as a fraction of the median.
    pub spread: f64,
    /// How many values there were.
    pub samples: usize,
    /// What is asked of it. Not part of the file.
    #[serde(skip)]
    pub target: Option<Target>,
}

/// What is asked of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The ratio, at least.
    RatioAtLeast(f64),
    /// The ratio, within this distance of 1 on the bad side: below 1 for rates, above for times.
    RatioWithin(f64),
    /// The value, less than.
    Below(f64),
}

impl Record {
    /// A figure without a baseline.
    pub fn new(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let Summary {
            median,
            spread,
            samples,
        } = Summary::of(samples);
        Self {
            name: name.into(),
            labels: BTreeMap::new(),
            unit,
            value: median,
            baseline: None,
            ratio: None,
            spread,
            samples,
            target: None,
        }
    }

    /// With a label.
    pub fn label(mut self, key: &'static str, value: impl ToString) -> Self {
        self.labels.insert(key, value.to_string());
        self
    }

    /// With a target.
    pub fn target(mut self, target: impl Into<Option<Target>>) -> Self {
        self.target = target.into();
        self
    }

    /// Whether the target is met; `None` without one.
    fn verdict(&self) -> Option<bool> {
        let ratio = self.ratio.unwrap_or(f64::NAN);
        Some(match self.target? {
            Target::RatioAtLeast(least) => ratio >= least,
            Target::RatioWithin(distance) if self.unit == "us" => ratio <= 1.0 + distance,
            Target::RatioWithin(distance) => ratio >= 1.0 - distance,
            Target::Below(limit) => self.value < limit,
        })
    }
}

/// Writes them all as a JSON list.
pub fn write(records: &[Record], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(records)? + "\n";
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// Prints them all as a table.
pub fn print(records: &[Record]) {
    println!(
        "{:<41} {:>6} {:>6} {:>8} {:>10} {:<7} {:>7} {:>7}  {:<24} target",
        "figure", "nodes", "pods", "policies", "median", "unit", "spread", "ratio", "to"
    );
    for record in records {
        let label = |key| record.labels.get(key).map_or("-", String::as_str);
        let ratio = record.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:<41} {:>6} {:>6} {:>8} {:>10} {:<7} {:>6.1}% {:>7}  {:<24} {}",
            record.name,
            label("nodes"),
            label("pods"),
            label("policies"),
            rounded(record.value),
            record.unit,
            record.spread * 100.0,
            ratio,
            label("baseline"),
            target(record)
        );
    }
}

/// Four digits, or all before the point.
pub fn rounded(value: f64) -> String {
    let digits = value.abs().max(1.0).log10().floor() as usize;
    format!("{value:.*}", 3_usize.saturating_sub(digits))
}

fn target(record: &Record) -> String {
    let Some((target, met)) = record.target.zip(record.verdict()) else {
        return "-".to_owned();
    };
    let asked = match target {
        Target::RatioAtLeast(least) => format!("at least {least}"),
        Target::RatioWithin(distance) => format!("within {}%", distance * 100.0),
        Target::Below(limit) => format!("below {limit} {}", record.unit),
    };
    format!("{asked}: {}", if met { "met" } else { "MISSED" })
}
