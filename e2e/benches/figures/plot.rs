//! The datapath's figures as bars, for the README: one panel a metric, one bar a variant.

use crate::{
    plan::LARGE,
    results::{Record, rounded},
};

/// What has a panel: the end of the records' names, the title, and which way is better.
const PANELS: [(&str, &str); 5] = [
    ("tcp_throughput", "TCP, one stream, Gbit/s (more is better)"),
    ("udp_pps", "UDP, 64 octets, packets/s (more is better)"),
    ("tcp_connections", "TCP connections/s (more is better)"),
    ("rtt_p50", "Round trip, P50, µs (less is better)"),
    ("rtt_p99", "Round trip, P99, µs (less is better)"),
];

/// What has a bar: the beginning of the records' names, the label, and whether it is ours.
const BARS: [(&str, &str, bool); 5] = [
    ("masquerade", "masquerade alone", false),
    ("unselected", "unselected pod", true),
    ("local", "selected, on gateway", true),
    ("plain_tunnel", "plain tunnel, SNAT", false),
    ("tunnel", "selected, by tunnel", true),
];

const WIDTH: usize = 880;
const COLUMNS: usize = 2;
const MARGIN: usize = 20;
const LABELS: usize = 150;
const BAR: usize = 12;
const STEP: usize = 17;
const TITLE: usize = 26;
/// Free on the right of the longest bar, for its value.
const VALUES: usize = 75;
/// Room between the last panel's values and the legend.
const ASIDE: usize = 25;

const STYLE: &str = "\
svg{--paper:#fff;--ink:#1f2328;--faint:#656d76;--other:#9aa3ad;--ours:#2f6fde;--large:#84acf0}\
@media(prefers-color-scheme:dark){svg{--paper:#15191f;--ink:#e6edf3;--faint:#9198a1;--other:#6b7480;--ours:#4c8dff;--large:#2b559b}}\
text{font:11px system-ui,sans-serif;fill:var(--ink)}.t{font-weight:600;font-size:12px}.f{fill:var(--faint)}\
.other{fill:var(--other)}.ours{fill:var(--ours)}.large{fill:var(--large)}line{stroke:var(--ink)}";

/// A whole SVG document, readable on light and dark pages. `note` says where the figures are from.
pub fn svg(records: &[Record], note: &str) -> String {
    let panels: Vec<String> = PANELS
        .iter()
        .map(|(metric, title)| panel(records, metric, title))
        .collect();
    let rows = bars(records, PANELS[0].0).len();
    let (width, height) = (panel_width(), TITLE + rows * STEP + MARGIN);
    let mut body = String::new();
    for (place, panel) in panels.iter().enumerate() {
        let (x, y) = (
            MARGIN + place % COLUMNS * (width + MARGIN),
            MARGIN + place / COLUMNS * height,
        );
        body += &format!("<g transform=\"translate({x} {y})\">{panel}</g>\n");
    }
    let place = panels.len();
    let (x, y) = (
        MARGIN + place % COLUMNS * (width + MARGIN) + ASIDE,
        MARGIN + place / COLUMNS * height,
    );
    body += &format!("<g transform=\"translate({x} {y})\">{}</g>\n", legend(note));
    let total = MARGIN + PANELS.len().div_ceil(COLUMNS) * height;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total}\" role=\"img\" \
         aria-label=\"What egressnat costs\">\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{total}\" rx=\"8\" fill=\"var(--paper)\"/>\n{body}</svg>\n"
    )
}

fn panel_width() -> usize {
    (WIDTH - MARGIN) / COLUMNS - MARGIN
}

struct Bar<'a> {
    label: String,
    class: &'static str,
    record: &'a Record,
}

fn panel(records: &[Record], metric: &str, title: &str) -> String {
    let bars = bars(records, metric);
    let most = bars
        .iter()
        .map(|bar| bar.record.value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = (panel_width() - LABELS - VALUES) as f64 / most;
    let mut text = format!("<text class=\"t\" y=\"12\">{title}</text>");
    for (row, Bar { label, class, record }) in bars.iter().enumerate() {
        let y = TITLE + row * STEP;
        let (length, half) = (record.value * scale, record.value * record.spread / 2.0 * scale);
        let (from, to) = (LABELS as f64 + length - half, LABELS as f64 + length + half);
        let ratio = record
            .ratio
            .map(|ratio| format!(" ×{ratio:.2}"))
            .unwrap_or_default();
        let (middle, base) = (y + BAR / 2, y + BAR - 2);
        text += &format!(
            "\n<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{label}</text>\
             <rect class=\"{class}\" x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\"/>\
             <line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>\
             <text x=\"{:.1}\" y=\"{base}\">{}<tspan class=\"f\">{ratio}</tspan></text>",
            LABELS - 6,
            to + 5.0,
            rounded(record.value),
        );
    }
    text
}

fn bars<'a>(records: &'a [Record], metric: &str) -> Vec<Bar<'a>> {
    let mut bars = Vec::new();
    for (kind, label, ours) in BARS {
        let name = format!("{kind}_{metric}");
        for record in records.iter().filter(|record| record.name == name) {
            let large = record.labels.get("pods") == Some(&LARGE.pods.to_string());
            bars.push(Bar {
                label: if large { "10,000 pods".into() } else { label.into() },
                class: match (ours, large) {
                    (false, _) => "other",
                    (true, false) => "ours",
                    (true, true) => "large",
                },
                record,
            });
        }
    }
    bars
}

fn legend(note: &str) -> String {
    let lines = [
        ("other", "without egressnat"),
        ("ours", "with it, 10 selected pods on the node and 1 policy"),
        ("large", "with it, 10,000 selected pods and 1,000 policies"),
    ];
    let mut text = String::new();
    for (row, (class, words)) in lines.iter().enumerate() {
        let y = TITLE + row * (STEP + 3);
        text += &format!(
            "<rect class=\"{class}\" y=\"{y}\" width=\"{BAR}\" height=\"{BAR}\"/><text x=\"20\" y=\"{}\">{words}</text>\n",
            y + BAR - 2
        );
    }
    let notes = [
        "× is the ratio to the bar above without egressnat, paired by round.".to_owned(),
        "Lines: the middle half of the rounds. Both ends and all nodes".to_owned(),
        format!("share one kernel. {note}"),
    ];
    for (row, words) in notes.iter().enumerate() {
        let y = TITLE + 4 * STEP + 20 + row * STEP;
        text += &format!("<text class=\"f\" y=\"{y}\">{words}</text>\n");
    }
    text
}
