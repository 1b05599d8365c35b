//! Where a policy applies.

use serde_json::{Value, json};

use super::Refused;

const NOT_A_CIDR: &str = "every entry must be a CIDR, such as 192.0.2.0/24 or 2001:db8::/32";
const HOST_BITS: &str = "a CIDR must not have host bits set: write 192.0.2.0/24, not 192.0.2.7/24";
const NEVER_CAPTURED: &str =
    "loopback, link-local, multicast and broadcast addresses are never captured: leave such CIDRs out";
const USELESS_ADDRESS: &str =
    "no destinationCIDR is of the family of egressSourceIP: the address could never be used";

pub fn accepted() -> Vec<Value> {
    vec![
        json!({"destinationCIDRs": null}),
        // These hold more than what is never captured.
        json!({"destinationCIDRs": ["126.0.0.0/7", "169.0.0.0/8", "fe00::/7", "192.0.0.0/2", "255.255.255.254/31"]}),
        json!({"excludedCIDRs": ["169.254.0.0/16", "224.0.0.0/4", "fe80::/10"]}),
        json!({"destinationCIDRs": ["0.0.0.0/0", "::/0"], "excludedCIDRs": ["10.0.0.0/8", "fd00::/8"]}),
    ]
}

pub fn refused() -> Vec<Refused> {
    let beside_a_good_one = |cidr: &str| json!({"destinationCIDRs": ["192.0.2.0/24", cidr]});
    vec![
        (
            json!({"destinationCIDRs": ["2001:db8::/32"]}),
            "spec",
            USELESS_ADDRESS,
        ),
        (
            beside_a_good_one("192.0.2.0/33"),
            "spec.destinationCIDRs",
            NOT_A_CIDR,
        ),
        (
            beside_a_good_one("192.0.2.7"),
            "spec.destinationCIDRs",
            NOT_A_CIDR,
        ),
        (
            beside_a_good_one("example.com"),
            "spec.destinationCIDRs",
            NOT_A_CIDR,
        ),
        (
            beside_a_good_one("198.51.100.7/24"),
            "spec.destinationCIDRs",
            HOST_BITS,
        ),
        (
            beside_a_good_one("2001:db8::1/32"),
            "spec.destinationCIDRs",
            HOST_BITS,
        ),
        (
            beside_a_good_one("127.0.0.1/32"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            beside_a_good_one("169.254.169.254/32"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            beside_a_good_one("224.0.0.0/4"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            beside_a_good_one("255.255.255.255/32"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            beside_a_good_one("::1/128"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            beside_a_good_one("fe80::/64"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            beside_a_good_one("ff00::/8"),
            "spec.destinationCIDRs",
            NEVER_CAPTURED,
        ),
        (
            json!({"excludedCIDRs": ["300.0.0.0/8"]}),
            "spec.excludedCIDRs",
            NOT_A_CIDR,
        ),
        (
            json!({"excludedCIDRs": ["10.0.0.1/8"]}),
            "spec.excludedCIDRs",
            HOST_BITS,
        ),
    ]
}
