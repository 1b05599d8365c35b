//! Which policies have no source port left, and for which destinations. Pure.
//!
//! Ports are taken per destination: one port of an address serves any number of destinations at a time, but only one
//! connection to each. Where all are taken, the kernel gives one that is in use, and drops the packet when it enters
//! the connection into conntrack, after the last rule. It only counts that (`insert_failed`). So the count says that
//! something was dropped, and a census of the connections for whom.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::ExhaustedPorts;
use egressnat_crds::ports::PortRange;

/// How long a policy counts as exhausted after the last drop: longer than clients wait between tries.
const MEMORY: Duration = Duration::from_secs(60);

/// Of large ranges the kernel tries some 240 ports at random, and so can miss free ones. With one in so many free,
/// it misses them in one of 200,000 connections.
const FREE_OF_CROWDED: u32 = 20;

/// Ports that policies give, each with its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(String, IpAddr, PortRange)>);

impl Ranges {
    /// Those of the policies that this node is the gateway of.
    pub fn of(plan: &EgressPlanSpec) -> Self {
        let roles = plan
            .policies
            .iter()
            .filter_map(|p| Some((p, p.gateway.as_ref()?)));
        let ranges = roles.flat_map(|(policy, role)| {
            let with_ports = role.source_ports.into_iter();
            with_ports.flat_map(move |ports| {
                role.addresses
                    .iter()
                    .map(move |a| (policy.name.clone(), *a, ports))
            })
        });
        Self(ranges.collect())
    }

    /// Whether no policy gives some ports alone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A connection as the outside knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outside {
    /// Number of the IP protocol.
    pub protocol: u8,
    /// The node's side: address, and port or echo identifier.
    pub source: (IpAddr, u16),
    /// The other side: address, and port where the protocol has one.
    pub destination: (IpAddr, Option<u16>),
}

/// A count of the taken ports: range, protocol, destination.
#[derive(Debug)]
pub struct Census<'a> {
    ranges: &'a Ranges,
    taken: BTreeMap<(usize, u8, IpAddr, Option<u16>), u32>,
}

impl<'a> Census<'a> {
    /// With nothing counted.
    pub fn new(ranges: &'a Ranges) -> Self {
        Self {
            ranges,
            taken: BTreeMap::new(),
        }
    }

    /// Counts a connection, whosever it is: a port is taken by the node's own connections as well.
    pub fn count(
        &mut self,
        Outside {
            protocol,
            source: (address, port),
            destination,
        }: Outside,
    ) {
        for (i, (_, of, ports)) in self.ranges.0.iter().enumerate() {
            if *of == address && ports.contains(port) {
                *self
                    .taken
                    .entry((i, protocol, destination.0, destination.1))
                    .or_default() += 1;
            }
        }
    }

    /// Where none, or next to none, is left.
    pub fn crowded(&self) -> impl Iterator<Item = ExhaustedPorts> {
        self.taken
            .iter()
            .filter_map(|((range, protocol, destination, port), taken)| {
                let (policy, address, ports) = self.ranges.0.get(*range)?;
                let free = ports.size().saturating_sub(*taken);
                (free * FREE_OF_CROWDED <= ports.size()).then(|| ExhaustedPorts {
                    policy: policy.clone(),
                    address: *address,
                    source_ports: *ports,
                    protocol: *protocol,
                    destination: *destination,
                    port: *port,
                })
            })
    }
}

/// What was dropped for want of a port, and who lacks one.
#[derive(Debug, Default)]
pub struct Exhaustion {
    /// Conntrack's count, as of the last look.
    refused: u64,
    dropped: u64,
    lacking: BTreeMap<ExhaustedPorts, Instant>,
}

impl Exhaustion {
    /// From now on: conntrack has refused so many.
    pub fn start(&mut self, refused: u64) {
        self.refused = refused;
    }

    /// Whether conntrack has refused connections since it was last looked at.
    pub fn has_grown(&self, refused: u64) -> bool {
        refused > self.refused
    }

    /// Takes note of a census made after conntrack had refused so many. Where nothing is crowded, it was for another
    /// reason.
    pub fn note(&mut self, refused: u64, census: &Census<'_>, now: Instant) {
        let before = std::mem::replace(&mut self.refused, refused);
        let mut crowded = census.crowded().take(ExhaustedPorts::MAX).peekable();
        if crowded.peek().is_some() {
            self.dropped += refused.saturating_sub(before);
        }
        self.lacking.extend(crowded.map(|of| (of, now)));
    }

    /// Forgets what was long ago, and of policies that are no more what they were.
    pub fn forget(&mut self, ranges: &Ranges, now: Instant) {
        let current = |e: &ExhaustedPorts| {
            let is = |(policy, address, ports): &(String, IpAddr, PortRange)| {
                (policy, address, ports) == (&e.policy, &e.address, &e.source_ports)
            };
            ranges.0.iter().any(is)
        };
        self.lacking
            .retain(|of, at| now.saturating_duration_since(*at) < MEMORY && current(of));
    }

    /// How many packets were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Who lacks a port, at most [`ExhaustedPorts::MAX`].
    pub fn lacking(&self) -> Vec<ExhaustedPorts> {
        self.lacking.keys().take(ExhaustedPorts::MAX).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::{GatewayRole, PlanPolicy};

    use super::*;

    const TCP: u8 = 6;

    fn ranges(ports: &str) -> Ranges {
        let role = |ports: Option<&str>| GatewayRole {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            source_ports: ports.map(|p| p.parse().unwrap()),
        };
        let policy = |id, name: &str, gateway| PlanPolicy {
            id,
            name: name.into(),
            source: None,
            gateway: Some(gateway),
        };
        Ranges::of(&EgressPlanSpec {
            policies: vec![policy(7, "some", role(Some(ports))), policy(8, "any", role(None))],
            ..EgressPlanSpec::default()
        })
    }

    fn census<'a>(ranges: &'a Ranges, connections: &[(u8, &str, u16, &str)]) -> Census<'a> {
        let mut census = Census::new(ranges);
        for (protocol, address, port, destination) in connections {
            census.count(Outside {
                protocol: *protocol,
                source: (address.parse().unwrap(), *port),
                destination: (destination.parse().unwrap(), Some(443)),
            });
        }
        census
    }

    #[test]
    fn ports_are_taken_per_address_protocol_and_destination() {
        let ranges = ranges("1000-1002");
        let full = [1000, 1001, 1002].map(|port| (TCP, "192.0.2.1", port, "203.0.113.1"));
        let mut other = full;
        for (change, crowded) in [
            ((TCP, "192.0.2.1", 1001, "203.0.113.1"), 1),
            ((17, "192.0.2.1", 1001, "203.0.113.1"), 0),
            ((TCP, "192.0.2.2", 1001, "203.0.113.1"), 0),
            ((TCP, "192.0.2.1", 999, "203.0.113.1"), 0),
            ((TCP, "192.0.2.1", 1001, "203.0.113.2"), 0),
        ] {
            other[1] = change;
            assert_eq!(census(&ranges, &other).crowded().count(), crowded, "{change:?}");
        }
        let found: Vec<_> = census(&ranges, &full).crowded().collect();
        assert_eq!((found[0].policy.as_str(), found[0].port), ("some", Some(443)));
    }

    #[test]
    fn of_a_large_range_some_may_be_free_that_the_kernel_does_not_find() {
        let ranges = ranges("1001-2000");
        let taken = |n: u16| {
            let ports: Vec<_> = (0..n)
                .map(|i| (TCP, "192.0.2.1", 1001 + i, "203.0.113.1"))
                .collect();
            census(&ranges, &ports).crowded().count()
        };
        assert_eq!((taken(949), taken(950), taken(1000)), (0, 1, 1));
    }

    #[test]
    fn what_conntrack_refuses_counts_where_a_range_is_crowded() {
        let ranges = ranges("1000");
        let full = census(&ranges, &[(TCP, "192.0.2.1", 1000, "203.0.113.1")]);
        let empty = census(&ranges, &[]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut exhaustion = Exhaustion::default();
        exhaustion.start(100);
        assert!(!exhaustion.has_grown(100));
        assert!(exhaustion.has_grown(103));
        exhaustion.note(103, &full, at(0));
        assert!(!exhaustion.has_grown(103));
        exhaustion.note(110, &empty, at(10));
        assert_eq!(exhaustion.dropped(), 3);
        exhaustion.forget(&ranges, at(59));
        assert_eq!(exhaustion.lacking().len(), 1);
        exhaustion.forget(&ranges, at(60));
        assert_eq!(exhaustion.lacking(), []);
        exhaustion.note(111, &full, at(70));
        exhaustion.forget(&super::tests::ranges("1000-2000"), at(70));
        assert_eq!(exhaustion.lacking(), [], "it has been given more");
        assert_eq!(exhaustion.dropped(), 4);
    }
}
