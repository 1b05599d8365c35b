//! Everything in a node's kernel that an agent could have written, as lines that are equal for equal states.

use std::{process::Command, time::Duration};

use egressnat_e2e::{topology::Node, wait};

use crate::lab::ok;

/// A command a line. What is asked for by name, and is not there, gives nothing.
const COMMANDS: [&str; 9] = [
    "ip -d -o link show",
    "ip -o addr show",
    "ip -4 rule show",
    "ip -6 rule show",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip neigh show nud permanent",
    "bridge fdb show dev egressnat0 2>/dev/null || true",
    "cd /proc/sys/net; grep -s . ipv4/conf/egressnat0/{rp_filter,forwarding} \
     ipv6/conf/egressnat0/{forwarding,disable_ipv6,accept_ra} || true",
];

const DEADLINE: Duration = Duration::from_secs(5);

/// A node's state: links, addresses, rules, routes, neighbours, settings, rulesets. Without conntrack, and
/// without what packets count.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot(Vec<String>);

impl Snapshot {
    /// What the node holds now.
    #[track_caller]
    pub fn of(node: &Node) -> Self {
        await_settled_addresses(node);
        let mut lines: Vec<String> = COMMANDS
            .into_iter()
            .flat_map(|command| sorted(node, command))
            .collect();
        // The kernel lists them by age.
        const TABLES: &str = "nft list tables | sort | while read -r table; do nft list $table; done";
        let rulesets = ok(node.netns.output(Command::new("bash").args(["-ec", TABLES])));
        lines.extend(rulesets.lines().filter_map(lasting).map(str::to_owned));
        Self(lines)
    }

    /// Whether a line of it contains these words.
    pub fn contains(&self, words: &str) -> bool {
        self.0.iter().any(|line| line.contains(words))
    }

    /// The node holds now what it held then.
    #[track_caller]
    pub fn assert_unchanged(&self, node: &Node, why: &str) {
        let now = Self::of(node);
        let lacks = |a: &Self, b: &Self| {
            a.0.iter()
                .filter(|line| !b.0.contains(line))
                .cloned()
                .collect::<Vec<_>>()
        };
        let (gone, come) = (lacks(self, &now), lacks(&now, self));
        assert!(
            *self == now,
            "{}, {why}: gone {gone:#?}, come {come:#?}",
            node.name
        );
    }

    /// The node holds something else now than it held then.
    #[track_caller]
    pub fn assert_changed(&self, node: &Node, why: &str) {
        assert_ne!(
            *self,
            Self::of(node),
            "{}, {why}: the snapshot shows no difference",
            node.name
        );
    }
}

/// An address that the kernel gives to a link that comes up is `tentative` until a worker of the kernel's has run, be
/// there no duplicate detection at all.
#[track_caller]
fn await_settled_addresses(node: &Node) {
    ok(wait::until("settled addresses", DEADLINE, || {
        let tentative = sorted(node, "ip -o addr show tentative");
        if tentative.is_empty() {
            Ok(())
        } else {
            Err(tentative.join("\n"))
        }
    }));
}

/// What a command shows, without the order and the indexes that come from the order of making.
#[track_caller]
fn sorted(node: &Node, command: &str) -> Vec<String> {
    let shown = ok(node
        .netns
        .output(Command::new("bash").args(["-euo", "pipefail", "-c", command])));
    let mut lines: Vec<String> = shown
        .lines()
        .map(|line| without_index(line.trim()).to_owned())
        .collect();
    lines.sort();
    lines
}

/// A line of a ruleset without what is the process's that owns it, what packets leave, and the comments, which tell
/// rules apart by the index of a device too.
fn lasting(line: &str) -> Option<&str> {
    let of_the_process = line.starts_with("\tflags ") || line.contains("packets");
    let end = line
        .find(" # progname")
        .or_else(|| line.find(" comment "))
        .unwrap_or(line.len());
    line.get(..end).filter(|_| !of_the_process)
}

/// `7: egressnat0: ...` without its number, or a rule without its priority's colon.
fn without_index(line: &str) -> &str {
    match line.split_once(": ") {
        Some((index, rest)) if index.parse::<u32>().is_ok() => rest,
        _ => line,
    }
}
