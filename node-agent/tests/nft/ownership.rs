//! Whose the table is, and what others can do to it.

use std::time::{Duration, Instant};

use egressnat_agent::diff::{NftStep, SetType};
use egressnat_agent::kernel::nft::{Nft, NftError, Ownership};
use egressnat_agent::model::{Data, DataType, KeyType, Statement, Verdict};

use super::{add_rule, in_namespace, listing, nft as run_nft, range};

fn add_counter(name: &str) -> NftStep {
    NftStep::AddCounter(name.into())
}

/// A socket is closed when its last copy is, and another test's thread may just be forking.
fn wait_for_orphan(nft: &mut Nft) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while nft.ownership().unwrap_or_else(|e| panic!("{e}")) != Ownership::Orphan {
        assert!(Instant::now() < deadline, "the table still has an owner");
        std::thread::yield_now();
    }
}

#[test]
fn nobody_else_can_change_the_table() {
    in_namespace(|| {
        let mut ours = Nft::open().unwrap();
        assert!(ours.can_own(), "this kernel is 6.9 or later");
        assert_eq!(ours.ownership().unwrap(), Ownership::Absent);
        ours.apply(&[NftStep::AddTable, add_counter("c")]).unwrap();
        assert_eq!(ours.ownership().unwrap(), Ownership::Ours);
        let before = ours.observe().unwrap();

        let mut other = Nft::open().unwrap();
        assert!(matches!(other.ownership().unwrap(), Ownership::Other(_)));
        for steps in [
            &[NftStep::AddTable][..],
            &[add_counter("d")],
            &[NftStep::DeleteTable],
        ] {
            let error = other.apply(steps).unwrap_err();
            assert!(matches!(error, NftError::OwnedByOther { .. }), "{error}");
        }
        let refusal = run_nft(&["add", "counter", "inet", "egressnat", "d"]).unwrap_err();
        assert!(refusal.contains("Operation not permitted"), "{refusal}");
        assert_eq!(other.observe().unwrap(), before, "others can read");

        ours.apply(&[NftStep::AddTable, add_counter("d")]).unwrap();
        assert_ne!(
            ours.observe().unwrap(),
            before,
            "the owner can change it, and add it again"
        );
    });
}

#[test]
fn the_table_outlives_its_owner_and_is_taken_over() {
    in_namespace(|| {
        let mut first = Nft::open().unwrap();
        first.apply(&[NftStep::AddTable, add_counter("c")]).unwrap();
        let before = first.observe().unwrap();
        drop(first);

        let mut second = Nft::open().unwrap();
        wait_for_orphan(&mut second);
        assert_eq!(second.observe().unwrap(), before);
        second.apply(&[NftStep::AddTable]).unwrap();
        assert_eq!(second.ownership().unwrap(), Ownership::Ours);
        assert!(run_nft(&["add", "counter", "inet", "egressnat", "d"]).is_err());
        second.apply(&[add_counter("d")]).unwrap();

        // A refused adoption leaves the table as it was.
        drop(second);
        let mut third = Nft::open().unwrap();
        wait_for_orphan(&mut third);
        third.apply(&[NftStep::AddTable, add_counter("d")]).unwrap_err();
        assert_eq!(third.ownership().unwrap(), Ownership::Orphan);
    });
}

#[test]
fn flushing_the_ruleset_passes_the_table_by() {
    in_namespace(|| {
        run_nft(&["add", "table", "inet", "other"]).unwrap();
        let mut nft = Nft::open().unwrap();
        nft.apply(&[NftStep::AddTable, add_counter("c")]).unwrap();
        let before = nft.observe().unwrap();
        run_nft(&["flush", "ruleset"]).unwrap();
        assert!(
            run_nft(&["list", "table", "inet", "other"]).is_err(),
            "what has no owner is gone"
        );
        assert_eq!(nft.observe().unwrap(), before);
    });
}

/// Of an older agent's on an older kernel, or made by hand.
#[test]
fn a_table_without_an_owner_is_used_and_can_be_replaced() {
    in_namespace(|| {
        run_nft(&["add table inet egressnat { flags dormant; counter left { }; }"]).unwrap();
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.ownership().unwrap(), Ownership::Dormant);
        nft.apply(&[NftStep::AddTable, add_counter("c")]).unwrap();
        assert_eq!(nft.ownership().unwrap(), Ownership::Unprotected);
        assert!(!listing().contains("dormant"), "{}", listing());
        assert_eq!(nft.counters().unwrap().len(), 2);

        nft.apply(&[NftStep::DeleteTable, NftStep::AddTable, add_counter("c")])
            .unwrap();
        assert_eq!(nft.ownership().unwrap(), Ownership::Ours);
        assert_eq!(nft.counters().unwrap().len(), 1);
    });
}

#[test]
fn a_deleted_table_is_absent() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.observe().unwrap(), None);
        nft.apply(&[NftStep::AddTable]).unwrap();
        assert!(nft.observe().unwrap().is_some());
        nft.apply(&[NftStep::DeleteTable]).unwrap();
        assert_eq!(nft.observe().unwrap(), None);
        assert!(nft.apply(&[NftStep::DeleteTable]).is_err());
    });
}

/// Where there is no owner, others can put in what the model has no words for. It must not look like ours.
#[test]
fn what_others_put_into_the_table_is_seen() {
    const RULES: &str = r"
        add table inet egressnat
        add set inet egressnat ports { type inet_service; elements = { 80 }; }
        add set inet egressnat marks { type mark; flags timeout; }
        add chain inet egressnat a { type filter hook input priority -10; policy drop; }
        add chain inet egressnat b { type route hook output priority 0; }
        add chain inet egressnat c { type filter hook input priority -10; }
        add rule inet egressnat c accept comment mine
        add rule inet egressnat c tcp dport { 1, 2 } accept";
    in_namespace(|| {
        run_nft(&[RULES]).unwrap();
        let mut nft = Nft::open().unwrap();
        let ours = add_rule("c", [Statement::Verdict(Verdict::Drop)]);
        let NftStep::AddRule(_, rule) = &ours else {
            unreachable!("it adds a rule")
        };
        nft.apply(std::slice::from_ref(&ours)).unwrap();
        let observed = nft.observe().unwrap().unwrap();

        let names: Vec<_> = observed.sets.keys().map(String::as_str).collect();
        assert_eq!(names, ["marks", "ports"], "sets without a name are left out");
        for set in observed.sets.values() {
            assert!(
                set.interval && set.key == KeyType::Mark,
                "a type that we do not use"
            );
        }
        assert_eq!(observed.chains["a"].base.unwrap().priority, i32::MIN);
        assert_eq!(observed.chains["b"].base.unwrap().priority, i32::MIN);
        assert_eq!(observed.chains["c"].base.unwrap().priority, -10);
        assert_eq!(observed.chains["c"].tags, ["mine", "", &rule.tag()]);
    });
}

/// `nft` writes intervals in its own way, and shows ours as they are.
#[test]
fn intervals_are_read_as_nft_writes_them_and_the_other_way_round() {
    const MAP: SetType = SetType {
        key: KeyType::Ipv6Addr,
        data: DataType::Mark,
        interval: true,
    };
    let texts = [
        "::-::7",
        "2001:db8::-2001:db8::f",
        "2001:db8::10-2001:db8::10",
        "ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let elements: Vec<_> = (1..)
        .zip(texts)
        .map(|(n, text)| (range(text), Data::Mark(n)))
        .collect();
    let by_nft = "add table inet egressnat
        add map inet egressnat m { type ipv6_addr : mark; flags interval; elements = {
            ::-::7 : 1, 2001:db8::-2001:db8::f : 2, 2001:db8::10 : 3, ff00::/8 : 4 }; }";
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        run_nft(&[by_nft]).unwrap();
        let observed = nft.observe().unwrap().unwrap();
        assert_eq!(observed.sets["m"].elements, elements.iter().cloned().collect());
        let listed_before = listing();

        nft.apply(&[
            NftStep::DeleteTable,
            NftStep::AddTable,
            NftStep::AddSet("m".into(), MAP),
            NftStep::AddElements("m".into(), MAP, elements.clone()),
        ])
        .unwrap();
        let elements_of = |listing: &str| listing.split("elements").nth(1).map(str::to_owned);
        assert_eq!(elements_of(&listing()), elements_of(&listed_before));

        nft.apply(&[NftStep::DeleteElements("m".into(), MAP, elements[1..].to_vec())])
            .unwrap();
        let observed = nft.observe().unwrap().unwrap();
        assert_eq!(
            observed.sets["m"].elements,
            elements[..1].iter().cloned().collect()
        );
    });
}
