//! Whatever the ruleset: what was applied is what is observed, and a diff leads from any to any other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use egressnat_agent::diff::nft::diff;
use egressnat_agent::diff::{NftStep, ObservedTable};
use egressnat_agent::kernel::nft::Nft;
use egressnat_agent::model::rule::Masked;
use egressnat_agent::model::{
    BaseChain, Chain, ChainKind, Cmp, Data, DataType, Direction, ElementKey, Hook, Key, KeyType, MacAddr,
    Rule, Ruleset, Set, Statement, Verdict,
};
use egressnat_crds::interval::{self, Interval};
use egressnat_crds::plan::Family;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::{in_namespace, nft as run_nft};

/// Chains that sets and rules may lead to. Their rules lead nowhere, so that there is no loop.
const LEAVES: [&str; 3] = ["leaf_a", "leaf_b", "leaf_c"];

/// Sets with their types: all that there are.
const SETS: [(&str, KeyType, DataType, bool); 10] = [
    ("cluster4", KeyType::Ipv4Addr, DataType::None, true),
    ("cluster6", KeyType::Ipv6Addr, DataType::None, true),
    ("dst4", KeyType::Ipv4Addr, DataType::Verdict, true),
    ("dst6", KeyType::Ipv6Addr, DataType::Mark, true),
    ("macs", KeyType::EtherAddr, DataType::Verdict, false),
    ("peers6", KeyType::Ipv6Addr, DataType::None, false),
    ("pods4", KeyType::Ipv4Addr, DataType::Mark, false),
    ("profiles", KeyType::Mark, DataType::Verdict, false),
    ("snat4", KeyType::Mark, DataType::Ipv4Addr, false),
    ("snat6", KeyType::Mark, DataType::Ipv6Addr, false),
];

fn address(v4: bool) -> BoxedStrategy<IpAddr> {
    match v4 {
        // Few enough for neighbours, and the ends of the family.
        true => prop_oneof![
            any::<u32>(),
            0..40u32,
            (u32::MAX - 40)..=u32::MAX,
            0x0a00_0000..0x0a00_0040u32
        ]
        .prop_map(|n| IpAddr::from(n.to_be_bytes()))
        .boxed(),
        false => prop_oneof![any::<u128>(), 0..40u128, (u128::MAX - 40)..=u128::MAX]
            .prop_map(|n| IpAddr::from(n.to_be_bytes()))
            .boxed(),
    }
}

/// Disjoint intervals: each from one cut to below the next, every other one left out or not.
fn intervals(v4: bool) -> impl Strategy<Value = BTreeSet<ElementKey>> {
    let ends = btree_set(address(v4), 0..30).prop_flat_map(|cuts| {
        let len = cuts.len();
        (Just(cuts), vec(any::<bool>(), len))
    });
    ends.prop_map(move |(cuts, wanted)| {
        let last = |next: Option<&IpAddr>| match next {
            Some(next) => interval::previous(*next),
            None => Some(if v4 {
                IpAddr::from([0xff; 4])
            } else {
                IpAddr::from([0xff; 16])
            }),
        };
        let cuts: Vec<_> = cuts.into_iter().collect();
        let interval = |i: usize| Interval::new(cuts[i], last(cuts.get(i + 1))?).ok();
        let keys = (0..cuts.len()).filter(|i| wanted[*i]).filter_map(interval);
        keys.map(ElementKey::Range).collect()
    })
}

fn keys(key: KeyType, interval: bool) -> BoxedStrategy<BTreeSet<ElementKey>> {
    match (key, interval) {
        (KeyType::Ipv4Addr | KeyType::Ipv6Addr, true) => intervals(key == KeyType::Ipv4Addr).boxed(),
        (KeyType::Ipv4Addr | KeyType::Ipv6Addr, false) => btree_set(
            address(key == KeyType::Ipv4Addr).prop_map(ElementKey::Addr),
            0..40,
        )
        .boxed(),
        (KeyType::EtherAddr, _) => {
            btree_set(any::<[u8; 6]>().prop_map(|o| ElementKey::Mac(MacAddr(o))), 0..20).boxed()
        }
        (KeyType::Link, _) => btree_set(any::<u32>().prop_map(ElementKey::Link), 0..40).boxed(),
        (KeyType::Mark, _) => btree_set(any::<u32>().prop_map(ElementKey::Mark), 0..40).boxed(),
    }
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let leaf = || select(&LEAVES[..]).prop_map(str::to_owned);
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        leaf().prop_map(Verdict::Jump),
        leaf().prop_map(Verdict::Goto),
    ]
}

fn data(ty: DataType) -> BoxedStrategy<Data> {
    match ty {
        DataType::None => Just(Data::None).boxed(),
        DataType::Mark => any::<u32>().prop_map(Data::Mark).boxed(),
        DataType::Verdict => verdict().prop_map(Data::Verdict).boxed(),
        DataType::Ipv4Addr => address(true).prop_map(Data::Addr).boxed(),
        DataType::Ipv6Addr => address(false).prop_map(Data::Addr).boxed(),
    }
}

fn set(
    (name, key, ty, interval): (&'static str, KeyType, DataType, bool),
) -> impl Strategy<Value = (String, Set)> {
    let elements = keys(key, interval).prop_flat_map(move |keys| {
        let values = vec(data(ty), keys.len());
        values.prop_map(move |values| keys.iter().copied().zip(values).collect::<BTreeMap<_, _>>())
    });
    elements.prop_map(move |elements| {
        let set = Set {
            elements,
            ..Set::new(key, ty, interval)
        };
        (name.to_owned(), set)
    })
}

/// Statements that are allowed anywhere and refer to nothing that may be missing.
fn statement() -> impl Strategy<Value = Statement> {
    let masked = (any::<u32>(), any::<u32>(), select(&[Cmp::Eq, Cmp::Ne][..]));
    let masked = masked.prop_map(|(mask, value, cmp)| Masked {
        mask,
        cmp,
        value: value & mask,
    });
    let marks = || (any::<u32>(), any::<u32>());
    prop_oneof![
        select(&[Direction::Original, Direction::Reply][..]).prop_map(Statement::CtDirection),
        Just(Statement::CtUnplaced),
        masked.clone().prop_map(Statement::CtMark),
        masked.prop_map(Statement::MetaMark),
        marks().prop_map(|(keep, bits)| Statement::SetCtMark { keep, bits }),
        marks().prop_map(|(keep, bits)| Statement::SetMetaMark { keep, bits }),
        (any::<u32>(), 0..32u32).prop_map(|(mask, shift)| Statement::MetaMarkFromCtMark { mask, shift }),
        any::<u16>().prop_map(Statement::UdpDport),
        (address(true), 0..=32u8).prop_map(|(a, n)| Statement::SaddrIn(network(a, n))),
        (address(false), 0..=128u8).prop_map(|(a, n)| Statement::SaddrIn(network(a, n))),
    ]
}

fn network(address: IpAddr, prefix: u8) -> ipnet::IpNet {
    ipnet::IpNet::new(address, prefix)
        .expect("a prefix of the family")
        .trunc()
}

fn rules(end: impl Strategy<Value = Statement>) -> impl Strategy<Value = Vec<Rule>> {
    let rule = (vec(statement(), 0..4), end).prop_map(|(mut statements, end)| {
        statements.push(end);
        Rule(statements)
    });
    vec(rule, 0..6)
}

fn leaf_end() -> impl Strategy<Value = Statement> {
    select(&[Verdict::Accept, Verdict::Drop, Verdict::Return][..]).prop_map(Statement::Verdict)
}

/// The end of a base chain's rule, of the sets that there are.
fn base_end(sets: &BTreeMap<String, Set>) -> BoxedStrategy<Statement> {
    let mut ends = vec![
        verdict().prop_map(Statement::Verdict).boxed(),
        Just(Statement::Counter("drop_stale".into())).boxed(),
    ];
    let mut of = |set: &str, statement: Statement| {
        if sets.contains_key(set) {
            ends.push(Just(statement).boxed());
        }
    };
    let (saddr, daddr) = (Key::Saddr(Family::IPv4), Key::Daddr(Family::IPv6));
    of("pods4", Statement::In(saddr, "pods4".into()));
    of("cluster6", Statement::In(daddr, "cluster6".into()));
    of("dst4", Statement::Vmap(saddr, "dst4".into()));
    of("macs", Statement::Vmap(Key::EtherSaddr, "macs".into()));
    if sets.contains_key("profiles") {
        of(
            "pods4",
            Statement::MapVmap(saddr, "pods4".into(), "profiles".into()),
        );
    }
    proptest::strategy::Union::new(ends).boxed()
}

fn base() -> impl Strategy<Value = BaseChain> {
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward];
    (select(hooks.to_vec()), -400..400i32).prop_map(|(hook, priority)| BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority,
    })
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    let sets = proptest::sample::subsequence(SETS.to_vec(), 0..=SETS.len())
        .prop_flat_map(|sets| sets.into_iter().map(set).collect::<Vec<_>>())
        .prop_map(|sets| sets.into_iter().collect::<BTreeMap<_, _>>());
    sets.prop_flat_map(|sets| {
        let base_name = "[a-z]{1,8}".prop_map(|name| format!("base_{name}"));
        let bases = btree_map(base_name, (base(), rules(base_end(&sets))), 0..4);
        (
            Just(sets),
            bases,
            vec(rules(leaf_end()), LEAVES.len()),
            any::<bool>(),
        )
    })
    .prop_map(|(sets, bases, leaves, more)| {
        let mut counters = BTreeSet::from(["drop_stale".to_owned()]);
        counters.extend(more.then(|| "drop_spoofed".to_owned()));
        let base = |(name, (base, rules))| {
            (
                name,
                Chain {
                    base: Some(base),
                    rules,
                },
            )
        };
        let leaf = |(name, rules): (&str, _)| (name.to_owned(), Chain { base: None, rules });
        let leaves = LEAVES.into_iter().zip(leaves).map(leaf);
        Ruleset {
            counters,
            sets,
            chains: bases.into_iter().map(base).chain(leaves).collect(),
        }
    })
}

#[test]
fn what_was_applied_is_observed_and_a_diff_leads_to_any_other() {
    in_namespace(|| {
        let nft = RefCell::new(Nft::open().unwrap());
        let config = Config {
            cases: 64,
            failure_persistence: None,
            ..Config::default()
        };
        let result = TestRunner::new(config).run(&(ruleset(), ruleset()), |(first, second)| {
            let mut nft = nft.borrow_mut();
            if nft.observe().unwrap().is_some() {
                nft.apply(&[NftStep::DeleteTable]).unwrap();
            }
            for next in [&first, &second] {
                let observed = nft.observe().unwrap();
                let steps = diff(Some(next), observed.as_ref());
                if let Err(error) = nft.apply(&steps) {
                    return Err(TestCaseError::fail(error.to_string()));
                }
                prop_assert_eq!(nft.observe().unwrap(), Some(ObservedTable::from(next)));
                // `nft` aborts on some of what the kernel takes.
                if let Err(error) = run_nft(&["list", "ruleset"]) {
                    return Err(TestCaseError::fail(error));
                }
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
    });
}
