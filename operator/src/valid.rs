//! A policy's spec, parsed: after this there are no texts that might be addresses.
//!
//! Admission (CEL on the CRD) refuses most of what is refused here. What it cannot see, and what comes past
//! it, becomes [`InvalidSpec`], whose text is the message of condition `Accepted`: it says what to write.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::EgressNATPolicySpec;
use egressnat_crds::interval::Interval;
use egressnat_crds::plan::Family;
use egressnat_crds::policy::{NoGateway, OnChange, PodSelection, ZoneAffinity};
use egressnat_crds::ports::{PortRange, PortRangeError};
use egressnat_crds::selector::LabelSelector;
use ipnet::IpNet;

use crate::address::is_never_captured;
use crate::choice::{self, GatewayChoice, GatewayEntry};
use crate::contradiction::contradicted_label;
use crate::ranges;

/// A policy's spec without anything left to check.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidPolicy {
    /// The higher wins.
    pub priority: i32,
    /// The pods: those that match any entry.
    pub selections: Vec<PodSelection>,
    /// The destinations less the policy's own exclusions, as [`ranges::merge`] gives them.
    pub destinations: Vec<Interval>,
    /// The families of the destinations that the user wrote; `None` where all destinations are meant.
    pub named_families: Option<BTreeSet<Family>>,
    /// How its gateways are found: at least one.
    pub gateways: Vec<GatewayEntry>,
    /// Whether a pod uses gateways of its own zone.
    pub zone_affinity: ZoneAffinity,
    /// The source ports that the outside sees; `None` where any will do.
    pub source_ports: Option<PortRange>,
    /// What happens without one.
    pub no_gateway: NoGateway,
    /// What happens to connections that are older.
    pub on_change: OnChange,
}

/// What is wrong with a spec, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// Not of the CRD's schema: made before the schema, or for another one.
    #[error("the object cannot be read: {0}; correct it, or install the CRD of this version")]
    Unreadable(String),
    /// Not a CIDR.
    #[error("{field}: {value:?} is not a CIDR: write one such as 192.0.2.0/24 or 2001:db8::/32")]
    Cidr {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// A CIDR with host bits.
    #[error("{field}: {value} has host bits set: write {net}")]
    HostBits {
        /// The field.
        field: &'static str,
        /// What it says.
        value: IpNet,
        /// What it may have meant.
        net: IpNet,
    },
    /// Destinations that no policy captures.
    #[error(
        "{field}: packets to {value} are never captured, as all to loopback, link-local, multicast and broadcast addresses: leave it out"
    )]
    NeverCaptured {
        /// The field.
        field: &'static str,
        /// What it says.
        value: IpNet,
    },
    /// Not an address.
    #[error("{field}: {value:?} is not an IP address: write one such as 192.0.2.7 or 2001:db8::7")]
    Address {
        /// The field.
        field: String,
        /// What it says.
        value: String,
    },
    /// An address that packets to the outside cannot have.
    #[error("{field}: {value} is {kind}: write an address by which the outside can answer")]
    NoSource {
        /// The field.
        field: String,
        /// What it says.
        value: IpAddr,
        /// What kind of address that is.
        kind: &'static str,
    },
    /// Two addresses of one family.
    #[error("{field}: {0} and {1} are of the same family: write one IPv4 and one IPv6 address", .values[0], .values[1])]
    SameFamily {
        /// The field.
        field: String,
        /// The addresses.
        values: [IpAddr; 2],
    },
    /// The same address twice.
    #[error("{field}: {value} is there twice: remove one")]
    SameAddress {
        /// The field.
        field: &'static str,
        /// The address.
        value: IpAddr,
    },
    /// Addresses of both families that do not make pairs.
    #[error("{field}: {v4} of IPv4 and {v6} of IPv6: write as many of each, or addresses of one family")]
    Unpaired {
        /// The field.
        field: &'static str,
        /// How many of IPv4.
        v4: usize,
        /// How many of IPv6.
        v6: usize,
    },
    /// More addresses than there may be.
    #[error("{field}: write at most {most} addresses of each family")]
    TooManyAddresses {
        /// The field.
        field: &'static str,
        /// How many of each family there may be.
        most: usize,
    },
    /// None, or more than one, of the fields that name the gateways.
    #[error("set exactly one of egressSourceIP, egressSourceIPs, egressGateway and egressGateways")]
    GatewayFields,
    /// More than one of the fields that name the gateway's address.
    #[error("{0}: set at most one of interface, egressIP and egressIPs")]
    AddressFields(String),
    /// Two entries that say the same.
    #[error("egressGateways[{0}] and [{1}] say the same: remove one, or let each select other nodes")]
    SameGateway(usize, usize),
    /// A zone affinity and nothing to choose from.
    #[error(
        "zoneAffinity chooses among egressGateways: write the gateway as an entry of egressGateways, or leave zoneAffinity out"
    )]
    ZoneAffinity,
    /// Not a range of ports.
    #[error("sourcePorts: {0}")]
    SourcePorts(#[from] PortRangeError),
    /// No destination is of a family that an egress address has.
    #[error(
        "no destinationCIDR is of the family of the egress address: add one, or an address of the other family"
    )]
    Families,
    /// The exclusions leave nothing.
    #[error("excludedCIDRs leave nothing of destinationCIDRs: narrow them, or delete the policy")]
    NothingLeft,
    /// There are no selectors.
    #[error("selectors is empty: write at least one entry, such as podSelector: {{}} for every pod")]
    NoSelectors,
    /// A selector entry without a selector.
    #[error("selectors[{0}] has no selector: write podSelector: {{}} for every pod")]
    EmptyEntry(usize),
    /// A selector that no object can match.
    #[error("{field} can match nothing: its requirements on label {label:?} exclude one another")]
    Contradiction {
        /// The field.
        field: String,
        /// The label.
        label: String,
    },
}

impl ValidPolicy {
    /// Parses a spec.
    pub fn parse(spec: &EgressNATPolicySpec) -> Result<Self, InvalidSpec> {
        check_selectors(&spec.selectors)?;
        let included = parse_cidrs("destinationCIDRs", &spec.destination_cidrs)?;
        check_captured("destinationCIDRs", &spec.destination_cidrs)?;
        let excluded = parse_cidrs("excludedCIDRs", &spec.excluded_cidrs)?;
        let policy = Self {
            priority: spec.priority,
            selections: spec.selectors.clone(),
            named_families: named_families(&included),
            destinations: ranges::subtract(&or_everything(included), &excluded),
            gateways: choice::parse(spec)?,
            zone_affinity: spec.zone_affinity,
            source_ports: spec.source_ports.as_deref().map(str::parse).transpose()?,
            no_gateway: spec.no_gateway,
            on_change: spec.on_change,
        };
        if policy.destinations.is_empty() {
            return Err(InvalidSpec::NothingLeft);
        }
        policy.check_families()?;
        Ok(policy)
    }

    /// What stands in for an invalid spec that was in force before: the same pods, the destinations as far
    /// as they can be read and all of them otherwise, and no gateway.
    pub fn guard(spec: &EgressNATPolicySpec) -> Self {
        let included = parse_cidrs("destinationCIDRs", &spec.destination_cidrs).unwrap_or_default();
        let excluded = parse_cidrs("excludedCIDRs", &spec.excluded_cidrs).unwrap_or_default();
        Self {
            priority: spec.priority,
            selections: spec.selectors.clone(),
            named_families: named_families(&included),
            destinations: ranges::subtract(&or_everything(included), &excluded),
            gateways: vec![GatewayEntry::only(GatewayChoice::Nowhere)],
            zone_affinity: ZoneAffinity::None,
            source_ports: None,
            no_gateway: spec.no_gateway,
            on_change: spec.on_change,
        }
    }

    fn check_families(&self) -> Result<(), InvalidSpec> {
        let Some(named) = &self.named_families else {
            return Ok(());
        };
        let useful = |a: &IpAddr| named.contains(&Family::from(*a));
        let mut given = self.gateways.iter().filter_map(|g| g.choice.addresses());
        match given.all(|addresses| addresses.iter().any(useful)) {
            true => Ok(()),
            false => Err(InvalidSpec::Families),
        }
    }
}

fn check_selectors(entries: &[PodSelection]) -> Result<(), InvalidSpec> {
    if entries.is_empty() {
        return Err(InvalidSpec::NoSelectors);
    }
    for (i, entry) in entries.iter().enumerate() {
        let selectors = [
            ("podSelector", &entry.pod_selector),
            ("namespaceSelector", &entry.namespace_selector),
            ("nodeSelector", &entry.node_selector),
        ];
        if selectors.iter().all(|(_, s)| s.is_none()) {
            return Err(InvalidSpec::EmptyEntry(i));
        }
        for (name, selector) in selectors {
            check_selector(|| format!("selectors[{i}].{name}"), selector.as_ref())?;
        }
    }
    Ok(())
}

/// Refuses a selector that nothing can match; `field` is where it stands.
pub fn check_selector(
    field: impl FnOnce() -> String,
    selector: Option<&LabelSelector>,
) -> Result<(), InvalidSpec> {
    match selector.and_then(contradicted_label) {
        None => Ok(()),
        Some(label) => Err(InvalidSpec::Contradiction {
            field: field(),
            label,
        }),
    }
}

fn parse_cidrs(field: &'static str, texts: &[String]) -> Result<Vec<Interval>, InvalidSpec> {
    let mut intervals = Vec::with_capacity(texts.len());
    for text in texts {
        let value: IpNet = text.parse().map_err(|_| InvalidSpec::Cidr {
            field,
            value: text.clone(),
        })?;
        let net = value.trunc();
        if net != value {
            return Err(InvalidSpec::HostBits { field, value, net });
        }
        intervals.push(Interval::from(net));
    }
    Ok(ranges::merge(intervals))
}

/// Refuses destinations that say nothing, and may be thought to.
fn check_captured(field: &'static str, texts: &[String]) -> Result<(), InvalidSpec> {
    let mut nets = texts.iter().filter_map(|text| text.parse::<IpNet>().ok());
    match nets.find(is_never_captured) {
        None => Ok(()),
        Some(value) => Err(InvalidSpec::NeverCaptured { field, value }),
    }
}

fn named_families(included: &[Interval]) -> Option<BTreeSet<Family>> {
    (!included.is_empty()).then(|| included.iter().map(|i| Family::from(i.first())).collect())
}

fn or_everything(included: Vec<Interval>) -> Vec<Interval> {
    if included.is_empty() {
        ranges::everything()
    } else {
        included
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<ValidPolicy, InvalidSpec> {
        ValidPolicy::parse(&serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn a_spec_without_destinations_means_all_of_both_families() {
        let policy = parse("{selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1}").unwrap();
        assert_eq!(policy.destinations, ranges::everything());
        assert_eq!(policy.named_families, None);
        assert_eq!(policy.priority, 100);
    }

    #[test]
    fn exclusions_are_taken_out() {
        let policy = parse(
            "{selectors: [{podSelector: {}}], egressSourceIPs: ['2001:db8::1', 192.0.2.1],
              destinationCIDRs: [198.51.100.0/24, '2001:db8:1::/64'],
              excludedCIDRs: [198.51.100.128/25, '2001:db8:1::/65']}",
        )
        .unwrap();
        let texts: Vec<String> = policy.destinations.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "198.51.100.0-198.51.100.127",
                "2001:db8:1:0:8000::-2001:db8:1:0:ffff:ffff:ffff:ffff"
            ]
        );
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
        let choices: Vec<&GatewayChoice> = policy.gateways.iter().map(|g| &g.choice).collect();
        assert_eq!(choices, [&GatewayChoice::HolderOf(addresses.into())]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_what_to_write() {
        let all = "selectors: [{podSelector: {}}]";
        for (spec, says) in [
            (format!("{{{all}}}"), "set exactly one of"),
            (
                format!("{{{all}, egressSourceIP: a, egressGateway: {{nodeSelector: {{}}}}}}"),
                "set exactly one of",
            ),
            (format!("{{{all}, egressSourceIP: 192.0.2}}"), "is not an IP address"),
            (format!("{{{all}, egressSourceIP: 127.0.0.1}}"), "a loopback address"),
            (format!("{{{all}, egressSourceIP: 'fe80::1'}}"), "a link-local address"),
            (
                format!("{{{all}, egressSourceIP: '::ffff:192.0.2.1'}}"),
                "written as IPv6",
            ),
            (
                format!("{{{all}, egressGateway: {{nodeSelector: {{}}, egressIPs: [192.0.2.1, 192.0.2.2]}}}}"),
                "of the same family",
            ),
            (
                format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: [1.2.3.4]}}"),
                "is not a CIDR",
            ),
            (
                format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: [0.0.0.0/0, 169.254.169.254/32]}}"),
                "packets to 169.254.169.254/32 are never captured",
            ),
            (
                format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: [192.0.2.7/24]}}"),
                "write 192.0.2.0/24",
            ),
            (
                format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: ['2001:db8::/32']}}"),
                "of the family of the egress address",
            ),
            (
                format!("{{{all}, egressSourceIP: 192.0.2.1, destinationCIDRs: [10.0.0.0/9], excludedCIDRs: [10.0.0.0/8]}}"),
                "leave nothing",
            ),
            (
                format!("{{{all}, egressGateway: {{nodeSelector: {{}}, interface: eth1, egressIP: 192.0.2.1}}}}"),
                "set at most one of",
            ),
            (
                format!("{{{all}, egressSourceIP: 192.0.2.1, sourcePorts: 39999-20000}}"),
                "sourcePorts: 39999-20000 is not a range of ports: write the lower one first",
            ),
            ("{selectors: [], egressSourceIP: 192.0.2.1}".into(), "selectors is empty"),
            ("{selectors: [{}], egressSourceIP: 192.0.2.1}".into(), "selectors[0]"),
            (
                "{selectors: [{podSelector: {matchLabels: {a: b}, matchExpressions: [{key: a, operator: DoesNotExist}]}}], egressSourceIP: 192.0.2.1}".into(),
                "selectors[0].podSelector can match nothing",
            ),
        ] {
            let error = parse(&spec).expect_err(&spec).to_string();
            assert!(error.contains(says), "{spec}\n{error}");
        }
    }

    #[test]
    fn a_guard_reads_what_it_can_and_captures_the_rest() {
        let spec = "{selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1, destinationCIDRs: [CIDRS]}";
        let guard = |cidrs: &str| {
            ValidPolicy::guard(&serde_yaml_ng::from_str(&spec.replace("CIDRS", cidrs)).unwrap()).destinations
        };
        assert_eq!(guard("10.0.0.0/8").len(), 1);
        assert_eq!(guard("10.0.0.0/8, nonsense"), ranges::everything());
    }
}
