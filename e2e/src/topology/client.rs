//! What pods do: ask the server whom it sees, keep connections, move bulk data.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt},
};

use super::server::pattern;
use crate::{
    error::{Context, Error, Result},
    netns::Netns,
};

/// The port of every [`super::Server`] of the topology.
pub const PORT: u16 = 8080;

/// How long an answer may take that should come.
const PATIENCE: Duration = Duration::from_secs(5);

/// A TCP connection to a server, which can be asked again and again.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
}

impl Conversation {
    /// Connects from inside a namespace.
    ///
    /// # Errors
    /// When there is no connection within some seconds.
    pub fn open(netns: &Netns, server: SocketAddr) -> Result<Self> {
        let stream = netns.run(|| TcpStream::connect_timeout(&server, PATIENCE))?;
        let stream = stream.context(|| format!("connect to {server}"))?;
        let conversation = Self {
            stream: BufReader::new(stream),
        };
        conversation.set_patience(PATIENCE)?;
        Ok(conversation)
    }

    /// How long answers may take from now on.
    ///
    /// # Errors
    /// Never for a duration other than zero.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        let stream = self.stream.get_ref();
        let set = stream
            .set_read_timeout(Some(patience))
            .and_then(|()| stream.set_write_timeout(Some(patience)));
        set.context(|| "set a socket's timeouts".into())
    }

    /// The client's port.
    ///
    /// # Errors
    /// Never on an open connection.
    pub fn port(&self) -> Result<u16> {
        let address = self.stream.get_ref().local_addr();
        Ok(address.context(|| "read a socket's address".into())?.port())
    }

    /// Asks whom the server sees.
    ///
    /// # Errors
    /// When no answer comes on this connection.
    pub fn ask(&mut self) -> Result<IpAddr> {
        Ok(self.peer()?.ip())
    }

    /// Asks whom the server sees, and with which port.
    ///
    /// # Errors
    /// When no answer comes on this connection.
    pub fn peer(&mut self) -> Result<SocketAddr> {
        let answer = self.request(b"who\n");
        parse_peer(&answer.context(|| "ask on a TCP connection".into())?)
    }

    /// Ends it at once: a RST, not a FIN.
    ///
    /// # Errors
    /// Never on an open connection.
    pub fn reset(self) -> Result<()> {
        let at_once = linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let set = setsockopt(self.stream.get_ref(), sockopt::Linger, &at_once);
        set.context(|| "set a socket's lingering".into())
    }

    fn request(&mut self, request: &[u8]) -> io::Result<String> {
        self.stream.get_mut().write_all(request)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A UDP socket connected to a server: one conntrack entry as long as it lives.
#[derive(Debug)]
pub struct Flow {
    socket: UdpSocket,
}

impl Flow {
    /// Opens it inside a namespace. Nothing is sent.
    ///
    /// # Errors
    /// When there is no route.
    pub fn open(netns: &Netns, server: SocketAddr) -> Result<Self> {
        let any: SocketAddr = if server.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let socket = netns.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        })?;
        let socket = socket
            .map_err(|error: io::Error| error)
            .context(|| format!("open a UDP socket to {server}"))?;
        Ok(Self { socket })
    }

    /// The client's port.
    ///
    /// # Errors
    /// Never on an open socket.
    pub fn port(&self) -> Result<u16> {
        Ok(self
            .socket
            .local_addr()
            .context(|| "read a socket's address".into())?
            .port())
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// When the kernel refuses it, as it does once after an ICMP error came for an earlier one.
    pub fn send(&self) -> Result<()> {
        self.send_octets(b"who")
    }

    fn send_octets(&self, octets: &[u8]) -> Result<()> {
        self.socket.send(octets).context(|| "send a datagram".into())?;
        Ok(())
    }

    /// Asks whom the server sees; once more where no answer comes at once, as UDP clients do.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn ask(&self) -> Result<IpAddr> {
        Ok(self.peer()?.ip())
    }

    /// As [`Self::ask`], with the port that it sees.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.peer_by(b"who")
    }

    /// As [`Self::peer`], by datagrams of these octets, which the server does not look at.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn peer_by(&self, octets: &[u8]) -> Result<SocketAddr> {
        let mut buffer = [0_u8; 256];
        let mut last = None;
        for _ in 0..4 {
            self.send_octets(octets)?;
            match self.socket.recv(&mut buffer) {
                Ok(length) => return parse_peer(&String::from_utf8_lossy(&buffer[..length])),
                Err(error) => last = Some(error),
            }
        }
        Err(Error::State(format!("failed to get an answer by UDP: {last:?}")))
    }
}

/// Whom a server sees in a new TCP connection from inside a namespace.
///
/// # Errors
/// When there is no answer.
pub fn ask_tcp(netns: &Netns, server: IpAddr) -> Result<IpAddr> {
    Conversation::open(netns, SocketAddr::new(server, PORT))?.ask()
}

/// Whom a server sees in a datagram from inside a namespace.
///
/// # Errors
/// When there is no answer.
pub fn ask_udp(netns: &Netns, server: IpAddr) -> Result<IpAddr> {
    Flow::open(netns, SocketAddr::new(server, PORT))?.ask()
}

/// Sends an ICMP echo request from inside a namespace and waits for the reply.
///
/// # Errors
/// When there is none.
pub fn ping(netns: &Netns, server: IpAddr) -> Result<()> {
    netns.output(Command::new("ping").args(["-n", "-q", "-c", "1", "-W", "2", &server.to_string()]))?;
    Ok(())
}

/// Sends a single SYN and goes away.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn knock_tcp(netns: &Netns, server: IpAddr) -> Result<()> {
    let server = SocketAddr::new(server, PORT);
    // Shorter than the first retransmission. Whether anybody answers is not the question.
    let _ = netns.run(|| TcpStream::connect_timeout(&server, Duration::from_millis(20)))?;
    Ok(())
}

/// Sends a single datagram and goes away.
///
/// # Errors
/// When there is no route.
pub fn knock_udp(netns: &Netns, server: IpAddr) -> Result<()> {
    Flow::open(netns, SocketAddr::new(server, PORT))?.send()
}

/// Sends `length` octets from inside a namespace; the server has compared each.
///
/// # Errors
/// When nothing moves for `patience`, or the octets differ.
pub fn upload(netns: &Netns, server: IpAddr, length: usize, patience: Duration) -> Result<()> {
    let mut conversation = Conversation::open(netns, SocketAddr::new(server, PORT))?;
    conversation.set_patience(patience)?;
    let mut request = format!("take {length}\n").into_bytes();
    request.extend(pattern(length));
    match conversation
        .request(&request)
        .context(|| format!("send {length} octets to {server}"))?
        .as_str()
    {
        "ok" => Ok(()),
        other => Err(Error::State(format!("the server says: {other}"))),
    }
}

/// Fetches `length` octets from inside a namespace and compares each.
///
/// # Errors
/// When nothing moves for `patience`, or the octets differ.
pub fn download(netns: &Netns, server: IpAddr, length: usize, patience: Duration) -> Result<()> {
    let mut conversation = Conversation::open(netns, SocketAddr::new(server, PORT))?;
    conversation.set_patience(patience)?;
    let mut got = vec![0; length];
    let stream = &mut conversation.stream;
    let result = writeln!(stream.get_mut(), "give {length}").and_then(|()| stream.read_exact(&mut got));
    result.context(|| format!("fetch {length} octets from {server}"))?;
    if got == pattern(length) {
        Ok(())
    } else {
        Err(Error::State("the octets differ".into()))
    }
}

fn parse_peer(text: &str) -> Result<SocketAddr> {
    let peer = text.trim().parse::<SocketAddr>();
    peer.map_err(|error| Error::State(format!("not an answer of the server's: {text:?}: {error}")))
}
