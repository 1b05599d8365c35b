//! One transaction, whole or not at all, whatever its size.

use std::time::{Duration, Instant};

use egressnat_agent::diff::{NftStep, SetType};
use egressnat_agent::kernel::nft::{Nft, NftError};
use egressnat_agent::model::{
    BaseChain, ChainKind, Data, DataType, ElementKey, Hook, Key, KeyType, Statement, Verdict,
};
use egressnat_crds::plan::Family;
use nix::errno::Errno;

use super::{PODS, add_rule, addr, in_namespace, nft as run_nft, pod};

const PODS_MAP: &str = "pods4";

const PEERS: SetType = SetType {
    key: KeyType::Ipv4Addr,
    data: DataType::None,
    interval: true,
};

fn add_chain(name: &str) -> NftStep {
    NftStep::AddChain(name.into(), None)
}

fn add_pods(pods: impl IntoIterator<Item = u32>) -> NftStep {
    NftStep::AddElements(PODS_MAP.into(), PODS, pods.into_iter().map(pod).collect())
}

/// A table with the map of pods, these many in it.
fn table_with_pods(nft: &mut Nft, pods: u32) {
    nft.apply(&[
        NftStep::AddTable,
        NftStep::AddSet(PODS_MAP.into(), PODS),
        add_pods(0..pods),
    ])
    .expect("a table with pods");
}

#[test]
fn a_large_ruleset_is_one_transaction() {
    const PODS_COUNT: u32 = 20_000;
    const CHAINS: u32 = 100;
    const RULES: u32 = 20;
    let mut steps = vec![
        NftStep::AddTable,
        NftStep::AddCounter("drop_spoofed".into()),
        NftStep::AddSet(PODS_MAP.into(), PODS),
        NftStep::AddSet("peers4".into(), PEERS),
    ];
    for chain in 0..CHAINS {
        let chain = format!("pol_{chain}");
        steps.push(add_chain(&chain));
        steps.extend((0..RULES).map(|rule| {
            let bits = rule << 16;
            add_rule(
                &chain,
                [
                    Statement::In(Key::Saddr(Family::IPv4), "peers4".into()),
                    Statement::SetCtMark {
                        keep: 0xc000_ffff,
                        bits,
                    },
                    Statement::Counter("drop_spoofed".into()),
                ],
            )
        }));
    }
    steps.push(add_pods(0..PODS_COUNT));
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let before = nft.generation().unwrap();
        let begun = Instant::now();
        nft.apply(&steps).unwrap();
        println!("20,000 elements and 2,000 rules: {:?}", begun.elapsed());
        assert_eq!(
            nft.generation().unwrap(),
            before + 1,
            "one transaction is one generation"
        );
        let begun = Instant::now();
        let observed = nft.observe().unwrap().unwrap();
        println!("read back: {:?}", begun.elapsed());
        assert!(observed.sets[PODS_MAP].elements == (0..PODS_COUNT).map(pod).collect());
        let tags = observed
            .chains
            .values()
            .map(|chain| chain.tags.len())
            .sum::<usize>();
        assert_eq!(
            (observed.chains.len(), tags),
            (CHAINS as usize, (CHAINS * RULES) as usize)
        );
        assert!(
            observed
                .chains
                .values()
                .flat_map(|c| &c.tags)
                .all(|tag| tag.len() == 16)
        );
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_the_step() {
    let bad = [
        (
            add_rule("chain", [Statement::Verdict(Verdict::Jump("nowhere".into()))]),
            "add rule inet egressnat chain jump nowhere",
            Errno::ENOENT,
        ),
        (
            add_rule("chain", [Statement::Counter("nothing".into())]),
            "add rule inet egressnat chain counter name \"nothing\"",
            Errno::ENOENT,
        ),
        (
            NftStep::DeleteSet("nowhere".into()),
            "delete set inet egressnat nowhere",
            Errno::ENOENT,
        ),
        (
            NftStep::AddSet(PODS_MAP.into(), PODS),
            "add map inet egressnat pods4 { type ipv4_addr : mark; }",
            Errno::EEXIST,
        ),
        // The last of 20,000, in the last of many messages.
        (
            add_pods((1000..21_000).chain([3])),
            "add element inet egressnat pods4 { 10.240.3.232 : 0x000003e8, 10.240.3.233 : 0x000003e9",
            Errno::EEXIST,
        ),
        (
            NftStep::DeleteElements(PODS_MAP.into(), PODS, vec![pod(99_999)]),
            "delete element inet egressnat pods4 { 10.241.134.159 : 0x0001869f }",
            Errno::ENOENT,
        ),
    ];
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        table_with_pods(&mut nft, 10);
        nft.apply(&[add_chain("chain")]).unwrap();
        let before = (nft.observe().unwrap(), nft.generation().unwrap());
        for (step, text, expected) in bad {
            let steps = [
                add_pods([500]),
                add_chain("new"),
                step,
                NftStep::AddCounter("c".into()),
            ];
            match nft.apply(&steps).unwrap_err() {
                NftError::Refused { step, errno, .. } => {
                    assert!(step.starts_with(text), "{step} should be {text}");
                    assert_eq!(errno, expected, "{text}");
                }
                other => panic!("{other}"),
            }
            assert!(
                before == (nft.observe().unwrap(), nft.generation().unwrap()),
                "{text}"
            );
        }
        nft.apply(&[add_pods([500]), add_chain("new"), NftStep::AddCounter("c".into())])
            .unwrap();
        assert!(
            before.0 != nft.observe().unwrap(),
            "without the bad step the others do change the table"
        );
    });
}

#[test]
fn a_key_gets_other_data_in_one_transaction() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        table_with_pods(&mut nft, 3);
        let key = pod(1).0;
        let new = vec![(key, Data::Mark(77))];
        let overwrite = [NftStep::AddElements(PODS_MAP.into(), PODS, new.clone())];
        assert!(nft.apply(&overwrite).is_err(), "the kernel does not overwrite");
        let before = nft.generation().unwrap();
        nft.apply(&[
            NftStep::DeleteElements(PODS_MAP.into(), PODS, vec![pod(1)]),
            NftStep::AddElements(PODS_MAP.into(), PODS, new),
        ])
        .unwrap();
        assert_eq!(nft.generation().unwrap(), before + 1);
        let observed = nft.observe().unwrap().unwrap();
        assert_eq!(observed.sets[PODS_MAP].elements[&key], Data::Mark(77));
        assert_eq!(observed.sets[PODS_MAP].elements.len(), 3);
    });
}

/// A pod that comes has to be in the kernel within 5 ms, at 10,000 pods on the node.
#[test]
fn one_pod_more_is_quick() {
    const SAMPLES: u32 = 101;
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        table_with_pods(&mut nft, 10_000);
        let mut times: Vec<Duration> = (0..SAMPLES)
            .map(|n| {
                let begun = Instant::now();
                nft.apply(&[add_pods([20_000 + n])]).unwrap();
                begun.elapsed()
            })
            .collect();
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("one more of 10,000 elements: median {median:?}, worst {worst:?}");
        assert!(median < Duration::from_millis(5), "{median:?}");
        let observed = nft.observe().unwrap().unwrap();
        assert_eq!(
            observed.sets[PODS_MAP].elements.len(),
            (10_000 + SAMPLES) as usize
        );
    });
}

/// An attribute holds 64 KiB, and 512 elements with the longest names of chains are above that.
#[test]
fn elements_with_long_names_are_split() {
    const VMAP: SetType = SetType {
        key: KeyType::Mark,
        data: DataType::Verdict,
        interval: false,
    };
    let chain = |n: u32| format!("{n:0>255}");
    let elements: Vec<_> = (0..600)
        .map(|n| (ElementKey::Mark(n), Data::Verdict(Verdict::Goto(chain(n)))))
        .collect();
    let mut steps = vec![NftStep::AddTable, NftStep::AddSet("v".into(), VMAP)];
    steps.extend((0..600).map(|n| add_chain(&chain(n))));
    steps.push(NftStep::AddElements("v".into(), VMAP, elements.clone()));
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        nft.apply(&steps).unwrap();
        let observed = nft.observe().unwrap().unwrap();
        assert!(observed.sets["v"].elements == elements.into_iter().collect());
    });
}

#[test]
fn what_no_message_can_say_is_not_sent() {
    let long = "x".repeat(256);
    let steps = [
        add_chain(&long),
        add_chain("nul\0"),
        add_chain(""),
        NftStep::AddElements(PODS_MAP.into(), PODS, vec![(addr("::1"), Data::Mark(1))]),
        NftStep::AddElements(PODS_MAP.into(), PODS, vec![(addr("10.0.0.1"), Data::None)]),
        add_rule("chain", vec![Statement::Notrack; 129]),
        add_rule("chain", [Statement::MetaMarkFromCtMark { mask: 1, shift: 32 }]),
    ];
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        table_with_pods(&mut nft, 1);
        nft.apply(&[add_chain("chain")]).unwrap();
        let before = nft.generation().unwrap();
        for step in steps {
            let error = nft.apply(&[add_chain("new"), step]).unwrap_err();
            assert!(matches!(error, NftError::Invalid { .. }), "{error}");
            assert_eq!(error.category(), "NftInvalid");
        }
        assert_eq!(nft.generation().unwrap(), before);
    });
}

/// Others' commits shift the list that the kernel is walking through, so that it leaves out chains of ours.
#[test]
fn a_list_that_others_interrupt_is_read_again() {
    const CHAINS: usize = 3000;
    let foreign = |verb: &str| -> String {
        (0..300)
            .map(|chain| format!("{verb} chain inet before c{chain}\n"))
            .collect()
    };
    let commits = [foreign("add"), foreign("delete")];
    in_namespace(|| {
        run_nft(&["add", "table", "inet", "before"]).unwrap();
        let mut nft = Nft::open().unwrap();
        let mut steps = vec![NftStep::AddTable];
        steps.extend((0..CHAINS).map(|n| add_chain(&format!("chain_{n}"))));
        nft.apply(&steps).unwrap();
        let before = nft.generation().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for commit in commits.iter().cycle().take(60) {
                    run_nft(&[commit]).unwrap();
                }
            });
            while !writer.is_finished() {
                match nft.observe() {
                    Ok(table) => assert_eq!(table.unwrap().chains.len(), CHAINS),
                    Err(NftError::Interrupted) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
        assert!(nft.generation().unwrap() >= before + 60, "the others did commit");
        assert_eq!(nft.observe().unwrap().unwrap().chains.len(), CHAINS);
    });
}

#[test]
fn counters_are_read_by_themselves() {
    let prerouting = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Output,
        priority: 0,
    };
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        assert!(nft.counters().unwrap().is_empty(), "no table, no counters");
        nft.apply(&[
            NftStep::AddTable,
            NftStep::AddCounter("seen".into()),
            NftStep::AddCounter("unseen".into()),
            NftStep::AddChain("output".into(), Some(prerouting)),
            add_rule("output", [Statement::Counter("seen".into())]),
        ])
        .unwrap();
        assert_eq!(nft.counters().unwrap()["seen"], (0, 0));
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"1234", socket.local_addr().unwrap()).unwrap();
        let counters = nft.counters().unwrap();
        assert_eq!(counters["seen"], (1, 20 + 8 + 4));
        assert_eq!(counters["unseen"], (0, 0));
        assert_eq!(nft.observe().unwrap().unwrap().counters, counters);
    });
}
