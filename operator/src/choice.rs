//! How a policy's gateways are found: the part of a spec that names them, parsed.

use std::fmt;
use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_crds::policy::{EgressGateway, ZoneAffinity};
use egressnat_crds::selector::{LabelSelector, Operator};

use crate::hash::{fnv1a, mix};
use crate::valid::{InvalidSpec, check_selector};

/// A gateway that a policy asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayEntry {
    /// By what an entry of `egressGateways` is known again. `None` for the gateway of any other policy, of
    /// which there is only one.
    pub key: Option<EntryKey>,
    /// How it is found.
    pub choice: GatewayChoice,
}

/// What an entry of `egressGateways` says, as a number: the same wherever the entry stands in the list, and
/// whichever node it finds. It must never change for an entry that does not: all its pods would move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKey(u64);

/// How a gateway is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayChoice {
    /// The node that holds these addresses, at most one of each family.
    HolderOf(Vec<IpAddr>),
    /// One of the nodes with these labels.
    Labelled(LabelSelector, EgressAddresses),
    /// There is none: the spec is not in force.
    Nowhere,
}

/// Which of a chosen gateway's addresses are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressAddresses {
    /// These, at most one of each family.
    Given(Vec<IpAddr>),
    /// Those of this interface.
    OfInterface(String),
    /// Those of the default route's interface.
    OfDefaultRoute,
}

/// Parses the fields that name a policy's gateways: one, or those of `egressGateways`, in their order.
pub fn parse(spec: &EgressNATPolicySpec) -> Result<Vec<GatewayEntry>, InvalidSpec> {
    if spec.zone_affinity != ZoneAffinity::None && spec.egress_gateways.is_empty() {
        return Err(InvalidSpec::ZoneAffinity);
    }
    let choice = match (
        &spec.egress_source_ip,
        spec.egress_source_ips.as_slice(),
        &spec.egress_gateway,
        spec.egress_gateways.as_slice(),
    ) {
        (Some(one), [], None, []) => GatewayChoice::HolderOf(parse_addresses(
            "egressSourceIP".into(),
            std::slice::from_ref(one),
        )?),
        (None, both @ [_, ..], None, []) => {
            GatewayChoice::HolderOf(parse_addresses("egressSourceIPs".into(), both)?)
        }
        (None, [], Some(gateway), []) => labelled("egressGateway", gateway)?,
        (None, [], None, several @ [_, ..]) => return parse_several(several),
        _ => return Err(InvalidSpec::GatewayFields),
    };
    Ok(vec![GatewayEntry::only(choice)])
}

impl GatewayEntry {
    /// The one gateway of a policy.
    pub fn only(choice: GatewayChoice) -> Self {
        Self { key: None, choice }
    }
}

impl GatewayChoice {
    /// The addresses that the user named, if any.
    pub fn addresses(&self) -> Option<&[IpAddr]> {
        match self {
            Self::HolderOf(a) | Self::Labelled(_, EgressAddresses::Given(a)) => Some(a),
            Self::Labelled(..) | Self::Nowhere => None,
        }
    }
}

impl EntryKey {
    /// Of a choice by label. What makes no difference to the choice makes none to its key.
    fn of(selector: &LabelSelector, addresses: &EgressAddresses) -> Self {
        let mut words: Vec<String> = Vec::new();
        for (label, value) in &selector.match_labels {
            words.extend(["label".into(), label.clone(), value.clone()]);
        }
        let mut requirements = selector.match_expressions.clone();
        for requirement in &mut requirements {
            requirement.values.sort_unstable();
            requirement.values.dedup();
        }
        requirements.sort_unstable();
        requirements.dedup();
        for requirement in requirements {
            words.extend(["requirement".into(), requirement.key]);
            words.push(operator_name(requirement.operator).into());
            words.extend(requirement.values);
        }
        match addresses {
            EgressAddresses::Given(addresses) => {
                words.push("addresses".into());
                words.extend(addresses.iter().map(ToString::to_string));
            }
            EgressAddresses::OfInterface(name) => words.extend(["interface".into(), name.clone()]),
            EgressAddresses::OfDefaultRoute => words.push("default route".into()),
        }
        // A word's length keeps it apart from the next.
        let bytes = words.into_iter().flat_map(|word| {
            (word.len() as u64)
                .to_be_bytes()
                .into_iter()
                .chain(word.into_bytes())
        });
        Self(mix(fnv1a(bytes)))
    }

    /// A number for the pair of this key and a text of which `hash` is the hash: no two keys have the same
    /// one with the same text.
    pub fn with(self, hash: u64) -> u64 {
        mix(self.0 ^ hash)
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

fn operator_name(operator: Operator) -> &'static str {
    match operator {
        Operator::In => "In",
        Operator::NotIn => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
    }
}

fn parse_several(gateways: &[EgressGateway]) -> Result<Vec<GatewayEntry>, InvalidSpec> {
    let mut entries: Vec<GatewayEntry> = Vec::with_capacity(gateways.len());
    for (i, gateway) in gateways.iter().enumerate() {
        let choice = labelled(&format!("egressGateways[{i}]"), gateway)?;
        let key = match &choice {
            GatewayChoice::Labelled(selector, addresses) => Some(EntryKey::of(selector, addresses)),
            GatewayChoice::HolderOf(_) | GatewayChoice::Nowhere => None,
        };
        if let Some(same) = entries.iter().position(|e| e.key == key) {
            return Err(InvalidSpec::SameGateway(same, i));
        }
        entries.push(GatewayEntry { key, choice });
    }
    Ok(entries)
}

fn labelled(field: &str, gateway: &EgressGateway) -> Result<GatewayChoice, InvalidSpec> {
    check_selector(|| format!("{field}.nodeSelector"), Some(&gateway.node_selector))?;
    let addresses = parse_egress_addresses(field, gateway)?;
    Ok(GatewayChoice::Labelled(gateway.node_selector.clone(), addresses))
}

fn parse_egress_addresses(field: &str, gateway: &EgressGateway) -> Result<EgressAddresses, InvalidSpec> {
    match (
        &gateway.interface,
        &gateway.egress_ip,
        gateway.egress_ips.as_slice(),
    ) {
        (None, None, []) => Ok(EgressAddresses::OfDefaultRoute),
        (Some(name), None, []) => Ok(EgressAddresses::OfInterface(name.clone())),
        (None, Some(one), []) => parse_addresses(format!("{field}.egressIP"), std::slice::from_ref(one))
            .map(EgressAddresses::Given),
        (None, None, both) => parse_addresses(format!("{field}.egressIPs"), both).map(EgressAddresses::Given),
        _ => Err(InvalidSpec::AddressFields(field.to_owned())),
    }
}

/// One or two addresses, IPv4 first.
fn parse_addresses(field: String, texts: &[String]) -> Result<Vec<IpAddr>, InvalidSpec> {
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for text in texts {
        let Ok(address) = text.parse() else {
            let value = text.clone();
            return Err(InvalidSpec::Address { field, value });
        };
        if let Some(kind) = unusable(address) {
            return Err(InvalidSpec::NoSource {
                field,
                value: address,
                kind,
            });
        }
        addresses.push(address);
    }
    addresses.sort_unstable();
    match addresses.windows(2).find(|w| w[0].is_ipv4() == w[1].is_ipv4()) {
        Some(w) => Err(InvalidSpec::SameFamily {
            field,
            values: [w[0], w[1]],
        }),
        None => Ok(addresses),
    }
}

/// Why packets to the outside cannot have this source address.
fn unusable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        _ if link_local => Some("a link-local address"),
        IpAddr::V4(a) if a.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(gateways: &str) -> Result<Vec<GatewayEntry>, InvalidSpec> {
        let spec = format!("{{selectors: [{{podSelector: {{}}}}], {gateways}}}");
        parse(&serde_yaml_ng::from_str(&spec).unwrap())
    }

    fn keys(gateways: &str) -> Vec<String> {
        let entries = entries(&format!("egressGateways: [{gateways}]")).unwrap();
        entries.iter().map(|e| e.key.unwrap().to_string()).collect()
    }

    #[test]
    fn a_key_follows_from_what_the_entry_says_and_not_from_where_it_stands() {
        let zone_a = "{nodeSelector: {matchLabels: {egress: 'yes', zone: a}}}";
        let zone_b = "{nodeSelector: {matchLabels: {zone: b}}, egressIPs: ['2001:db8::1', 192.0.2.1]}";
        let forward = keys(&format!("{zone_a}, {zone_b}"));
        let mut backward = keys(&format!("{zone_b}, {zone_a}"));
        backward.reverse();
        assert_eq!(forward, backward);
        // Written down, since pods of running clusters move when it changes.
        assert_eq!(forward, ["77c637ae2b7217d5", "df0c0cf43262b1f5"]);
    }

    #[test]
    fn what_makes_no_difference_to_an_entry_makes_none_to_its_key() {
        let one = "{nodeSelector: {matchExpressions: [
            {key: a, operator: In, values: [x, y]}, {key: b, operator: Exists}]}, egressIPs: [192.0.2.1]}";
        let same = "{nodeSelector: {matchExpressions: [
            {key: b, operator: Exists}, {key: a, operator: In, values: [y, x, x]}]}, egressIP: 192.0.2.1}";
        assert_eq!(keys(one), keys(same));
        let error = entries(&format!("egressGateways: [{one}, {same}]")).unwrap_err();
        assert_eq!(error, InvalidSpec::SameGateway(0, 1));
    }

    #[test]
    fn entries_that_differ_in_anything_have_different_keys() {
        let entries = [
            "{nodeSelector: {}}",
            "{nodeSelector: {}, interface: eth1}",
            "{nodeSelector: {}, interface: eth2}",
            "{nodeSelector: {}, egressIP: 192.0.2.1}",
            "{nodeSelector: {}, egressIP: 192.0.2.2}",
            "{nodeSelector: {matchLabels: {a: b}}}",
            "{nodeSelector: {matchLabels: {ab: ''}}}",
            "{nodeSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}}",
            "{nodeSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}}",
        ];
        let keys = keys(&entries.join(", "));
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), entries.len());
    }

    #[test]
    fn what_is_wrong_names_the_entry() {
        for (gateways, says) in [
            (
                "egressGateways: [{nodeSelector: {}}, {nodeSelector: {}, egressIP: 127.0.0.1}]",
                "egressGateways[1].egressIP: 127.0.0.1 is a loopback address",
            ),
            (
                "egressGateways: [{nodeSelector: {}, interface: eth1, egressIP: 192.0.2.1}]",
                "egressGateways[0]: set at most one of",
            ),
            (
                "egressGateways: [{nodeSelector: {}}], egressSourceIP: 192.0.2.1",
                "set exactly one of",
            ),
            (
                "egressSourceIP: 192.0.2.1, zoneAffinity: Prefer",
                "zoneAffinity chooses among egressGateways",
            ),
            (
                "egressGateways: [{nodeSelector: {matchLabels: {a: b}, matchExpressions: [{key: a, operator: DoesNotExist}]}}]",
                "egressGateways[0].nodeSelector can match nothing",
            ),
        ] {
            let error = entries(gateways).unwrap_err().to_string();
            assert!(error.contains(says), "{gateways}: {error}");
        }
    }
}
