//! Properties: `diff(x, x)` is empty, and applying `diff(a, b)` to `a` gives `b`, by a table in memory that
//! refuses what the kernel refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::nft::{NftStep, ObservedChain, ObservedTable};
use super::{NetObject, NetStep};
use crate::model::{
    BaseChain, Chain, ChainKind, Data, DataType, ElementKey, Fdb, Hook, IpRule, Key, KeyType, MacAddr,
    Neighbour, Net, Route, RouteKind, Rule, Ruleset, Set, Statement, Verdict,
};

/// One transaction on a table in memory. Like the kernel's: all or nothing, in order, references checked.
fn transact(table: Option<&ObservedTable>, steps: &[NftStep]) -> Result<Option<ObservedTable>, String> {
    let mut table = table.cloned();
    for step in steps {
        let text = step.to_string();
        match step {
            NftStep::AddTable => {
                table.get_or_insert_default();
            }
            NftStep::DeleteTable => table = None,
            step => {
                let table = table.as_mut().ok_or_else(|| format!("{text}: no table"))?;
                transact_one(table, step).map_err(|why| format!("{text}: {why}"))?;
            }
        }
    }
    Ok(table)
}

fn transact_one(table: &mut ObservedTable, step: &NftStep) -> Result<(), &'static str> {
    let must = |ok: bool, why: &'static str| if ok { Ok(()) } else { Err(why) };
    match step {
        NftStep::AddTable | NftStep::DeleteTable => {}
        NftStep::AddCounter(name) => must(table.counters.insert(name.clone(), (0, 0)).is_none(), "exists")?,
        NftStep::DeleteCounter(name) => must(table.counters.remove(name).is_some(), "no such counter")?,
        NftStep::AddSet(name, t) => {
            let set = Set::new(t.key, t.data, t.interval);
            must(table.sets.insert(name.clone(), set).is_none(), "exists")?;
        }
        NftStep::DeleteSet(name) => must(table.sets.remove(name).is_some(), "no such set")?,
        NftStep::AddElements(name, t, elements) => {
            for (_, data) in elements {
                if let Data::Verdict(Verdict::Goto(chain)) = data {
                    must(table.chains.contains_key(chain), "no such chain")?;
                }
            }
            let set = table.sets.get_mut(name).ok_or("no such set")?;
            must(
                (set.key, set.data, set.interval) == (t.key, t.data, t.interval),
                "other type",
            )?;
            for (key, data) in elements {
                must(
                    set.elements.insert(*key, data.clone()).is_none(),
                    "element exists",
                )?;
            }
        }
        NftStep::DeleteElements(name, _, elements) => {
            let set = table.sets.get_mut(name).ok_or("no such set")?;
            for (key, _) in elements {
                must(set.elements.remove(key).is_some(), "no such element")?;
            }
        }
        NftStep::AddChain(name, base) => {
            let chain = ObservedChain {
                base: *base,
                tags: vec![],
            };
            must(table.chains.insert(name.clone(), chain).is_none(), "exists")?;
        }
        NftStep::FlushChain(name) => table.chains.get_mut(name).ok_or("no such chain")?.tags.clear(),
        NftStep::DeleteChain(name) => {
            let chain = table.chains.remove(name).ok_or("no such chain")?;
            must(chain.tags.is_empty(), "has rules")?;
            let goto = Data::Verdict(Verdict::Goto(name.clone()));
            must(
                !table
                    .sets
                    .values()
                    .any(|s| s.elements.values().any(|d| *d == goto)),
                "an element leads there",
            )?;
        }
        NftStep::AddRule(chain, rule) => {
            for statement in &rule.0 {
                if let Statement::Verdict(Verdict::Goto(to)) = statement {
                    must(table.chains.contains_key(to), "no such chain")?;
                }
                if let Statement::Vmap(_, set) = statement {
                    must(table.sets.contains_key(set), "no such map")?;
                }
            }
            table
                .chains
                .get_mut(chain)
                .ok_or("no such chain")?
                .tags
                .push(rule.tag());
        }
    }
    Ok(())
}

/// Rulesets that share names, so that pairs of them overlap.
fn ruleset() -> impl Strategy<Value = Ruleset> {
    let chains = proptest::collection::btree_set(0..6u8, 1..6);
    let elements = proptest::collection::btree_map(0..12u32, 0..6u8, 0..8);
    let addresses = proptest::collection::btree_map(0..12u8, 0..3u32, 0..8);
    let rules = proptest::collection::vec((0..6u8, 0..3u32), 0..6);
    (chains, elements, addresses, rules, any::<bool>(), any::<bool>()).prop_map(
        |(chains, elements, addresses, rules, interval, counter)| {
            let mut ruleset = Ruleset::default();
            let name = |n: u8| format!("c{n}");
            for n in &chains {
                ruleset.chains.insert(name(*n), Chain::default());
            }
            ruleset.chains.insert("base".into(), base(interval));
            let mut map = Set::new(KeyType::Mark, DataType::Verdict, false);
            for (key, to) in elements.iter().filter(|(_, to)| chains.contains(to)) {
                map.elements
                    .insert(ElementKey::Mark(*key), Data::Verdict(Verdict::Goto(name(*to))));
            }
            ruleset.sets.insert("map".into(), map);
            let mut pods = Set::new(KeyType::Ipv4Addr, DataType::Mark, false);
            for (host, mark) in &addresses {
                pods.elements.insert(
                    ElementKey::Addr(Ipv4Addr::new(10, 0, 0, *host).into()),
                    Data::Mark(*mark),
                );
            }
            ruleset.sets.insert("pods".into(), pods);
            for (to, mark) in rules.iter().filter(|(to, _)| chains.contains(to)) {
                let rule = Rule(vec![
                    Statement::SetMetaMark { keep: 0, bits: *mark },
                    Statement::Vmap(Key::MetaMark(1), "map".into()),
                    Statement::Verdict(Verdict::Goto(name(*to))),
                ]);
                ruleset.chains.entry("base".into()).or_default().rules.push(rule);
            }
            if counter {
                ruleset.counters.insert("k".into());
            }
            ruleset
        },
    )
}

fn base(other_hook: bool) -> Chain {
    let hook = if other_hook {
        Hook::Forward
    } else {
        Hook::Prerouting
    };
    Chain {
        base: Some(BaseChain {
            kind: ChainKind::Filter,
            hook,
            priority: 0,
        }),
        rules: vec![],
    }
}

fn net() -> impl Strategy<Value = Net> {
    let small = || proptest::collection::btree_map(0..6u8, 0..3u8, 0..6);
    (small(), small(), small(), small()).prop_map(|(fdb, neighbours, routes, rules)| Net {
        fdb: fdb
            .iter()
            .map(|(k, v)| Fdb {
                mac: MacAddr([2, 0, 0, 0, 0, *k]),
                remote: address(*v),
            })
            .collect(),
        neighbours: neighbours
            .iter()
            .map(|(k, v)| Neighbour {
                address: address(*k),
                mac: MacAddr([2, 0, 0, 0, 0, *v]),
            })
            .collect(),
        routes: routes
            .iter()
            .map(|(k, v)| Route {
                table: 7701,
                to: address(*k).into(),
                kind: match *v {
                    0 => RouteKind::Throw,
                    1 => RouteKind::Unreachable,
                    _ => RouteKind::Tunnel { via: address(*v) },
                },
            })
            .collect(),
        rules: rules
            .iter()
            .map(|(k, v)| IpRule {
                family: address(*k).into(),
                priority: 770,
                mark: u32::from(*k),
                mask: 0xff,
                table: 7701 + u32::from(*v),
            })
            .collect(),
        ..Net::default()
    })
}

fn address(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

/// Puts and removals by key, as the kernel does them.
fn put(net: &Net, steps: &[NetStep]) -> Net {
    let mut net = net.clone();
    for step in steps {
        match step {
            NetStep::Put(NetObject::Fdb(e)) => {
                net.fdb.retain(|o| o.mac != e.mac);
                net.fdb.insert(e.clone());
            }
            NetStep::Put(NetObject::Neighbour(e)) => {
                net.neighbours.retain(|o| o.address != e.address);
                net.neighbours.insert(e.clone());
            }
            NetStep::Put(NetObject::Route(e)) => {
                net.routes.retain(|o| (o.table, o.to) != (e.table, e.to));
                net.routes.insert(e.clone());
            }
            NetStep::Put(NetObject::IpRule(e)) => {
                net.rules.insert(e.clone());
            }
            NetStep::Remove(NetObject::Fdb(e)) => net.fdb.retain(|o| o.mac != e.mac),
            NetStep::Remove(NetObject::Neighbour(e)) => net.neighbours.retain(|o| o.address != e.address),
            NetStep::Remove(NetObject::Route(e)) => net.routes.retain(|o| (o.table, o.to) != (e.table, e.to)),
            NetStep::Remove(NetObject::IpRule(e)) => net.rules.retain(|o| o != e),
            other => panic!("{other} is not generated"),
        }
    }
    net
}

/// Everything but counter values, which grow by themselves.
fn shape(
    table: &ObservedTable,
) -> (
    BTreeSet<String>,
    &BTreeMap<String, Set>,
    &BTreeMap<String, ObservedChain>,
) {
    (
        table.counters.keys().cloned().collect(),
        &table.sets,
        &table.chains,
    )
}

proptest! {
    #[test]
    fn nothing_is_to_do_where_all_is_there(ruleset in ruleset(), net in net()) {
        prop_assert_eq!(super::nft::diff(Some(&ruleset), Some(&ObservedTable::from(&ruleset))), vec![]);
        prop_assert!(super::net::diff(&net, &net).is_empty());
    }

    #[test]
    fn the_steps_lead_from_any_table_to_any_other(
        from in proptest::option::of(ruleset()),
        to in proptest::option::of(ruleset()),
    ) {
        let there = from.as_ref().map(ObservedTable::from);
        let steps = super::nft::diff(to.as_ref(), there.as_ref());
        let after = transact(there.as_ref(), &steps);
        prop_assert!(after.is_ok(), "{:?}", after);
        let wanted = to.as_ref().map(ObservedTable::from);
        let after = after.unwrap();
        prop_assert_eq!(after.as_ref().map(shape), wanted.as_ref().map(shape));
    }

    #[test]
    fn the_steps_lead_from_any_net_to_any_other(from in net(), to in net()) {
        let changes = super::net::diff(&to, &from);
        let between = put(&from, &changes.before);
        // What the new state needs is there before anything of the old goes.
        prop_assert!(between.routes.is_superset(&to.routes) && between.rules.is_superset(&to.rules));
        prop_assert_eq!(put(&between, &changes.after), to);
    }
}
