//! What is left of connections that a policy has given up with their pod.
//!
//! Conntrack has forgotten them, and their sockets have not. Of what they still send it calls some packets invalid, a
//! FIN among them, so that no NAT touches them and they would leave with the pod's address; data it takes for a new
//! connection's, which would leave with the node's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_crds::plan::Family;

use super::shared::FILTER;
use super::table::*;
use super::{Context, FAMILIES, digit};
use crate::facts::Released;
use crate::model::{ChainKind, Data, DataType, ElementKey, Hook, Key, Rule, Ruleset, Set, Statement};
use crate::owned::{self, Drop};

const CHAIN: &str = "released";

impl Context<'_> {
    /// Sets and chain, and the rules of `prerouting` that lead there: behind those of selected pods, which have rules
    /// of their own for such packets. What belongs to a connection that conntrack knows costs one look at its status, and
    /// does not meet `before` either.
    pub(super) fn released(&self, table: &mut Ruleset, before: Option<Rule>) -> Vec<Rule> {
        let nothing = Released::default();
        table
            .sets
            .extend(sets(self.facts.released.as_ref().unwrap_or(&nothing)));
        let counter = Statement::Counter(Drop::Released.counter().into());
        let rules = vec![
            rule([Statement::TcpMidstream, counter, Statement::RejectTcpReset]),
            drop_if([Statement::CtUnplaced], Drop::Released),
        ];
        table.chain(CHAIN, rules);
        let mut leading = vec![rule([Statement::CtConfirmed, accept()])];
        leading.extend(before);
        leading.extend(FAMILIES.map(|family| {
            rule([
                Statement::In(Key::Saddr(family), name(owned::RELEASED, family)),
                Statement::In(Key::Daddr(family), name(owned::RELEASED_TO, family)),
                goto(CHAIN),
            ])
        }));
        leading
    }

    /// What stays of the table where no policy concerns the node any more.
    pub(super) fn only_released(&self) -> Ruleset {
        let mut table = Ruleset {
            counters: BTreeSet::from([Drop::Released.counter().into()]),
            ..Ruleset::default()
        };
        let rules = self.released(&mut table, None);
        table.base("prerouting", ChainKind::Filter, Hook::Prerouting, FILTER, rules);
        table
    }
}

/// The sets, one of pods and one of servers for each family.
pub(crate) fn sets(released: &Released) -> [(String, Set); 4] {
    let Released { pods, servers } = released;
    let set = |of: &str, addresses: &BTreeSet<IpAddr>, family: Family| {
        let of_family = addresses.iter().filter(|a| family == (**a).into());
        let elements = of_family.map(|a| (ElementKey::Addr(*a), Data::None)).collect();
        let empty = Set::new(address_type(family).0, DataType::None, false);
        (name(of, family), Set { elements, ..empty })
    };
    let [v4, v6] = FAMILIES;
    [
        set(owned::RELEASED, pods, v4),
        set(owned::RELEASED, pods, v6),
        set(owned::RELEASED_TO, servers, v4),
        set(owned::RELEASED_TO, servers, v6),
    ]
}

fn name(set: &str, family: Family) -> String {
    format!("{set}{}", digit(family))
}
