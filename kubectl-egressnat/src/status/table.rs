//! [`Status`] as a table.

use std::fmt::Write as _;

use super::{Health, NodeRow, PolicyRow, Status};
use crate::progress::Progress;

/// ANSI colours.
#[derive(Clone, Copy)]
enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// A cell: its text, and its colour where there may be colours.
type Cell = (String, Option<Colour>);

impl Status {
    /// As tables of policies and nodes.
    pub fn table(&self, colour: bool) -> String {
        if self.policies.is_empty() && self.nodes.is_empty() {
            return "There is no EgressNATPolicy.\n".into();
        }
        let policies = self.policies.iter().map(policy_cells).collect();
        let titles = [
            "POLICY", "PRIORITY", "GATEWAY", "ADDRESS", "PORTS", "PODS", "NODES", "HEALTH", "MESSAGE",
        ];
        let mut text = rendered(&titles, policies, colour);
        if !self.nodes.is_empty() {
            let nodes = self.nodes.iter().map(node_cells).collect();
            text.push('\n');
            text.push_str(&rendered(&["NODE", "PODS", "GATEWAY OF", "PLAN"], nodes, colour));
        }
        text
    }
}

fn policy_cells(row: &PolicyRow) -> Vec<Cell> {
    let colour = match row.health {
        Health::Ready => Colour::Green,
        Health::Pending | Health::Degraded => Colour::Yellow,
        Health::Failed => Colour::Red,
    };
    vec![
        plain(&row.name),
        plain(&row.priority.map(|p| p.to_string()).unwrap_or_default()),
        plain(&listed(row.gateways.iter())),
        plain(&listed(row.addresses.iter())),
        plain(&row.source_ports.map_or("any".into(), |ports| ports.to_string())),
        plain(&row.pods.to_string()),
        plain(&format!("{}/{}", row.nodes_programmed, row.nodes_concerned)),
        (format!("{:?}", row.health), Some(colour)),
        plain(&row.message),
    ]
}

fn node_cells(row: &NodeRow) -> Vec<Cell> {
    let colour = match row.progress {
        Progress::Programmed { .. } => Colour::Green,
        Progress::Failed { .. } => Colour::Red,
        Progress::NoPlan | Progress::NotWritten | Progress::Behind { .. } => Colour::Yellow,
    };
    vec![
        plain(&row.name),
        plain(&row.pods.to_string()),
        plain(&listed(row.gateway_of.iter())),
        (row.progress.to_string(), Some(colour)),
    ]
}

fn plain(text: &str) -> Cell {
    (text.to_owned(), None)
}

/// `a,b,c`, and `-` for none: a column is never empty, so that `cut` and `awk` find the next.
fn listed<'a>(words: impl Iterator<Item = &'a String>) -> String {
    let words: Vec<&str> = words.map(String::as_str).collect();
    if words.is_empty() {
        "-".into()
    } else {
        words.join(",")
    }
}

/// Columns as wide as their widest cell, two spaces between them, nothing after the last.
fn rendered(titles: &[&str], rows: Vec<Vec<Cell>>, colour: bool) -> String {
    let titles: Vec<Cell> = titles.iter().map(|t| plain(t)).collect();
    let rows: Vec<Vec<Cell>> = std::iter::once(titles).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column));
        cells
            .map(|(text, _)| text.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let last = row
            .iter()
            .rposition(|(text, _)| !text.is_empty())
            .unwrap_or_default();
        for (column, (cell, of)) in row.iter().enumerate().take(last + 1) {
            let padding = if column == last {
                0
            } else {
                widths[column] + 2 - cell.chars().count()
            };
            // Writing to a String cannot fail.
            let _ = match of.filter(|_| colour) {
                Some(of) => write!(text, "\x1b[{}m{cell}\x1b[0m{:padding$}", of as u8, ""),
                None => write!(text, "{cell}{:padding$}", ""),
            };
        }
        text.push('\n');
    }
    text
}
