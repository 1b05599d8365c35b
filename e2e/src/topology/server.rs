//! A server that says which address it sees, and takes and gives bulk data.
//!
//! Over UDP every datagram is answered with the client's address and port. Over TCP a connection carries any
//! number of requests, a line each: `who` is answered with the client's address and port; `give N` with N octets
//! of the [pattern]; `take N` is followed by N octets of it, and answered with `ok` or with what was wrong.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use nix::sys::socket;

use crate::{
    error::{Context, Result},
    netns::Netns,
};

/// A running server. Dropping it closes its sockets.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    sockets: Vec<UdpSocket>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves on `port` of each address inside a namespace.
    ///
    /// # Errors
    /// When an address is not the namespace's, or its port is taken.
    pub fn start(netns: &Netns, addresses: &[IpAddr], port: u16) -> Result<Self> {
        let mut server = Self {
            listeners: Vec::new(),
            sockets: Vec::new(),
            connections: Arc::default(),
            threads: Vec::new(),
        };
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            let action = || format!("serve on {address}");
            let bound = netns.run(|| Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?)))?;
            let (listener, udp): (TcpListener, UdpSocket) =
                bound.map_err(|error: io::Error| error).context(action)?;
            server.listeners.push(listener.try_clone().context(action)?);
            server.sockets.push(udp.try_clone().context(action)?);
            let connections = Arc::clone(&server.connections);
            server
                .threads
                .push(thread::spawn(move || accept(&listener, &connections)));
            server.threads.push(thread::spawn(move || answer(&udp)));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the threads, which then see that it is over. "Not connected" is Linux's answer all the same.
        for fd in self
            .listeners
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain(self.sockets.iter().map(AsRawFd::as_raw_fd))
        {
            let _ = socket::shutdown(fd, socket::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for connection in self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// `length` octets that are not the same at every distance, so that a lost or doubled segment shows.
#[must_use]
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0])
        .collect()
}

fn answer(socket: &UdpSocket) {
    let mut buffer = [0_u8; 2048];
    // An empty datagram is what a socket that was shut down gives for ever.
    while let Ok((1.., peer)) = socket.recv_from(&mut buffer) {
        // The client may be gone, or unreachable: then it has no answer.
        let _ = socket.send_to(peer.to_string().as_bytes(), peer);
    }
}

fn accept(listener: &TcpListener, connections: &Mutex<Vec<TcpStream>>) {
    while let Ok((stream, _)) = listener.accept() {
        if let Ok(clone) = stream.try_clone() {
            connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(clone);
        }
        // A client that goes away in the middle is its own affair.
        thread::spawn(move || serve(stream));
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        match line.trim_end().split_once(' ') {
            Some(("give", length)) => stream.write_all(&pattern(number(length)?))?,
            Some(("take", length)) => {
                let wanted = pattern(number(length)?);
                let mut got = vec![0; wanted.len()];
                reader.read_exact(&mut got)?;
                stream.write_all(if got == wanted {
                    b"ok\n"
                } else {
                    b"the octets differ\n"
                })?;
            }
            _ => writeln!(stream, "{peer}")?,
        }
        line.clear();
    }
    Ok(())
}

fn number(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}
