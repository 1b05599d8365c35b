//! The address that the outside sees: which one, and with which ports.

use serde_json::{Value, json};

use super::{NOT_ADDRESSES, ONE_ADDRESS, Refused, TWO_OF_A_FAMILY};

const NOT_PORTS: &str = "sourcePorts must be ports of 1 to 65535, such as 20000-39999";
const PORTS_TURNED: &str = "write the lower port first, as in 20000-39999";

pub fn accepted() -> Vec<Value> {
    vec![
        json!({"egressSourceIP": "2001:db8::a", "destinationCIDRs": ["192.0.2.0/24", "2001:db8::/32"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["192.0.2.10"]}),
        json!({"egressSourceIP": null, "egressSourceIPs": ["2001:db8::a", "192.0.2.10"]}),
        json!({"sourcePorts": "20000-39999"}),
        json!({"sourcePorts": "1-65535"}),
        json!({"sourcePorts": "443"}),
        json!({"sourcePorts": "443-443"}),
    ]
}

pub fn refused() -> Vec<Refused> {
    let ports = |ports: &str, message| (json!({"sourcePorts": ports}), "spec.sourcePorts", message);
    [
        refused_addresses(),
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

fn refused_addresses() -> Vec<Refused> {
    let two = |ips: Value| json!({"egressSourceIP": null, "egressSourceIPs": ips});
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
            two(json!(["192.0.2.10", "x"])),
            "spec.egressSourceIPs",
            NOT_ADDRESSES,
        ),
        (
            two(json!(["192.0.2.10", "192.0.2.11"])),
            "spec.egressSourceIPs",
            TWO_OF_A_FAMILY,
        ),
    ]
}
