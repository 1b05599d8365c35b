//! Conntrack entries of real packets: listed, and deleted without touching others. `conntrack` is the
//! second opinion.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use egressnat_agent::kernel::conntrack::{Conntrack, ConntrackError, Filter, Flow, Layer4};
use egressnat_crds::plan::Family;

use crate::netns::{eventually, in_netns, ip, run};

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// A namespace whose packets are tracked: those to port 1002 get a mark, those to port 1003 another and
/// their source translated, those to port 1004 a zone.
fn track() {
    let rules = "
        table inet t {
            chain zones { type filter hook output priority raw; udp dport 1004 ct zone set 5; }
            chain marks {
                type filter hook output priority 0;
                udp dport 1002 ct mark set 0x00070000
                udp dport 1003 ct mark set 0x0008abcd
                ct state new counter
            }
            chain nat {
                type nat hook postrouting priority 100;
                ip saddr 127.0.0.0/8 udp dport 1003 snat ip to 127.0.0.99
                ip6 saddr fd00::/8 udp dport 1003 snat ip6 to fd00::99
            }
        }";
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    run(&format!("nft -f {}", file.path().display()));
    for n in [1, 2, 3, 99] {
        ip(&format!("-6 address add fd00::{n}/128 dev lo nodad"));
        // The kernel makes the address usable behind the caller's back.
        eventually("a local address", || {
            ip(&format!("-6 route get fd00::{n}")).starts_with("local")
        });
    }
}

/// Sends one packet, from source `n` of a family.
fn send(family: Family, n: u8, port: u16) -> SocketAddr {
    let socket = UdpSocket::bind((source(family, n), 0)).unwrap();
    socket.send_to(b"x", (source(family, 1), port)).unwrap();
    socket.local_addr().unwrap()
}

fn source(family: Family, n: u8) -> IpAddr {
    match family {
        Family::IPv4 => IpAddr::from([127, 0, 0, n]),
        Family::IPv6 => format!("fd00::{n}").parse().unwrap(),
    }
}

/// Source address and destination port of the original direction of all entries of UDP, as `conntrack`
/// lists them.
fn listed() -> BTreeSet<(IpAddr, u16)> {
    let mut all = BTreeSet::new();
    for family in ["ipv4", "ipv6"] {
        for line in run(&format!("conntrack -L -p udp -f {family}")).lines() {
            let word = |key: &str| line.split_whitespace().find_map(|w| w.strip_prefix(key)).unwrap();
            all.insert((word("src=").parse().unwrap(), word("dport=").parse().unwrap()));
        }
    }
    all
}

fn of(flows: &[Flow]) -> BTreeSet<(IpAddr, u16)> {
    let ends = |flow: &Flow| match flow.original.layer4 {
        Layer4::Ports { destination, .. } => (flow.original.source, destination),
        other => panic!("{other:?}"),
    };
    flows.iter().map(ends).collect()
}

fn is_udp(flow: &Flow) -> bool {
    flow.protocol == IPPROTO_UDP
}

/// Entries of both families from two sources to all kinds of ports.
fn many() -> BTreeSet<(IpAddr, u16)> {
    track();
    let mut all = BTreeSet::new();
    for family in [Family::IPv4, Family::IPv6] {
        for n in [2, 3] {
            for port in [1001, 1002, 1003, 1004] {
                send(family, n, port);
                all.insert((source(family, n), port));
            }
        }
    }
    assert_eq!(listed(), all, "the second opinion does not see what was sent");
    all
}

fn without(all: &BTreeSet<(IpAddr, u16)>, gone: impl Fn(IpAddr, u16) -> bool) -> BTreeSet<(IpAddr, u16)> {
    all.iter()
        .filter(|(ip, port)| !gone(*ip, *port))
        .copied()
        .collect()
}

#[test]
fn entries_are_listed_as_they_are() {
    in_netns(|| async {
        let all = many();
        let mut conntrack = Conntrack::open().unwrap();
        let flows = conntrack.flows(Filter::default(), is_udp).await.unwrap();
        assert_eq!(of(&flows), all);
        for flow in flows {
            let Layer4::Ports { destination, .. } = flow.original.layer4 else {
                panic!("{flow:?}");
            };
            let family = flow.family();
            assert_eq!(flow.original.destination, source(family, 1));
            let seen = if destination == 1003 {
                source(family, 99)
            } else {
                flow.original.source
            };
            assert_eq!(flow.reply.destination, seen);
            assert_eq!(flow.is_source_translated(), destination == 1003);
            let mark = match destination {
                1002 => 0x0007_0000,
                1003 => 0x0008_abcd,
                _ => 0,
            };
            assert_eq!(flow.mark, mark, "{flow:?}");
        }
    });
}

#[test]
fn a_filter_takes_what_it_says() {
    in_netns(|| async {
        let all = many();
        let mut conntrack = Conntrack::open().unwrap();
        for family in [Family::IPv4, Family::IPv6] {
            let of_source = Filter {
                source: Some(source(family, 2)),
                mark: None,
            };
            let flows = conntrack.flows(of_source, is_udp).await.unwrap();
            assert_eq!(of(&flows), without(&all, |ip, _| ip != source(family, 2)));
            let both = Filter {
                mark: Some((0x0008_0000, 0x3fff_0000)),
                ..of_source
            };
            let flows = conntrack.flows(both, is_udp).await.unwrap();
            assert_eq!(
                of(&flows),
                without(&all, |ip, port| ip != source(family, 2) || port != 1003)
            );
        }
        let marked = Filter {
            source: None,
            mark: Some((0x0007_0000, 0x3fff_0000)),
        };
        let flows = conntrack.flows(marked, |_| true).await.unwrap();
        assert_eq!(of(&flows), without(&all, |_, port| port != 1002));
    });
}

#[test]
fn entries_of_a_source_are_deleted_and_no_others() {
    for family in [Family::IPv4, Family::IPv6] {
        in_netns(move || async move {
            let all = many();
            let mut conntrack = Conntrack::open().unwrap();
            conntrack.delete_by_source(source(family, 2)).await.unwrap();
            assert_eq!(listed(), without(&all, |ip, _| ip == source(family, 2)));
            conntrack.delete_by_source(source(family, 2)).await.unwrap();
            conntrack.delete_by_source(source(family, 77)).await.unwrap();
            assert_eq!(listed(), without(&all, |ip, _| ip == source(family, 2)));
        });
    }
}

#[test]
fn entries_of_a_mark_are_deleted_and_no_others() {
    in_netns(|| async {
        let all = many();
        let mut conntrack = Conntrack::open().unwrap();
        let refused = conntrack.delete_by_mark(0, 0).await;
        assert!(matches!(refused, Err(ConntrackError::EmptyMask)));
        assert_eq!(listed(), all);
        conntrack.delete_by_mark(0x0008_0000, 0x3fff_0000).await.unwrap();
        assert_eq!(listed(), without(&all, |_, port| port == 1003));
        conntrack.delete_by_mark(0x0008_0000, 0x3fff_0000).await.unwrap();
        assert_eq!(listed(), without(&all, |_, port| port == 1003));
    });
}

/// Each alone, so that one that deletes more is found out; with zones, and of both families.
#[test]
fn one_entry_is_deleted_and_no_other() {
    in_netns(|| async {
        let mut left = many();
        let mut conntrack = Conntrack::open().unwrap();
        let flows = conntrack.flows(Filter::default(), is_udp).await.unwrap();
        for flow in flows {
            conntrack.delete(&[flow]).await.unwrap();
            left.retain(|end| !of(&[flow]).contains(end));
            assert_eq!(listed(), left);
            conntrack.delete(&[flow]).await.unwrap();
        }
        assert_eq!(left.len(), 0);
    });
}

/// The same addresses and ports, but another connection: the entry of the first is gone.
#[test]
fn an_entry_that_took_the_place_of_another_stays() {
    in_netns(|| async {
        track();
        let socket = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
        let mut conntrack = Conntrack::open().unwrap();
        socket.send_to(b"x", "127.0.0.1:1001").unwrap();
        let first = conntrack.flows(Filter::default(), is_udp).await.unwrap();
        conntrack.delete(&first).await.unwrap();
        assert_eq!(listed().len(), 0);
        socket.send_to(b"x", "127.0.0.1:1001").unwrap();
        let second = conntrack.flows(Filter::default(), is_udp).await.unwrap();
        assert_eq!(first[0].original, second[0].original);
        if first[0].id == second[0].id {
            // The kernel has put it in the same memory; it is the same to all who look.
            return;
        }
        conntrack.delete(&first).await.unwrap();
        assert_eq!(listed().len(), 1);
    });
}

#[test]
fn tcp_and_icmp_are_entries_too() {
    for (family, number, kind) in [(Family::IPv4, "icmp", 8), (Family::IPv6, "icmpv6", 128)] {
        in_netns(move || async move {
            track();
            let listener = TcpListener::bind((source(family, 1), 0)).unwrap();
            let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            near.write_all(b"x").unwrap();
            far.read_exact(&mut [0]).unwrap();
            let (from, to) = (source(family, 5), source(family, 1));
            let echo = format!("--icmp-type {kind} --icmp-code 0 --icmp-id 7")
                .replace("icmp-", &format!("{number}-"));
            run(&format!(
                "conntrack -I -p {number} -s {from} -d {to} {echo} -t 60"
            ));

            let mut conntrack = Conntrack::open().unwrap();
            let flows = conntrack.flows(Filter::default(), |_| true).await.unwrap();
            let tcp: Vec<_> = flows
                .iter()
                .filter(|f| f.protocol == IPPROTO_TCP)
                .copied()
                .collect();
            let icmp: Vec<_> = flows
                .iter()
                .filter(|f| f.original.source == from)
                .copied()
                .collect();
            assert_eq!((tcp.len(), icmp.len()), (1, 1), "{flows:?}");
            let wanted = Layer4::Icmp { id: 7, kind, code: 0 };
            assert_eq!(icmp[0].original.layer4, wanted);
            conntrack.delete(&icmp).await.unwrap();
            conntrack.delete(&tcp).await.unwrap();
            let flows = conntrack.flows(Filter::default(), |f| {
                f.original.source == from || f.protocol == IPPROTO_TCP
            });
            assert_eq!(flows.await.unwrap(), []);
        });
    }
}

/// More than one message can hold, some of them gone before: every batch gets through.
#[test]
fn many_entries_are_deleted_in_batches() {
    in_netns(|| async {
        track();
        let socket = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
        for port in 2000..5000 {
            socket.send_to(b"x", ("127.0.0.1", port)).unwrap();
        }
        send(Family::IPv4, 3, 1001);
        let mut conntrack = Conntrack::open().unwrap();
        let of_source = Filter {
            source: Some(source(Family::IPv4, 2)),
            mark: None,
        };
        let flows = conntrack.flows(of_source, |_| true).await.unwrap();
        assert_eq!(flows.len(), 3000);
        let early: Vec<_> = flows.iter().step_by(2).copied().collect();
        conntrack.delete(&early).await.unwrap();
        conntrack.delete(&flows).await.unwrap();
        assert_eq!(listed(), BTreeSet::from([(source(Family::IPv4, 3), 1001)]));
    });
}

/// Not a bound, a figure: `cargo test --test network -- --nocapture figures`.
#[test]
fn figures_for_a_large_table() {
    in_netns(|| async {
        track();
        let socket = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
        for n in 0..20_000_u16 {
            let [a, b] = n.to_be_bytes();
            socket.send_to(b"x", (IpAddr::from([127, 1, a, b]), 9)).unwrap();
        }
        let few = UdpSocket::bind(("127.0.0.3", 0)).unwrap();
        for port in 2000..2100 {
            few.send_to(b"x", ("127.1.0.1", port)).unwrap();
        }
        let mut conntrack = Conntrack::open().unwrap();
        let start = Instant::now();
        let (mut all, mut seen) = (0, BTreeSet::new());
        let look = |flow: &Flow| {
            all += 1;
            seen.insert(flow.original.source);
        };
        conntrack.for_each(Filter::default(), look).await.unwrap();
        println!("{all} entries looked through in {:?}", start.elapsed());
        assert!(all >= 20_100, "{all}");
        let start = Instant::now();
        let of_source = Filter {
            source: Some(source(Family::IPv4, 3)),
            mark: None,
        };
        let flows = conntrack.flows(of_source, |_| true).await.unwrap();
        println!("{} of them filtered in {:?}", flows.len(), start.elapsed());
        let start = Instant::now();
        conntrack.delete_by_source(source(Family::IPv4, 3)).await.unwrap();
        println!("and deleted in {:?}", start.elapsed());
        assert_eq!(flows.len(), 100);
        let flows = conntrack.flows(of_source, |_| true).await.unwrap();
        assert_eq!(flows, []);
    });
}
