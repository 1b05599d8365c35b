//! Kinds of addresses that never leave by a gateway, whatever a policy says.

use std::net::IpAddr;

use egressnat_crds::never;
use ipnet::IpNet;

/// What kind of address that is, with its article; `None` for one that policies can capture.
pub fn never_captured(address: IpAddr) -> Option<&'static str> {
    let mut ranges = never::captured();
    let found = ranges.find(|(_, net)| net.contains(&address));
    found.map(|(kind, _)| kind.words())
}

/// Whether all of a network is of one such kind.
pub fn is_never_captured(net: &IpNet) -> bool {
    never::captured().any(|(_, never)| never.contains(net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_of_a_kind_when_all_of_it_is() {
        for (net, never) in [
            ("127.0.0.0/8", true),
            ("127.0.0.0/7", false),
            ("::1/128", true),
            ("::/127", false),
            ("169.254.169.254/32", true),
            ("fe80::/10", true),
            ("fe80::/9", false),
            ("224.0.0.0/4", true),
            ("ff02::/16", true),
            ("255.255.255.255/32", true),
            ("240.0.0.0/4", false),
            ("0.0.0.0/0", false),
            ("192.0.2.0/24", false),
        ] {
            assert_eq!(is_never_captured(&net.parse().unwrap()), never, "{net}");
        }
    }
}
