//! What is measured on a way: single-stream TCP, small UDP datagrams, connections, round trips.
//!
//! Sockets are new each time, and so are their conntrack entries. Each end has a core of its own; where one
//! waits for the other at every step both share one, since a wake-up across cores would be all that is seen.

use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use egressnat_e2e::netns::Netns;
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
    unistd::Pid,
};

use crate::stats::percentile;

/// A client and a server, and what lies between them.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Where the client is.
    pub client: &'a Netns,
    /// Where the server is.
    pub server: &'a Netns,
    /// The server's address.
    pub address: IpAddr,
}

/// How long one measurement takes.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Not counted, at the beginning.
    pub warm_up: Duration,
    /// Counted.
    pub counted: Duration,
}

/// Latencies of round trips, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are below.
    pub p99: f64,
}

/// The core of whoever sends; packets are also forwarded there.
const SENDER: usize = 0;
/// The core of whoever only receives.
const RECEIVER: usize = 1;

/// An end that hears nothing for so long has lost the other.
const PATIENCE_SECONDS: i64 = 5;
/// Octets per write, as iperf3 has it.
const WRITE: usize = 128 << 10;
/// Payload of a datagram, in octets.
const DATAGRAM: usize = 64;
/// Datagrams per system call.
const BATCH: usize = 64;
/// The receiver must not lose what arrives while another program has its core.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Ends a server; no other message is one octet of this value.
const QUIT: u8 = b'q';

/// Single-stream TCP from the client, in Gbit/s as the server counts.
pub fn tcp_throughput(way: Way<'_>, window: Window) -> Result<f64> {
    let (listener, address) = listen(way)?;
    let client = way.client.run(|| TcpStream::connect(address))??;
    let (server, _) = listener.accept()?;
    limit(&client)?;
    limit(&server)?;
    let (sent, received) = ends(
        || pinned(SENDER, || send_stream(client, window)),
        || pinned(RECEIVER, || count_stream(server, window)),
    )?;
    sent?;
    let (octets, elapsed) = received?;
    Ok(octets as f64 * 8.0 / 1e9 / elapsed.as_secs_f64())
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

/// TCP connections one after the other, each with one octet there and one back, per second.
pub fn connections(way: Way<'_>, window: Window) -> Result<f64> {
    let (listener, address) = listen(way)?;
    let (made, served) = ends(
        || way.client.run(|| pinned(SENDER, || connect_for(address, window))),
        || pinned(SENDER, || serve_connections(&listener)),
    )?;
    let rate = made??;
    served?;
    Ok(rate)
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

fn listen(way: Way<'_>) -> Result<(TcpListener, SocketAddr)> {
    let listener = way.server.run(|| TcpListener::bind((way.address, 0)))??;
    limit(&listener)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
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

/// Accepting, reading and writing give up after [`PATIENCE_SECONDS`].
fn limit(socket: &impl std::os::fd::AsFd) -> Result<()> {
    let limit = TimeVal::seconds(PATIENCE_SECONDS);
    setsockopt(socket, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(socket, sockopt::SendTimeout, &limit)?;
    Ok(())
}

/// Runs both ends at the same time.
fn ends<A: Send, B: Send>(
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> Result<(A, B)> {
    thread::scope(|scope| {
        let (first, second) = (scope.spawn(first), scope.spawn(second));
        let died = |_| anyhow!("one end has panicked");
        Ok((first.join().map_err(died)?, second.join().map_err(died)?))
    })
}

/// Runs `work` with the calling thread on one core, where it stays.
fn pinned<T>(core: usize, work: impl FnOnce() -> io::Result<T>) -> Result<T> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("failed to use core {core}"))?;
    Ok(work()?)
}

fn send_stream(mut stream: TcpStream, window: Window) -> io::Result<()> {
    let data = vec![0; WRITE];
    let end = Instant::now() + window.warm_up + window.counted;
    while Instant::now() < end {
        stream.write_all(&data)?;
    }
    Ok(())
}

/// The octets that arrived after the warm-up, and in which time.
fn count_stream(mut stream: TcpStream, window: Window) -> io::Result<(usize, Duration)> {
    let mut data = vec![0; 2 * WRITE];
    let warm = Instant::now() + window.warm_up;
    let (mut begin, mut last, mut octets) = (None, warm, 0);
    loop {
        let length = stream.read(&mut data)?;
        let now = Instant::now();
        match begin {
            _ if length == 0 => break,
            None if now >= warm => begin = Some(now),
            None => {}
            Some(_) if now > warm + window.counted => break,
            Some(_) => {
                octets += length;
                last = now;
            }
        }
    }
    let begin = begin.ok_or(ErrorKind::UnexpectedEof)?;
    // The sender may still have something to say.
    io::copy(&mut stream, &mut io::sink())?;
    Ok((octets, last - begin))
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

fn connect_for(address: SocketAddr, window: Window) -> io::Result<f64> {
    let warm = Instant::now() + window.warm_up;
    let (mut begin, mut count) = (None, 0_u32);
    let rate = loop {
        connect_once(address, 0)?;
        let now = Instant::now();
        match begin {
            None if now >= warm => begin = Some(now),
            None => {}
            Some(begin) => {
                count += 1;
                let elapsed: Duration = now - begin;
                if elapsed >= window.counted {
                    break f64::from(count) / elapsed.as_secs_f64();
                }
            }
        }
    };
    connect_once(address, QUIT)?;
    Ok(rate)
}

/// Ends by a reset: the port is free again at once.
fn connect_once(address: SocketAddr, message: u8) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &at_once)?;
    stream.write_all(&[message])?;
    stream.read_exact(&mut [0])
}

fn serve_connections(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut message = [0];
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
        if message == [QUIT] {
            return Ok(());
        }
    }
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
