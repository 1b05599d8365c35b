//! The address that the outside sees: which one, and with which ports.

use serde_json::{Value, json};

use super::{NO_SOURCE, NO_SOURCES, NOT_ADDRESSES, ONE_ADDRESS, Refused, UNUSABLE};

const THERE_TWICE: &str = "every address must be there once";
const NO_PAIRS: &str = "write as many IPv4 as IPv6 addresses, the first with the first and so on, or addresses of \
                        one family";
const TOO_MANY: &str = "write at most 16 addresses of each family";
const NOT_PORTS: &str = "sourcePorts must be ports of 1 to 65535, such as 20000-39999";
const PORTS_TURNED: &str = "write the lower port first, as in 20000-39999";

pub fn accepted() -> Vec<Value> {
    vec![
        json!({"egressSourceIP": "2001:db8::a", "destinationCIDRs": ["192.0.2.0/24", "2001:db8::/32"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["192.0.2.10"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["2001:db8::a", "192.0.2.10"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["192.0.2.10", "192.0.2.11", "192.0.2.12"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": fours(16)}),
        json!({"egressSourceIP": null, "egressSourceIPs": sixes(16)}),
        json!({"egressSourceIP": null, "egressSourceIPs": ([fours(16), sixes(16)].concat())}),
        json!({"sourcePorts": "20000-39999"}),
        json!({"sourcePorts": "1-65535"}),
        json!({"sourcePorts": "443"}),
        json!({"sourcePorts": "443-443"}),
    ]
}

/// So many IPv4 addresses.
fn fours(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("192.0.2.{n}")).collect()
}

/// So many IPv6 addresses.
fn sixes(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("2001:db8::{n}")).collect()
}

pub fn refused() -> Vec<Refused> {
    let ports = |ports: &str, message| (json!({"sourcePorts": ports}), "spec.sourcePorts", message);
    [
        refused_addresses(),
        unusable_addresses(),
        vec![
            ports("0", NOT_PORTS),
            ports("0-100", NOT_PORTS),
            ports("1-65536", NOT_PORTS),
            ports("99999", NOT_PORTS),
            ports("http", NOT_PORTS),
            ports("20000:39999", NOT_PORTS),
            ports("1-2-3", NOT_PORTS),
            ports("-1", NOT_PORTS),
            ports("", NOT_PORTS),
            ports("39999-20000", PORTS_TURNED),
        ],
    ]
    .concat()
}

fn unusable_addresses() -> Vec<Refused> {
    let alone = UNUSABLE.map(|a| {
        // Without destinations, so that the address' family does not matter.
        let spec = json!({"egressSourceIP": a, "destinationCIDRs": null});
        (spec, "spec.egressSourceIP", NO_SOURCE)
    });
    let among_others = UNUSABLE.map(|a| {
        let good = if a.contains(':') {
            "2001:db8::a"
        } else {
            "192.0.2.10"
        };
        let spec = json!({"egressSourceIP": null, "egressSourceIPs": [good, a]});
        (spec, "spec.egressSourceIPs", NO_SOURCES)
    });
    let mapped = json!({"egressSourceIP": "::ffff:192.0.2.10", "destinationCIDRs": null});
    let mapped = (
        mapped,
        "spec.egressSourceIP",
        "egressSourceIP must be an IPv4 or IPv6 address",
    );
    [&alone[..], &among_others[..], &[mapped]].concat()
}

fn refused_addresses() -> Vec<Refused> {
    let several = |ips: Value| json!({"egressSourceIP": null, "egressSourceIPs": ips});
    vec![
        (json!({"egressSourceIP": null}), "spec", ONE_ADDRESS),
        (json!({"egressSourceIPs": ["192.0.2.10"]}), "spec", ONE_ADDRESS),
        (
            json!({"egressGateway": {"nodeSelector": {}}}),
            "spec",
            ONE_ADDRESS,
        ),
        (
            json!({"egressSourceIP": "192.0.2.256"}),
            "spec.egressSourceIP",
            "egressSourceIP must be an IPv4 or IPv6 address",
        ),
        (
            several(json!(["192.0.2.10", "x"])),
            "spec.egressSourceIPs",
            NOT_ADDRESSES,
        ),
        (
            several(json!(["192.0.2.10", "192.0.2.10"])),
            "spec.egressSourceIPs",
            THERE_TWICE,
        ),
        (
            several(json!(["192.0.2.10", "2001:db8::a", "192.0.2.11", "2001:0db8::a"])),
            "spec.egressSourceIPs",
            THERE_TWICE,
        ),
        (
            several(json!(["192.0.2.10", "192.0.2.11", "2001:db8::a"])),
            "spec.egressSourceIPs",
            NO_PAIRS,
        ),
        (
            several(json!(["192.0.2.10", "2001:db8::a", "2001:db8::b"])),
            "spec.egressSourceIPs",
            NO_PAIRS,
        ),
        (several(json!(fours(17))), "spec.egressSourceIPs", TOO_MANY),
        (several(json!(sixes(17))), "spec.egressSourceIPs", TOO_MANY),
    ]
}
