//! What the pods of the leak hunt run: it sends from its first instruction, by UDP every 10 ms and by TCP, with
//! its name in every payload.
//!
//! `sender NAME PORT obey|ignore ADDRESS...`: to this port of each address. It is its container's first process,
//! so that nothing but SIGKILL ends one that ignores SIGTERM.

use std::{
    env,
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    socket::{setsockopt, sockopt::TcpUserTimeout},
};

const TICK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_millis(500);
/// Every so many datagrams one is sent by a new socket, which is a new connection to conntrack.
const NEW_EVERY: usize = 25;
/// After so long without an answer the kernel gives a connection up, its last segment included.
const GIVES_UP: Duration = Duration::from_secs(3);
const REQUEST_EVERY: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [name, port, manner, hosts @ ..] = arguments.as_slice() else {
        return ExitCode::FAILURE;
    };
    let address = |host: &String| Some(SocketAddr::new(host.parse::<IpAddr>().ok()?, port.parse().ok()?));
    let outside: Vec<SocketAddr> = hosts.iter().filter_map(address).collect();
    let signals = terminations(manner == "obey");
    let mut datagrams = Datagrams::new(name);
    datagrams.send(&outside);
    for target in outside.iter().copied().step_by(2) {
        let name = name.clone();
        thread::spawn(move || loop_of_requests(&name, target));
    }
    let (everything, own) = (outside.clone(), name.clone());
    thread::spawn(move || loop_of_connections(&own, &everything));
    loop {
        datagrams.send(&outside);
        if signals
            .as_ref()
            .is_some_and(|fd| matches!(fd.read_signal(), Ok(Some(_))))
        {
            return ExitCode::SUCCESS;
        }
        thread::sleep(TICK);
    }
}

/// Hears SIGTERM, where it is to be obeyed.
fn terminations(obey: bool) -> Option<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().ok()?;
    obey.then(|| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK).ok())?
}

/// Datagrams to each address in turn.
struct Datagrams<'a> {
    name: &'a str,
    sent: usize,
    /// One that stays, and one that is replaced from time to time.
    sockets: [Option<UdpSocket>; 2],
}

impl<'a> Datagrams<'a> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            sent: 0,
            sockets: [bind(), bind()],
        }
    }

    /// What the network refuses is sent again with the next tick, and missed by nobody.
    fn send(&mut self, outside: &[SocketAddr]) {
        if self.sent.is_multiple_of(NEW_EVERY) {
            self.sockets[1] = bind();
        }
        let target = outside[self.sent % outside.len()];
        let socket = &self.sockets[self.sent / outside.len() % 2];
        let payload = format!("{} {}", self.name, self.sent);
        if let Some(socket) = socket {
            let _ = socket.send_to(payload.as_bytes(), mapped(target));
        }
        self.sent += 1;
    }
}

/// For both families.
fn bind() -> Option<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()
}

fn mapped(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        v6 @ SocketAddr::V6(_) => v6,
    }
}

/// Requests on one connection, again and again, until it breaks; then on the next.
fn loop_of_requests(name: &str, target: SocketAddr) {
    loop {
        if let Ok(mut connection) = connect(target) {
            while ask(&mut connection, name).is_ok() {
                thread::sleep(REQUEST_EVERY);
            }
        }
        thread::sleep(TICK);
    }
}

/// A connection for each request.
fn loop_of_connections(name: &str, outside: &[SocketAddr]) {
    for target in outside.iter().copied().cycle() {
        if let Ok(mut connection) = connect(target) {
            let _ = ask(&mut connection, name);
        }
        thread::sleep(REQUEST_EVERY);
    }
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&target, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let gives_up = u32::try_from(GIVES_UP.as_millis()).unwrap_or(u32::MAX);
    setsockopt(&connection, TcpUserTimeout, &gives_up)?;
    Ok(connection)
}

/// The outside sends back what it is sent.
fn ask(connection: &mut TcpStream, name: &str) -> std::io::Result<()> {
    connection.write_all(name.as_bytes())?;
    connection.read_exact(&mut vec![0; name.len()])
}
