//! A pod that sends all the time.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use egressnat_e2e::topology::{PORT, Packet, Pod, SERVER, Transport};

use crate::lab::ok;

/// Whether a packet is a datagram to the server.
pub fn is_senders(packet: &Packet) -> bool {
    matches!(packet.transport, Transport::Udp(_, PORT)) && SERVER.both().contains(&packet.destination)
}

/// A pod that sends a datagram to the server every few milliseconds in both families, by an old connection and by a new
/// one. Ends when dropped.
pub struct Sender {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    pub fn start(pod: &Pod) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let bind = || {
            SERVER
                .both()
                .map(|server| UdpSocket::bind((unspecified(server), 0)))
        };
        let work = move || {
            let old = bind().map(|socket| socket.expect("a socket"));
            while stopped.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                for (old, server) in old.iter().zip(SERVER.both()) {
                    let new = UdpSocket::bind((unspecified(server), 0)).expect("a socket");
                    for socket in [old, &new] {
                        // Refused while there is no way: that is as good as dropped.
                        let _ = socket.send_to(b"still there?", SocketAddr::new(server, PORT));
                    }
                }
            }
        };
        Self {
            stop: Some(stop),
            thread: Some(ok(pod.netns.run(|| thread::spawn(work)))),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
