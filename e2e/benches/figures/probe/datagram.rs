//! UDP: a flood, and round trips.

use std::{
    io::{self, ErrorKind, IoSlice},
    net::UdpSocket,
    os::fd::AsRawFd,
    time::Instant,
};

use anyhow::{Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt},
};

use super::{QUIT, RECEIVER, SENDER, Way, Window, ends, limit, pinned};
use crate::stats::percentile;

/// Payload of a datagram, in octets.
const DATAGRAM: usize = 64;
/// Datagrams per system call.
const BATCH: usize = 64;
/// The receiver must not lose what arrives while another program has its core.
const RECEIVE_BUFFER: usize = 64 << 20;

/// Latencies of round trips, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are below.
    pub p99: f64,
}

/// 64-octet datagrams from the client, per second as the server counts.
pub fn udp_pps(way: Way<'_>, window: Window) -> Result<f64> {
    let (client, server) = datagram_sockets(way)?;
    setsockopt(&server, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    server.set_nonblocking(true)?;
    let (sent, received) = ends(
        || pinned(SENDER, || send_datagrams(&client, window)),
        || pinned(RECEIVER, || count_datagrams(&server, window)),
    )?;
    sent?;
    let count = received?;
    ensure!(count > 0, "no datagram arrived");
    Ok(count as f64 / window.counted.as_secs_f64())
}

/// Datagrams of 64 octets to the server and back, one after the other.
pub fn round_trip(way: Way<'_>, window: Window) -> Result<RoundTrip> {
    let (client, server) = datagram_sockets(way)?;
    limit(&client)?;
    limit(&server)?;
    let (took, echoed) = ends(
        || pinned(SENDER, || ping_for(&client, window)),
        || pinned(SENDER, || echo(&server)),
    )?;
    let mut took = took?;
    echoed?;
    took.sort_by(f64::total_cmp);
    ensure!(took.len() >= 1000, "only {} round trips", took.len());
    Ok(RoundTrip {
        p50: percentile(&took, 0.5),
        p99: percentile(&took, 0.99),
    })
}

fn datagram_sockets(way: Way<'_>) -> Result<(UdpSocket, UdpSocket)> {
    let server = way.server.run(|| UdpSocket::bind((way.address, 0)))??;
    let address = server.local_addr()?;
    let client = way.client.run(|| -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(address)?;
        Ok(socket)
    })??;
    Ok((client, server))
}

fn send_datagrams(socket: &UdpSocket, window: Window) -> io::Result<()> {
    let data = [0; DATAGRAM];
    let slices = [[IoSlice::new(&data)]; BATCH];
    let addresses = [None::<SockaddrIn>; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let end = Instant::now() + window.warm_up + window.counted;
    while Instant::now() < end {
        let fd = socket.as_raw_fd();
        match sendmmsg(fd, &mut headers, &slices, addresses, [], MsgFlags::empty()) {
            // No memory for a moment: those datagrams are lost, which the receiver's count shows.
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Asks again and again instead of sleeping: waking it would be the sender's work.
fn count_datagrams(socket: &UdpSocket, window: Window) -> io::Result<usize> {
    let mut data = [0; 2 * DATAGRAM];
    let begin = Instant::now() + window.warm_up;
    let end = begin + window.counted;
    let (mut count, mut now) = (0, Instant::now());
    while now < end {
        for _ in 0..BATCH {
            match socket.recv(&mut data) {
                Ok(_) if now >= begin => count += 1,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        now = Instant::now();
    }
    Ok(count)
}

/// What each round trip after the warm-up took, in microseconds.
fn ping_for(socket: &UdpSocket, window: Window) -> io::Result<Vec<f64>> {
    let mut data = [0; DATAGRAM];
    let mut took = Vec::new();
    let begin = Instant::now() + window.warm_up;
    let end = begin + window.counted;
    let mut before = Instant::now();
    while before < end {
        socket.send(&data)?;
        socket.recv(&mut data)?;
        let after = Instant::now();
        if before >= begin {
            took.push((after - before).as_nanos() as f64 / 1e3);
        }
        before = after;
    }
    socket.send(&[QUIT])?;
    Ok(took)
}

fn echo(socket: &UdpSocket) -> io::Result<()> {
    let mut data = [0; 2 * DATAGRAM];
    loop {
        let (length, client) = socket.recv_from(&mut data)?;
        if data[..length] == [QUIT] {
            return Ok(());
        }
        socket.send_to(&data[..length], client)?;
    }
}
