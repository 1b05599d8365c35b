//! Every statement goes in, and reads back as what it says.

use std::collections::BTreeSet;

use egressnat_agent::diff::{NftStep, SetType};
use egressnat_agent::kernel::nft::{Nft, NftError};
use egressnat_agent::model::rule::Masked;
use egressnat_agent::model::{
    BaseChain, ChainKind, Cmp, DataType, Direction, Hook, Key, KeyType, Link, Rule, Statement, Verdict,
};
use egressnat_crds::plan::Family::{IPv4, IPv6};
use egressnat_crds::ports::PortRange;

use super::{PODS, add_rule, in_namespace, listing};

fn lo() -> Link {
    Link {
        name: "lo".into(),
        index: 1,
    }
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> Option<BaseChain> {
    Some(BaseChain { kind, hook, priority })
}

fn set(key: KeyType, data: DataType, interval: bool) -> SetType {
    SetType { key, data, interval }
}

/// Chains, sets and a counter for rules to refer to.
fn surroundings() -> Vec<NftStep> {
    let sets = [
        ("pods4", PODS),
        ("peers4", set(KeyType::Ipv4Addr, DataType::None, true)),
        ("peers6", set(KeyType::Ipv6Addr, DataType::None, true)),
        ("links", set(KeyType::Link, DataType::None, false)),
        ("macs", set(KeyType::EtherAddr, DataType::Verdict, false)),
        ("dst6", set(KeyType::Ipv6Addr, DataType::Verdict, true)),
        ("profiles", set(KeyType::Mark, DataType::Verdict, false)),
        ("snat4", set(KeyType::Mark, DataType::Ipv4Addr, false)),
        ("snat6", set(KeyType::Mark, DataType::Ipv6Addr, false)),
    ];
    let chains = [
        ("elsewhere", None),
        ("raw", base(ChainKind::Filter, Hook::Prerouting, -300)),
        ("prerouting", base(ChainKind::Filter, Hook::Prerouting, -90)),
        ("input", base(ChainKind::Filter, Hook::Input, -10)),
        ("forward", base(ChainKind::Filter, Hook::Forward, -90)),
        ("output", base(ChainKind::Filter, Hook::Output, -300)),
        ("postrouting", base(ChainKind::Nat, Hook::Postrouting, 50)),
    ];
    let mut steps = vec![NftStep::AddTable, NftStep::AddCounter("drop_spoofed".into())];
    steps.extend(chains.map(|(name, base)| NftStep::AddChain(name.into(), base)));
    steps.extend(sets.map(|(name, ty)| NftStep::AddSet(name.into(), ty)));
    steps
}

fn masked(mask: u32, cmp: Cmp, value: u32) -> Masked {
    Masked { mask, cmp, value }
}

fn ports(text: &str) -> PortRange {
    text.parse().expect("a range of ports")
}

/// A chain, a statement, and what `nft` shows for it.
fn cases() -> Vec<(&'static str, Statement, &'static str)> {
    let net = |text: &str| Statement::SaddrIn(text.parse().expect("a network"));
    let mark = Key::CtMark(0x3fff_0000);
    vec![
        ("prerouting", Statement::Iif(lo()), r#"iif "lo""#),
        ("forward", Statement::Oif(lo()), r#"oif "lo""#),
        ("forward", Statement::NfProto(IPv4), "meta nfproto ipv4"),
        ("forward", Statement::NfProto(IPv6), "meta nfproto ipv6"),
        ("input", Statement::UdpDport(5770), "udp dport 5770"),
        ("postrouting", Statement::Masquerade, "masquerade fully-random"),
        ("prerouting", Statement::CtUnplaced, "ct state invalid,untracked"),
        ("prerouting", Statement::CtConfirmed, "ct status confirmed"),
        ("prerouting", Statement::CtUnconfirmed, "ct status ! confirmed"),
        (
            "prerouting",
            Statement::CtDirection(Direction::Original),
            "ct direction original",
        ),
        (
            "prerouting",
            Statement::CtDirection(Direction::Reply),
            "ct direction reply",
        ),
        (
            "prerouting",
            Statement::CtMark(masked(0x3fff_0000, Cmp::Ne, 0)),
            "ct mark & 0x3fff0000 != 0x00000000",
        ),
        (
            "prerouting",
            Statement::CtMark(masked(u32::MAX, Cmp::Eq, 0x0007_0000)),
            "ct mark 0x00070000",
        ),
        (
            "prerouting",
            Statement::MetaMark(masked(0x3f00_0000, Cmp::Eq, 0x0100_0000)),
            "meta mark & 0x3f000000 == 0x01000000",
        ),
        ("prerouting", net("10.244.1.0/24"), "ip saddr 10.244.1.0/24"),
        ("prerouting", net("10.244.16.0/20"), "ip saddr 10.244.16.0/20"),
        ("prerouting", net("10.244.1.7/32"), "ip saddr 10.244.1.7"),
        ("prerouting", net("0.0.0.0/0"), "meta nfproto ipv4"),
        (
            "prerouting",
            net("fd00:10:244::/64"),
            "ip6 saddr fd00:10:244::/64",
        ),
        (
            "prerouting",
            net("fd00:10:240::/44"),
            "ip6 saddr fd00:10:240::/44",
        ),
        (
            "prerouting",
            Statement::FibDaddrLocal,
            "fib daddr type & 4294967294 == local",
        ),
        (
            "prerouting",
            Statement::FibSaddrMissing,
            "fib saddr . iif oif missing",
        ),
        (
            "prerouting",
            Statement::In(Key::Iif, "links".into()),
            "iif @links",
        ),
        (
            "prerouting",
            Statement::In(Key::Saddr(IPv4), "peers4".into()),
            "ip saddr @peers4",
        ),
        (
            "prerouting",
            Statement::In(Key::Daddr(IPv6), "peers6".into()),
            "ip6 daddr @peers6",
        ),
        (
            "prerouting",
            Statement::In(Key::Saddr(IPv4), "pods4".into()),
            "ip saddr map @pods4 >= 0x0 [invalid type]",
        ),
        (
            "prerouting",
            Statement::Vmap(Key::EtherSaddr, "macs".into()),
            "ether saddr vmap @macs",
        ),
        (
            "prerouting",
            Statement::Vmap(Key::Daddr(IPv6), "dst6".into()),
            "ip6 daddr vmap @dst6",
        ),
        (
            "prerouting",
            Statement::Vmap(Key::MetaMark(0x3fff), "profiles".into()),
            "meta mark & 0x00003fff vmap @profiles",
        ),
        (
            "prerouting",
            Statement::MapVmap(Key::Saddr(IPv4), "pods4".into(), "profiles".into()),
            "meta mark set ip saddr map @pods4 meta mark set meta mark meta mark vmap @profiles",
        ),
        (
            "prerouting",
            Statement::SetCtMark {
                keep: 0xc000_ffff,
                bits: 0x0007_0000,
            },
            "ct mark set ct mark & 0xc007ffff | 0x00070000",
        ),
        (
            "prerouting",
            Statement::SetMetaMark {
                keep: 0xc0ff_ffff,
                bits: 0x0100_0000,
            },
            "meta mark set meta mark & 0xc1ffffff | 0x01000000",
        ),
        (
            "prerouting",
            Statement::SetMetaMark { keep: 0, bits: 0 },
            "meta mark set 0x00000000",
        ),
        (
            "forward",
            Statement::MetaMarkFromCtMark {
                mask: 0x3fff_0000,
                shift: 16,
            },
            "meta mark set (ct mark & 0x3fff0000) >> 16",
        ),
        ("forward", Statement::TcpSyn, "tcp flags syn / syn,rst"),
        (
            "prerouting",
            Statement::TcpMidstream,
            "tcp flags != syn / fin,syn,rst,ack",
        ),
        ("prerouting", Statement::RejectTcpReset, "reject with tcp reset"),
        (
            "forward",
            Statement::ClampMss(1390),
            "tcp option maxseg size set 1390",
        ),
        ("postrouting", Statement::SnatToSaddr(IPv4), "snat ip to ip saddr"),
        (
            "postrouting",
            Statement::SnatToSaddr(IPv6),
            "snat ip6 to ip6 saddr",
        ),
        (
            "postrouting",
            Statement::SnatMap(IPv4, mark, "snat4".into()),
            "meta nfproto ipv4 snat ip to ct mark & 0x3fff0000 map @snat4",
        ),
        (
            "postrouting",
            Statement::SnatMap(IPv6, mark, "snat6".into()),
            "meta nfproto ipv6 snat ip6 to ct mark & 0x3fff0000 map @snat6",
        ),
        (
            "postrouting",
            Statement::SnatPorts("192.0.2.1".parse().expect("an address"), ports("20000-39999")),
            "meta nfproto ipv4 snat ip to 192.0.2.1:20000-39999",
        ),
        (
            "postrouting",
            Statement::SnatPorts("2001:db8::1".parse().expect("an address"), ports("443")),
            "meta nfproto ipv6 snat ip6 to [2001:db8::1]:443-443",
        ),
        ("raw", Statement::Notrack, "notrack"),
        ("output", Statement::Notrack, "notrack"),
        (
            "prerouting",
            Statement::Counter("drop_spoofed".into()),
            r#"counter name "drop_spoofed""#,
        ),
        ("prerouting", Statement::Verdict(Verdict::Accept), "accept"),
        ("prerouting", Statement::Verdict(Verdict::Drop), "drop"),
        ("prerouting", Statement::Verdict(Verdict::Return), "return"),
        (
            "prerouting",
            Statement::Verdict(Verdict::Jump("elsewhere".into())),
            "jump elsewhere",
        ),
        (
            "prerouting",
            Statement::Verdict(Verdict::Goto("elsewhere".into())),
            "goto elsewhere",
        ),
    ]
}

/// The rule of this comment as `nft` lists it.
fn listed(comment: &str) -> String {
    let suffix = format!(" comment \"{comment}\"");
    let listing = listing();
    let line = listing.lines().find_map(|line| line.trim().strip_suffix(&suffix));
    line.unwrap_or_else(|| panic!("no rule with the comment {comment} in {listing}"))
        .into()
}

#[test]
fn every_statement_reads_back() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        nft.apply(&surroundings()).unwrap();
        for (chain, statement, expected) in cases() {
            let rule = Rule(vec![statement.clone()]);
            nft.apply(&[add_rule(chain, [statement])]).unwrap();
            let observed = nft.observe().unwrap().unwrap();
            assert_eq!(observed.chains[chain].tags, [rule.tag()], "{rule}");
            assert_eq!(listed(&rule.tag()), expected, "{rule}");
            nft.apply(&[NftStep::FlushChain(chain.into())]).unwrap();
        }
    });
}

/// A statement that is added to the model and not here fails to compile: it is to be added to both.
#[test]
fn no_statement_is_missing() {
    let number = |statement: &Statement| match statement {
        Statement::Iif(_) => 0,
        Statement::Oif(_) => 1,
        Statement::NfProto(_) => 2,
        Statement::UdpDport(_) => 3,
        Statement::CtUnplaced => 4,
        Statement::CtDirection(_) => 5,
        Statement::CtMark(_) => 6,
        Statement::MetaMark(_) => 7,
        Statement::SaddrIn(_) => 8,
        Statement::FibDaddrLocal => 9,
        Statement::In(..) => 10,
        Statement::Vmap(..) => 11,
        Statement::MapVmap(..) => 12,
        Statement::SetCtMark { .. } => 13,
        Statement::SetMetaMark { .. } => 14,
        Statement::MetaMarkFromCtMark { .. } => 15,
        Statement::TcpSyn => 16,
        Statement::ClampMss(_) => 17,
        Statement::SnatToSaddr(_) => 18,
        Statement::SnatMap(..) => 19,
        Statement::SnatPorts(..) => 20,
        Statement::Notrack => 21,
        Statement::Counter(_) => 22,
        Statement::Verdict(_) => 23,
        Statement::Masquerade => 24,
        Statement::CtConfirmed => 25,
        Statement::TcpMidstream => 26,
        Statement::RejectTcpReset => 27,
        Statement::CtUnconfirmed => 28,
        Statement::FibSaddrMissing => 29,
    };
    let shown: BTreeSet<i32> = cases()
        .iter()
        .map(|(_, statement, _)| number(statement))
        .collect();
    assert_eq!(shown, (0..=29).collect());
}

/// The families of a rule are matched once, before the first address.
#[test]
fn whole_rules_read_back() {
    let rules = [
        (
            "prerouting",
            vec![
                Statement::CtUnplaced,
                Statement::In(Key::Saddr(IPv4), "pods4".into()),
                Statement::In(Key::Daddr(IPv4), "peers4".into()),
                Statement::Counter("drop_spoofed".into()),
                Statement::Verdict(Verdict::Drop),
            ],
            "ct state invalid,untracked ip saddr map @pods4 >= 0x0 [invalid type] ip daddr @peers4 \
             counter name \"drop_spoofed\" drop",
        ),
        (
            "input",
            vec![
                Statement::UdpDport(5770),
                Statement::In(Key::Saddr(IPv6), "peers6".into()),
                Statement::Verdict(Verdict::Accept),
            ],
            "udp dport 5770 ip6 saddr @peers6 accept",
        ),
        (
            "postrouting",
            vec![Statement::Oif(lo()), Statement::SnatToSaddr(IPv6)],
            "oif \"lo\" snat ip6 to ip6 saddr",
        ),
    ];
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        nft.apply(&surroundings()).unwrap();
        for (chain, statements, expected) in rules {
            let rule = Rule(statements);
            nft.apply(&[NftStep::AddRule(chain.into(), rule.clone())])
                .unwrap();
            assert_eq!(listed(&rule.tag()), expected);
        }
    });
}

/// What a rule of the model cannot be is refused before anything is sent.
#[test]
fn a_set_must_fit_its_use() {
    let refused = |set: &str| {
        let step = add_rule("prerouting", [Statement::In(Key::MetaMark(u32::MAX), set.into())]);
        let mut nft = Nft::open().unwrap();
        let error = nft.apply(&[step]).unwrap_err();
        assert!(matches!(error, NftError::Invalid { .. }), "{error}");
        error.to_string()
    };
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        nft.apply(&surroundings()).unwrap();
        assert!(refused("profiles").contains("a verdict map cannot be used as a set"));
        assert!(refused("nowhere").contains("there is no set of that name"));
    });
}
