//! Destinations that no policy captures, whatever it says, and that no masquerade touches.

use ipnet::IpNet;

/// A node's own.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// On a node's own links (RFC 3927, RFC 4291).
const LINK_LOCAL: [&str; 2] = ["169.254.0.0/16", "fe80::/10"];
/// RFC 5771, RFC 4291.
const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];
/// RFC 919.
const BROADCAST: [&str; 1] = ["255.255.255.255/32"];

/// What kind of destination a range holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the node itself.
    Loopback,
    /// Of the node's own links.
    LinkLocal,
    /// Of a group.
    Multicast,
    /// Of all on a link.
    Broadcast,
}

impl Kind {
    /// In words, with its article.
    pub fn words(self) -> &'static str {
        match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
        }
    }
}

/// All such ranges. They are disjoint.
pub fn captured() -> impl Iterator<Item = (Kind, IpNet)> {
    let of = |kind: Kind, nets: &'static [&'static str]| {
        let nets = nets.iter().filter_map(|net| net.parse().ok());
        nets.map(move |net| (kind, net))
    };
    of(Kind::Loopback, &LOOPBACK)
        .chain(of(Kind::LinkLocal, &LINK_LOCAL))
        .chain(of(Kind::Multicast, &MULTICAST))
        .chain(of(Kind::Broadcast, &BROADCAST))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kube::CustomResourceExt;

    use super::*;
    use crate::EgressNATPolicy;

    /// The CRD has the ranges as text.
    #[test]
    fn admission_refuses_these_destinations_and_no_others() {
        let crd = serde_json::to_string(&EgressNATPolicy::crd()).unwrap();
        let rule = crd.split('"').find(|text| text.contains("containsCIDR")).unwrap();
        let refused: BTreeSet<IpNet> = rule.split('\'').filter_map(|word| word.parse().ok()).collect();
        assert_eq!(refused, captured().map(|(_, net)| net).collect());
    }

    #[test]
    fn every_range_is_one() {
        let written = LOOPBACK.len() + LINK_LOCAL.len() + MULTICAST.len() + BROADCAST.len();
        assert_eq!(captured().count(), written);
    }
}
