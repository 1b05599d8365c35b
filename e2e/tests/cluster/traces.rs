//! What of ours a node's kernel holds, in the words of the tools that people use.

use std::process::Command;

use egressnat_e2e::{error::Result, netns::Netns, node::Node, wait};

use crate::scene::{DEADLINE, Scene};

/// The bits of the connection mark that hold a policy's id.
const CT_MARK_MASK: u32 = 0x3fff_0000;
const TABLES: &str = "nft list tables";
const TABLE: &str = "inet egressnat";

/// Tables, links, rules, routes, and connections that were decided by a policy: a line each.
pub fn of(node: &Node) -> Result<Vec<String>> {
    let netns = node.netns()?;
    let mut found = Vec::new();
    let mut look = |command: &str, ours: fn(&str) -> bool| -> Result<()> {
        let lines = output(&netns, command)?;
        found.extend(
            lines
                .lines()
                .filter(|line| ours(line))
                .map(|line| format!("{command}: {line}")),
        );
        Ok(())
    };
    look(TABLES, |line| line.ends_with(TABLE))?;
    look("ip -o link", |line| line.contains(" egressnat0:"))?;
    for family in ["-4", "-6"] {
        look(&format!("ip {family} rule"), |line| line.starts_with("770:"))?;
        look(&format!("ip {family} route show table all"), is_our_route)?;
    }
    for family in ["ipv4", "ipv6"] {
        look(&format!("conntrack -L -f {family}"), is_decided)?;
    }
    Ok(found)
}

/// Waits until no node holds anything of ours.
pub fn expect_none(scene: &Scene) -> Result<()> {
    expect(scene, of)
}

/// Waits until no node holds anything of ours but, for 16 minutes, the table that answers what pods still send of
/// connections that were open when their policy went: a request that was under way just then is one.
pub fn expect_ends_at_most(scene: &Scene) -> Result<()> {
    expect(scene, |node| {
        let mut found = of(node)?;
        if found == [format!("{TABLES}: table {TABLE}")] && has_ends_alone(node)? {
            found.clear();
        }
        Ok(found)
    })
}

fn expect(scene: &Scene, traces: impl Fn(&Node) -> Result<Vec<String>>) -> Result<()> {
    wait::until("nothing of ours on any node", DEADLINE, || {
        let mut left = Vec::new();
        for node in scene.cluster.nodes() {
            let traces = traces(&node).map_err(|error| error.to_string())?;
            left.extend(
                traces
                    .iter()
                    .map(|trace| format!("{}: {trace}", node.spec().name)),
            );
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("\n"))
        }
    })
}

/// Whether our table is the chain for the ends of connections, and the one that leads there.
fn has_ends_alone(node: &Node) -> Result<bool> {
    let table = output(&node.netns()?, &format!("nft list table {TABLE}"))?;
    let named = |kind: &str| -> Vec<&str> {
        let lines = table
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(kind));
        lines.map(|name| name.trim_end_matches(" {")).collect()
    };
    Ok(named("chain ") == ["prerouting", "released"] && named("map ").is_empty())
}

fn output(netns: &Netns, command: &str) -> Result<String> {
    let mut words = command.split(' ');
    netns.output(Command::new(words.next().unwrap_or_default()).args(words))
}

fn is_our_route(line: &str) -> bool {
    let table = line
        .split(" table ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let number = table.and_then(|table| table.parse::<u32>().ok());
    number.is_some_and(|number| (7701..=7763).contains(&number))
}

fn is_decided(line: &str) -> bool {
    let mark = line
        .split(" mark=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    mark.and_then(|mark| mark.parse::<u32>().ok())
        .is_some_and(|mark| mark & CT_MARK_MASK != 0)
}
