//! How a policy's gateways are found: the part of a spec that names them, parsed.

use std::fmt;
use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_crds::policy::{EgressGateway, ZoneAffinity};
use egressnat_crds::selector::{LabelSelector, Operator};

use crate::address::never_captured;
use crate::hash::{fnv1a, mix};
use crate::valid::{InvalidSpec, check_selector};

/// A gateway that a policy asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayEntry {
    /// By what an entry of `egressGateways`, or a pair of `egressSourceIPs`, is known again. `None` for the
    /// gateway of any other policy, of which there is only one.
    pub key: Option<EntryKey>,
    /// How it is found.
    pub choice: GatewayChoice,
}

/// What an entry of `egressGateways`, or a pair of `egressSourceIPs`, says, as a number: the same wherever it
/// stands in the list, and whichever node it finds. It must never change for one that does not: all its pods
/// would move. A single pair has a key too: it keeps its share of the pods when another one comes.
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

/// How many addresses of a family `egressSourceIPs` may have.
const MOST_PAIRS: usize = 16;

/// Parses the fields that name a policy's gateways: one, or those of `egressGateways` or `egressSourceIPs`, in
/// their order.
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
        (Some(one), [], None, []) => GatewayChoice::HolderOf(vec![parse_address("egressSourceIP", one)?]),
        (None, addresses @ [_, ..], None, []) => return parse_pairs("egressSourceIPs", addresses),
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
    /// Of a choice by address, IPv4 first.
    fn of_addresses(addresses: &[IpAddr]) -> Self {
        Self::of_words(words_of(addresses))
    }

    /// Of a choice by label. What makes no difference to the choice makes none to its key.
    fn of_labelled(selector: &LabelSelector, addresses: &EgressAddresses) -> Self {
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
            EgressAddresses::Given(addresses) => words.extend(words_of(addresses)),
            EgressAddresses::OfInterface(name) => words.extend(["interface".into(), name.clone()]),
            EgressAddresses::OfDefaultRoute => words.push("default route".into()),
        }
        Self::of_words(words)
    }

    fn of_words(words: Vec<String>) -> Self {
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

fn words_of(addresses: &[IpAddr]) -> Vec<String> {
    let texts = addresses.iter().map(ToString::to_string);
    std::iter::once("addresses".into()).chain(texts).collect()
}

fn operator_name(operator: Operator) -> &'static str {
    match operator {
        Operator::In => "In",
        Operator::NotIn => "NotIn",
        Operator::Exists => "Exists",
        Operator::DoesNotExist => "DoesNotExist",
    }
}

/// The first IPv4 address with the first IPv6 address, and so on; or each alone, where all are of one family.
fn parse_pairs(field: &'static str, texts: &[String]) -> Result<Vec<GatewayEntry>, InvalidSpec> {
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for text in texts {
        let value = parse_address(field, text)?;
        if addresses.contains(&value) {
            return Err(InvalidSpec::SameAddress { field, value });
        }
        addresses.push(value);
    }
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|a| a.is_ipv4());
    let pairs: Vec<Vec<IpAddr>> = match (v4.len(), v6.len()) {
        (v4, v6) if v4.max(v6) > MOST_PAIRS => {
            return Err(InvalidSpec::TooManyAddresses {
                field,
                most: MOST_PAIRS,
            });
        }
        (_, 0) | (0, _) => addresses.into_iter().map(|a| vec![a]).collect(),
        (fours, sixes) if fours == sixes => v4
            .into_iter()
            .zip(v6)
            .map(|(four, six)| vec![four, six])
            .collect(),
        (v4, v6) => return Err(InvalidSpec::Unpaired { field, v4, v6 }),
    };
    let entry = |pair: Vec<IpAddr>| GatewayEntry {
        key: Some(EntryKey::of_addresses(&pair)),
        choice: GatewayChoice::HolderOf(pair),
    };
    Ok(pairs.into_iter().map(entry).collect())
}

fn parse_several(gateways: &[EgressGateway]) -> Result<Vec<GatewayEntry>, InvalidSpec> {
    let mut entries: Vec<GatewayEntry> = Vec::with_capacity(gateways.len());
    for (i, gateway) in gateways.iter().enumerate() {
        let choice = labelled(&format!("egressGateways[{i}]"), gateway)?;
        let key = match &choice {
            GatewayChoice::Labelled(selector, addresses) => Some(EntryKey::of_labelled(selector, addresses)),
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
        addresses.push(parse_address(&field, text)?);
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

fn parse_address(field: &str, text: &str) -> Result<IpAddr, InvalidSpec> {
    let Ok(value) = text.parse() else {
        return Err(InvalidSpec::Address {
            field: field.to_owned(),
            value: text.to_owned(),
        });
    };
    match unusable(value) {
        None => Ok(value),
        Some(kind) => Err(InvalidSpec::NoSource {
            field: field.to_owned(),
            value,
            kind,
        }),
    }
}

/// Why packets to the outside cannot have this source address.
fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Some("an IPv4 address written as IPv6"),
        _ => never_captured(address),
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

    /// The choices of a spec, each with its key.
    fn pairs(addresses: &str) -> Vec<(Vec<String>, EntryKey)> {
        let entries = entries(&format!("egressSourceIPs: [{addresses}]")).unwrap();
        let pair = |entry: GatewayEntry| {
            let addresses = entry.choice.addresses().unwrap();
            (
                addresses.iter().map(ToString::to_string).collect(),
                entry.key.unwrap(),
            )
        };
        entries.into_iter().map(pair).collect()
    }

    #[test]
    fn the_first_address_of_a_family_goes_with_the_first_of_the_other() {
        let addresses =
            |texts: &str| -> Vec<Vec<String>> { pairs(texts).into_iter().map(|(a, _)| a).collect() };
        assert_eq!(addresses("192.0.2.2, 192.0.2.1"), [["192.0.2.2"], ["192.0.2.1"]]);
        assert_eq!(addresses("'2001:db8::1'"), [["2001:db8::1"]]);
        assert_eq!(
            addresses("'2001:db8::1', 192.0.2.2, 192.0.2.1, '2001:db8::2'"),
            [["192.0.2.2", "2001:db8::1"], ["192.0.2.1", "2001:db8::2"]]
        );
    }

    #[test]
    fn a_pair_has_the_same_key_wherever_it_stands_and_alone() {
        let two = pairs("192.0.2.1, '2001:db8::1', 192.0.2.2, '2001:db8::2'");
        let mut turned = pairs("'2001:db8::2', '2001:db8::1', 192.0.2.2, 192.0.2.1");
        turned.reverse();
        assert_eq!(two, turned);
        assert_eq!(pairs("192.0.2.2, '2001:0db8::2'"), two[1..]);
        let others = [
            pairs("192.0.2.1"),
            pairs("'2001:db8::1'"),
            pairs("192.0.2.1, '2001:db8::2'"),
        ];
        assert!(others.iter().all(|other| other[0].1 != two[0].1));
        // Written down, since pods of running clusters move when it changes.
        assert_eq!(two[0].1.to_string(), "71c3cfc707b37d4a");
    }

    #[test]
    fn what_is_wrong_names_the_entry() {
        let seventeen: Vec<String> = (1..=17).map(|n| format!("192.0.2.{n}")).collect();
        let seventeen = format!("egressSourceIPs: [{}]", seventeen.join(", "));
        for (gateways, says) in [
            (
                "egressSourceIPs: ['2001:db8::1', '2001:0db8::1']",
                "egressSourceIPs: 2001:db8::1 is there twice: remove one",
            ),
            (
                "egressSourceIPs: [192.0.2.1, '2001:db8::1', 192.0.2.2]",
                "egressSourceIPs: 2 of IPv4 and 1 of IPv6: write as many of each",
            ),
            (
                "egressSourceIPs: [192.0.2.1, 169.254.0.1]",
                "egressSourceIPs: 169.254.0.1 is a link-local address",
            ),
            (
                &seventeen,
                "egressSourceIPs: write at most 16 addresses of each family",
            ),
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
