//! What the statements do to packets of the loopback device, of both families.

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use egressnat_agent::diff::{NftStep, SetType};
use egressnat_agent::kernel::nft::Nft;
use egressnat_agent::model::rule::Masked;
use egressnat_agent::model::{
    BaseChain, ChainKind, Cmp, Data, DataType, Direction, ElementKey, Hook, Key, KeyType, Link, Statement,
    Verdict,
};
use egressnat_crds::plan::Family;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::{add_rule, in_namespace, range};

/// The mark of the packets that are sent: both halves differ, and so do its octets.
const MARK: u32 = 0x0102_8304;

struct Loopback {
    family: Family,
    /// Where packets come from and go to.
    local: IpAddr,
    /// Another address of the device.
    second: IpAddr,
}

impl Loopback {
    fn both() -> [Self; 2] {
        let loopback = |family, local: &str, second: &str| Self {
            family,
            local: local.parse().expect("an address"),
            second: second.parse().expect("an address"),
        };
        [
            loopback(Family::IPv4, "127.0.0.1", "127.0.0.9"),
            loopback(Family::IPv6, "::1", "fd00::9"),
        ]
    }

    fn up(&self) {
        let ip = |arguments: &str| {
            let status = Command::new("ip").args(arguments.split(' ')).status();
            assert!(status.expect("ip is installed").success(), "ip {arguments}");
        };
        ip("link set lo up");
        if self.second.is_ipv6() {
            ip(&format!("addr add {}/128 dev lo nodad", self.second));
        }
    }

    fn other(&self) -> Family {
        match self.family {
            Family::IPv4 => Family::IPv6,
            Family::IPv6 => Family::IPv4,
        }
    }

    fn net(&self, v4: &str, v6: &str) -> Statement {
        let net = if self.local.is_ipv4() { v4 } else { v6 };
        Statement::SaddrIn(net.parse().expect("a network"))
    }

    fn set(&self, data: DataType, interval: bool) -> SetType {
        let key = match self.family {
            Family::IPv4 => KeyType::Ipv4Addr,
            Family::IPv6 => KeyType::Ipv6Addr,
        };
        SetType { key, data, interval }
    }

    /// A packet to itself, and who it came from.
    fn send(&self) -> IpAddr {
        let (from, to) = (
            UdpSocket::bind((self.local, 0)).expect("a socket"),
            UdpSocket::bind((self.local, 5770)).expect("a socket"),
        );
        setsockopt(&from, sockopt::Mark, &MARK).expect("a mark");
        from.send_to(b"1234", (self.local, 5770)).expect("a packet");
        let (_, source) = to.recv_from(&mut [0; 8]).expect("the packet");
        source.ip()
    }
}

fn base(kind: ChainKind, hook: Hook, priority: i32) -> Option<BaseChain> {
    Some(BaseChain { kind, hook, priority })
}

fn add_set(name: &str, ty: SetType, elements: Vec<(ElementKey, Data)>) -> [NftStep; 2] {
    [
        NftStep::AddSet(name.into(), ty),
        NftStep::AddElements(name.into(), ty, elements),
    ]
}

/// Sets around the loopback's address and [`MARK`], and two chains to lead to.
fn surroundings(lo: &Loopback) -> Vec<NftStep> {
    let verdicts = SetType {
        key: KeyType::Mark,
        data: DataType::Verdict,
        interval: false,
    };
    let jump = |chain: &str| Data::Verdict(Verdict::Jump(chain.into()));
    let cluster = match lo.family {
        Family::IPv4 => range("127.0.0.0-127.0.0.8"),
        Family::IPv6 => range("::-::1"),
    };
    let (local, second) = (ElementKey::Addr(lo.local), ElementKey::Addr(lo.second));
    let profiles = vec![
        (ElementKey::Mark(0x0708), jump("leaf")),
        (ElementKey::Mark(MARK & 0xffff), jump("leaf")),
    ];
    let mut steps = vec![
        NftStep::AddTable,
        NftStep::AddChain("output".into(), base(ChainKind::Filter, Hook::Output, 0)),
        NftStep::AddChain("leaf".into(), None),
        NftStep::AddCounter("leaf".into()),
        add_rule("leaf", [Statement::Counter("leaf".into())]),
    ];
    steps.extend(add_set(
        "pods",
        lo.set(DataType::Mark, false),
        vec![(local, Data::Mark(0x0708))],
    ));
    steps.extend(add_set(
        "others",
        lo.set(DataType::Mark, false),
        vec![(second, Data::Mark(0x0708))],
    ));
    steps.extend(add_set(
        "cluster",
        lo.set(DataType::None, true),
        vec![(cluster, Data::None)],
    ));
    steps.extend(add_set("profiles", verdicts, profiles));
    steps
}

fn masked(mask: u32, value: u32) -> Masked {
    let cmp = Cmp::Eq;
    Masked { mask, cmp, value }
}

/// Matches, and whether the packet is one.
fn matches(lo: &Loopback) -> Vec<(Statement, bool)> {
    let link = |index| Link {
        name: "lo".into(),
        index,
    };
    let differs = Masked {
        cmp: Cmp::Ne,
        ..masked(0xffff_0000, MARK & 0xffff_0000)
    };
    vec![
        (Statement::Oif(link(1)), true),
        (Statement::Oif(link(2)), false),
        (Statement::NfProto(lo.family), true),
        (Statement::NfProto(lo.other()), false),
        (Statement::UdpDport(5770), true),
        (Statement::UdpDport(0x8a16), false),
        (Statement::CtDirection(Direction::Original), true),
        (Statement::CtDirection(Direction::Reply), false),
        (Statement::CtUnplaced, false),
        (Statement::CtConfirmed, false),
        (Statement::CtUnconfirmed, true),
        (Statement::CtMark(masked(u32::MAX, 0)), true),
        (Statement::MetaMark(masked(0xff00_0000, 0x0100_0000)), true),
        (Statement::MetaMark(masked(u32::MAX, MARK.swap_bytes())), false),
        (Statement::MetaMark(differs), false),
        (lo.net("127.0.0.0/8", "::/64"), true),
        (lo.net("126.0.0.0/7", "::/125"), true),
        (lo.net("127.0.0.2/31", "::2/127"), false),
        (lo.net("128.0.0.0/8", "1::/16"), false),
        (lo.net("0.0.0.0/0", "::/0"), true),
        (Statement::FibDaddrLocal, true),
        (Statement::In(Key::Saddr(lo.family), "cluster".into()), true),
        (Statement::In(Key::Daddr(lo.family), "pods".into()), true),
        (Statement::In(Key::Daddr(lo.family), "others".into()), false),
    ]
}

#[test]
fn matches_match_what_they_say() {
    for lo in Loopback::both() {
        let matches = matches(&lo);
        let counter = |n: usize| format!("match_{n}");
        let mut steps = surroundings(&lo);
        for (n, (statement, _)) in matches.iter().enumerate() {
            let rule = [statement.clone(), Statement::Counter(counter(n))];
            steps.extend([NftStep::AddCounter(counter(n)), add_rule("output", rule)]);
        }
        in_namespace(|| {
            lo.up();
            let mut nft = Nft::open().unwrap();
            nft.apply(&steps).unwrap();
            lo.send();
            let counters = nft.counters().unwrap();
            for (n, (statement, expected)) in matches.iter().enumerate() {
                assert_eq!(counters[&counter(n)].0, u64::from(*expected), "{statement:?}");
            }
        });
    }
}

#[test]
fn maps_lead_where_they_say_and_leave_the_mark_alone() {
    for lo in Loopback::both() {
        let saddr = Key::Saddr(lo.family);
        let map_vmap = |map: &str| Statement::MapVmap(saddr, map.into(), "profiles".into());
        let after = |steps: &mut Vec<NftStep>| {
            let mark = Statement::MetaMark(masked(u32::MAX, MARK));
            steps.push(NftStep::AddCounter("after".into()));
            steps.push(add_rule("output", [mark, Statement::Counter("after".into())]));
        };
        for (statement, expected) in [
            (map_vmap("pods"), 1),
            (map_vmap("others"), 0),
            (Statement::Vmap(Key::MetaMark(0xffff), "profiles".into()), 1),
            (Statement::Vmap(Key::MetaMark(0x7fff), "profiles".into()), 0),
        ] {
            let mut steps = surroundings(&lo);
            steps.push(add_rule("output", [statement.clone()]));
            after(&mut steps);
            in_namespace(|| {
                lo.up();
                let mut nft = Nft::open().unwrap();
                nft.apply(&steps).unwrap();
                lo.send();
                let counters = nft.counters().unwrap();
                assert_eq!(counters["leaf"].0, expected, "{statement:?}");
                assert_eq!(counters["after"].0, 1, "{statement:?} changed the mark");
            });
        }
    }
}

#[test]
fn marks_are_written_under_their_masks() {
    let lo = &Loopback::both()[0];
    let rule = [
        Statement::SetCtMark {
            keep: 0xc000_ffff,
            bits: 0x0007_0000,
        },
        Statement::SetMetaMark {
            keep: 0xff00_ffff,
            bits: 0x0100_0001,
        },
    ];
    let moved = Statement::MetaMarkFromCtMark {
        mask: 0x3fff_0000,
        shift: 16,
    };
    // The low half of 0x8304 with bit 0 set, the top octet kept, the second one gone.
    let checks = [
        (vec![Statement::CtMark(masked(u32::MAX, 0x0007_0000))], "ct"),
        (vec![Statement::MetaMark(masked(u32::MAX, 0x0100_8305))], "meta"),
        (vec![moved, Statement::MetaMark(masked(u32::MAX, 7))], "moved"),
        (
            vec![
                Statement::SetMetaMark { keep: 0, bits: 9 },
                Statement::MetaMark(masked(u32::MAX, 9)),
            ],
            "constant",
        ),
    ];
    let mut steps = surroundings(lo);
    steps.push(add_rule("output", rule));
    for (mut statements, counter) in checks.clone() {
        statements.push(Statement::Counter(counter.into()));
        steps.extend([
            NftStep::AddCounter(counter.into()),
            add_rule("output", statements),
        ]);
    }
    in_namespace(|| {
        lo.up();
        let mut nft = Nft::open().unwrap();
        nft.apply(&steps).unwrap();
        lo.send();
        for (_, counter) in checks {
            assert_eq!(nft.counters().unwrap()[counter].0, 1, "{counter}");
        }
    });
}

#[test]
fn packets_without_conntrack_are_unplaced() {
    let lo = &Loopback::both()[1];
    let raw = base(ChainKind::Filter, Hook::Output, -300);
    let mut steps = surroundings(lo);
    steps.push(NftStep::AddChain("raw".into(), raw));
    steps.push(add_rule("raw", [Statement::UdpDport(5770), Statement::Notrack]));
    steps.push(NftStep::AddCounter("unplaced".into()));
    let count = Statement::Counter("unplaced".into());
    steps.push(add_rule("output", [Statement::CtUnplaced, count]));
    in_namespace(|| {
        lo.up();
        let mut nft = Nft::open().unwrap();
        nft.apply(&steps).unwrap();
        lo.send();
        assert_eq!(nft.counters().unwrap()["unplaced"].0, 1);
    });
}

#[test]
fn snat_takes_the_address_of_the_map() {
    const MASK: u32 = 0x3fff_0000;
    for lo in Loopback::both() {
        let data = match lo.family {
            Family::IPv4 => DataType::Ipv4Addr,
            Family::IPv6 => DataType::Ipv6Addr,
        };
        let map = SetType {
            key: KeyType::Mark,
            data,
            interval: false,
        };
        let id = Statement::SetCtMark {
            keep: !MASK,
            bits: 0x0007_0000,
        };
        let snat = Statement::SnatMap(lo.family, Key::CtMark(MASK), "snat".into());
        let mut steps = surroundings(&lo);
        let nat = base(ChainKind::Nat, Hook::Postrouting, 50);
        steps.extend([NftStep::AddChain("nat".into(), nat), add_rule("output", [id])]);
        let element = (ElementKey::Mark(0x0007_0000), Data::Addr(lo.second));
        steps.extend(add_set("snat", map, vec![element.clone()]));
        in_namespace(|| {
            lo.up();
            let mut nft = Nft::open().unwrap();
            nft.apply(&steps).unwrap();
            assert_eq!(lo.send(), lo.local, "without the rule");
            // An identity binding keeps later ones off.
            let keep = add_rule("nat", [Statement::SnatToSaddr(lo.family)]);
            nft.apply(&[keep, add_rule("nat", [snat.clone()])]).unwrap();
            assert_eq!(lo.send(), lo.local, "bound to itself");
            nft.apply(&[NftStep::FlushChain("nat".into()), add_rule("nat", [snat])])
                .unwrap();
            assert_eq!(lo.send(), lo.second);
            nft.apply(&[NftStep::DeleteElements("snat".into(), map, vec![element])])
                .unwrap();
            assert_eq!(lo.send(), lo.local, "an id that the map has not");
        });
    }
}

#[test]
fn the_segment_size_is_clamped() {
    for lo in Loopback::both() {
        let segment = || {
            let listener = TcpListener::bind((lo.local, 0)).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            getsockopt(&server, sockopt::TcpMaxSeg).unwrap()
        };
        in_namespace(|| {
            lo.up();
            let mut nft = Nft::open().unwrap();
            nft.apply(&surroundings(&lo)).unwrap();
            let clamp = |family| {
                let statements = [
                    Statement::NfProto(family),
                    Statement::TcpSyn,
                    Statement::ClampMss(1390),
                ];
                add_rule("output", statements)
            };
            nft.apply(&[clamp(lo.other())]).unwrap();
            assert!(segment() > 10_000, "the other family's clamp is not ours");
            nft.apply(&[clamp(lo.family)]).unwrap();
            // Less the TCP timestamps of each segment.
            assert_eq!(segment(), 1390 - 12);
        });
    }
}
