//! What is written as iproute2 sees it.

use std::collections::BTreeSet;

use egressnat_agent::model::{Net, Route, RouteKind, Tunnel};
use egressnat_agent::owned::Numbers;
use egressnat_crds::plan::Family;
use serde_json::Value;

use crate::netns::{in_netns, json, make_underlay, rtnl, tunnel};
use crate::sample::{UNDERLAYS, desired, reach};

#[test]
fn iproute2_sees_what_was_put() {
    for local in UNDERLAYS {
        in_netns(move || async move {
            let desired = desired(tunnel(&make_underlay(), local), 2);
            reach(&mut rtnl(), &desired).await;
            the_link_is_as_wanted(desired.tunnel.as_ref().unwrap());
            the_entries_are_as_wanted(&desired);
            the_rules_are_as_wanted(&desired);
            for (family, number) in [(Family::IPv4, "-4"), (Family::IPv6, "-6")] {
                let wanted: BTreeSet<_> = desired
                    .routes
                    .iter()
                    .filter(|r| Family::from(r.to.addr()) == family)
                    .map(route_text)
                    .collect();
                let seen: BTreeSet<_> = of_our_tables(number).iter().map(seen_route_text).collect();
                assert_eq!(seen, wanted);
            }
        });
    }
}

fn the_link_is_as_wanted(tunnel: &Tunnel) {
    let link = &json("ip -j -d link show egressnat0")[0];
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
    assert_eq!(link["mtu"], tunnel.mtu);
    assert_eq!(link["address"], tunnel.mac.to_string());
    assert!(link["flags"].as_array().unwrap().contains(&"UP".into()));
    assert_eq!(data["id"], tunnel.vni);
    assert_eq!(data["port"], tunnel.port);
    assert_eq!(data["link"], tunnel.underlay.name);
    assert_eq!(data["learning"], false);
    assert_eq!(data["gbp"], true, "{data}");
    let address = &json("ip -j -4 address show dev egressnat0")[0]["addr_info"];
    assert_eq!(address[0]["local"], tunnel.address.to_string());
    assert_eq!(
        (&address[0]["prefixlen"], &address[0]["scope"]),
        (&32.into(), &"host".into())
    );
    let local = if tunnel.local.is_ipv4() { "local" } else { "local6" };
    assert_eq!(data[local], tunnel.local.to_string());
}

fn the_entries_are_as_wanted(desired: &Net) {
    let text = |a: &Value, b: &Value, state: &Value| format!("{a} {b} {state}");
    let fdb = json("bridge -j fdb show dev egressnat0");
    let seen = fdb.as_array().unwrap().iter().map(|e| {
        assert_eq!(e["flags"][0], "self");
        text(&e["mac"], &e["dst"], &e["state"])
    });
    let seen: BTreeSet<_> = seen.collect();
    let wanted = desired
        .fdb
        .iter()
        .map(|e| format!("\"{}\" \"{}\" \"permanent\"", e.mac, e.remote));
    assert_eq!(seen, wanted.collect());

    let mut seen = BTreeSet::new();
    for family in ["-4", "-6"] {
        let entries = json(&format!(
            "ip -j {family} neighbour show dev egressnat0 nud permanent"
        ));
        seen.extend(
            entries
                .as_array()
                .unwrap()
                .iter()
                .map(|e| text(&e["dst"], &e["lladdr"], &e["state"][0])),
        );
    }
    let wanted = desired
        .neighbours
        .iter()
        .map(|n| format!("\"{}\" \"{}\" \"PERMANENT\"", n.address, n.mac));
    assert_eq!(seen, wanted.collect());
}

fn the_rules_are_as_wanted(desired: &Net) {
    for (family, number) in [(Family::IPv4, "-4"), (Family::IPv6, "-6")] {
        let seen: BTreeSet<_> = of_our_rules(number)
            .iter()
            .map(|r| {
                let word = |key: &str| r[key].as_str().unwrap().to_string();
                assert_eq!((word("src"), word("protocol")), ("all".into(), "kernel".into()));
                format!("{}/{} {}", word("fwmark"), word("fwmask"), word("table"))
            })
            .collect();
        let ours = desired.rules.iter().filter(|r| r.family == family);
        let wanted = ours.map(|r| format!("{:#x}/{:#x} {}", r.mark, r.mask, r.table));
        assert_eq!(seen, wanted.collect());
    }
}

pub fn of_our_tables(family: &str) -> Vec<Value> {
    let numbers = Numbers::default();
    let routes = json(&format!("ip -j -d {family} route show table all"));
    let ours = |r: &&Value| {
        let table = r["table"].as_str().and_then(|t| t.parse().ok());
        table.is_some_and(|t| numbers.owns_table(t))
    };
    routes.as_array().unwrap().iter().filter(ours).cloned().collect()
}

pub fn of_our_rules(family: &str) -> Vec<Value> {
    let rules = json(&format!("ip -j -d {family} rule show"));
    let rules = rules.as_array().unwrap().iter();
    rules.filter(|r| r["priority"] == 770).cloned().collect()
}

fn route_text(route: &Route) -> String {
    let to = match route.to.prefix_len() {
        0 => "default".to_string(),
        _ => route.to.to_string(),
    };
    let table = route.table;
    match &route.kind {
        RouteKind::Throw => format!("throw {to} table {table}"),
        RouteKind::Unreachable => format!("unreachable {to} table {table}"),
        RouteKind::Tunnel { via } => format!("unicast {to} via {via} dev egressnat0 onlink table {table}"),
        RouteKind::Link { link, via: Some(via) } => {
            format!("unicast {to} via {via} dev {} onlink table {table}", link.name)
        }
        RouteKind::Link { link, via: None } => format!("unicast {to} dev {} table {table}", link.name),
    }
}

fn seen_route_text(route: &Value) -> String {
    assert_eq!(route["protocol"], "kernel");
    let word = |value: &Value| value.as_str().unwrap_or("?").to_string();
    let (kind, to, table) = (word(&route["type"]), word(&route["dst"]), word(&route["table"]));
    if kind != "unicast" {
        return format!("{kind} {to} table {table}");
    }
    let via = match (&route["gateway"], &route["via"]["host"]) {
        (Value::Null, Value::Null) => String::new(),
        (Value::Null, via) | (via, _) => format!("via {} ", word(via)),
    };
    let onlink = route["flags"].as_array().unwrap().contains(&"onlink".into());
    let onlink = if onlink { "onlink " } else { "" };
    format!(
        "{kind} {to} {via}dev {} {onlink}table {table}",
        word(&route["dev"])
    )
}
