//! What policies translate to, and which of their connections fit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_crds::ports::PortRange;

use super::flows::id_of;
use super::nft::ObservedTable;
use crate::model::{Data, Rule, Ruleset, Statement};
use crate::owned::{PORTS, ports_chain};

/// The maps from a policy's id to the address that it gives with any port.
const ADDRESSES: [&str; 2] = ["snat4", "snat6"];

/// What a policy's packets leave with at its gateway: addresses, each with some ports or any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation(BTreeMap<IpAddr, Option<PortRange>>);

impl Translation {
    /// Whether a connection may have this source. One without ports has none that could be wrong.
    pub fn allows(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.0.get(&address).is_some_and(|ports| match (ports, port) {
            (Some(ports), Some(port)) => ports.contains(port),
            _ => true,
        })
    }
}

/// The translation of each policy that this node is the gateway of.
pub fn translations(ruleset: &Ruleset) -> BTreeMap<u16, Translation> {
    let mut translations: BTreeMap<u16, Translation> = BTreeMap::new();
    for set in ADDRESSES.iter().filter_map(|name| ruleset.sets.get(*name)) {
        for (key, data) in &set.elements {
            if let (Some(id), Data::Addr(address)) = (id_of(key), data) {
                translations.entry(id).or_default().0.insert(*address, None);
            }
        }
    }
    let with_ports = ruleset
        .sets
        .get(PORTS)
        .into_iter()
        .flat_map(|set| set.elements.keys());
    for id in with_ports.filter_map(id_of) {
        let chain = ruleset.chains.get(&ports_chain(id));
        for statement in chain.iter().flat_map(|c| &c.rules).flat_map(|rule| &rule.0) {
            if let Statement::SnatPorts(address, ports) = statement {
                translations
                    .entry(id)
                    .or_default()
                    .0
                    .insert(*address, Some(*ports));
            }
        }
    }
    translations
}

/// The policies whose translation changes: those of which no connection fits the new one, and those of which some
/// may, with the new one.
pub(super) fn changed(new: &Ruleset, old: &ObservedTable) -> (BTreeSet<u16>, BTreeMap<u16, Translation>) {
    let mut now = translations(new);
    let (mut gone, mut differs) = (BTreeSet::new(), BTreeMap::new());
    for (id, were) in gave_any_port(old) {
        let is = now.get(&id).cloned().unwrap_or_default();
        if were.iter().all(|address| is.0.get(address) == Some(&None)) {
            continue;
        }
        match were.iter().any(|address| is.0.contains_key(address)) {
            true => drop(differs.insert(id, is)),
            false => drop(gone.insert(id)),
        }
    }
    for id in changed_ports(new, old) {
        match now.remove(&id) {
            Some(is) => drop(differs.insert(id, is)),
            None => drop(gone.insert(id)),
        }
    }
    (gone, differs)
}

/// The addresses that policies gave with any port.
fn gave_any_port(old: &ObservedTable) -> BTreeMap<u16, Vec<IpAddr>> {
    let mut addresses: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for set in ADDRESSES.iter().filter_map(|name| old.sets.get(*name)) {
        for (key, data) in &set.elements {
            if let (Some(id), Data::Addr(address)) = (id_of(key), data) {
                addresses.entry(id).or_default().push(*address);
            }
        }
    }
    addresses
}

/// Policies that gave some ports alone, and now give others, or with other addresses.
fn changed_ports(new: &Ruleset, old: &ObservedTable) -> impl Iterator<Item = u16> {
    let policies = old
        .sets
        .get(PORTS)
        .into_iter()
        .flat_map(|set| set.elements.keys());
    policies.filter_map(id_of).filter(|id| {
        let name = ports_chain(*id);
        let was = old
            .chains
            .get(&name)
            .map(|c| c.tags.as_slice())
            .unwrap_or_default();
        let is = new
            .chains
            .get(&name)
            .map(|c| c.rules.as_slice())
            .unwrap_or_default();
        !is.iter().map(Rule::tag).eq(was.iter().cloned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Chain, DataType, ElementKey, KeyType, Set, Verdict};
    use crate::owned::ct_mark;

    const V4: &str = "192.0.2.1";
    const V6: &str = "2001:db8::1";

    /// Policy 7 at its gateway.
    fn table(addresses: &[&str], ports: Option<&str>) -> Ruleset {
        let mut table = Ruleset::default();
        let key = ElementKey::Mark(ct_mark(7));
        let addresses = addresses.iter().map(|a| a.parse::<IpAddr>().unwrap());
        match ports {
            None => {
                for address in addresses {
                    let mut set = Set::new(KeyType::Mark, DataType::Ipv4Addr, false);
                    set.elements.insert(key, Data::Addr(address));
                    let name = ADDRESSES[usize::from(address.is_ipv6())];
                    table.sets.insert(name.into(), set);
                }
            }
            Some(ports) => {
                let snat = |a| Rule(vec![Statement::SnatPorts(a, ports.parse().unwrap())]);
                let rules = addresses.map(snat).collect();
                table.chains.insert(ports_chain(7), Chain { base: None, rules });
                let mut set = Set::new(KeyType::Mark, DataType::Verdict, false);
                let chain = Data::Verdict(Verdict::Goto(ports_chain(7)));
                set.elements.insert(key, chain);
                table.sets.insert(PORTS.into(), set);
            }
        }
        table
    }

    /// Of one connection for each address and port, or none for each address: which live on.
    fn survivors(old: &Ruleset, new: &Ruleset) -> Vec<(&'static str, Option<u16>)> {
        let (gone, differs) = changed(new, &ObservedTable::from(old));
        let connections = [V4, V6]
            .into_iter()
            .flat_map(|a| [Some(1000), Some(2000), None].map(|p| (a, p)));
        let lives = |(address, port): &(&str, Option<u16>)| {
            let allows = |t: &Translation| t.allows(address.parse().unwrap(), *port);
            !gone.contains(&7) && differs.get(&7).is_none_or(allows)
        };
        connections.filter(lives).collect()
    }

    #[test]
    fn connections_that_fit_the_new_translation_live_on() {
        let both = &[V4, V6][..];
        let all = vec![
            (V4, Some(1000)),
            (V4, Some(2000)),
            (V4, None),
            (V6, Some(1000)),
            (V6, Some(2000)),
            (V6, None),
        ];
        let of_1000 = vec![(V4, Some(1000)), (V4, None), (V6, Some(1000)), (V6, None)];
        let cases = [
            (table(both, None), table(both, None), all.clone()),
            (table(both, Some("1000")), table(both, Some("1000")), all.clone()),
            // Wider, and any.
            (
                table(both, Some("1000")),
                table(both, Some("1000-2000")),
                all.clone(),
            ),
            (table(both, Some("1000")), table(both, None), all.clone()),
            // Narrower, from some and from any.
            (
                table(both, Some("1000-2000")),
                table(both, Some("1000")),
                of_1000.clone(),
            ),
            (table(both, None), table(both, Some("1000")), of_1000),
            // One of the addresses goes.
            (table(both, None), table(&[V4], None), all[..3].to_vec()),
            (table(both, None), table(&[V6], None), all[3..].to_vec()),
            (
                table(both, Some("1000-2000")),
                table(&[V6], Some("1000-2000")),
                all[3..].to_vec(),
            ),
            // Both go.
            (table(both, None), table(&["192.0.2.9"], None), vec![]),
            (
                table(both, Some("1000")),
                table(&["192.0.2.9"], Some("1000")),
                vec![],
            ),
            (table(both, None), Ruleset::default(), vec![]),
            (table(both, Some("1000")), Ruleset::default(), vec![]),
        ];
        for (i, (old, new, expected)) in cases.iter().enumerate() {
            assert_eq!(survivors(old, new), *expected, "case {i}");
        }
    }
}
