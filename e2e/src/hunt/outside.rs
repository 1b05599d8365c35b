//! The hosts outside: they answer TCP on every port, and a capture sees every packet that comes to them.

use std::{
    io::{BufReader, Read},
    net::{Ipv6Addr, TcpListener},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    packet::{Frames, Packet},
    place::{FIRST_PORT, OUTSIDE},
};
use crate::{
    error::{Context, Error, Result},
    netns::Netns,
    site::{NODE_PREFIX, Site},
};

/// Where the server listens; all other ports lead to it.
const PORT: u16 = 7;
/// A client that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// The ring in which the kernel keeps packets for tcpdump, in KiB: some seconds of a whole hunt's.
const RING: &str = "131072";

/// The hosts outside; they are gone with this value.
#[derive(Debug)]
pub struct Outside {
    netns: Netns,
}

impl Outside {
    /// Makes the hosts: one namespace on the node network, which has no route to any other.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(site: &Site) -> Result<Self> {
        let fabric = Netns::open(&site.netns("fabric"))?;
        let netns = Netns::anonymous()?;
        // What an earlier hunt has left goes some time after its namespace.
        let _ = fabric.ip("link del hunt");
        fabric.ip(&format!(
            "link add hunt type veth peer name eth0 netns {}\nlink set hunt master br0 up",
            netns.path().display()
        ))?;
        let addresses = OUTSIDE.map(|[v4, v6]| {
            format!(
                "addr add {v4}/{} dev eth0\naddr add {v6}/{} dev eth0 nodad\n",
                NODE_PREFIX.0, NODE_PREFIX.1
            )
        });
        netns.ip(&format!("link set eth0 up\n{}", addresses.concat()))?;
        // A datagram is seen by the capture before any rule. An ICMP error as its answer would be one more packet.
        netns.nft(&format!(
            "table inet hunt {{
                chain raw {{
                    type filter hook prerouting priority raw;
                    meta l4proto udp drop
                }}
                chain ports {{
                    type nat hook prerouting priority dstnat;
                    tcp dport {FIRST_PORT}-65535 redirect to :{PORT}
                }}
            }}"
        ))?;
        Ok(Self { netns })
    }

    /// Answers TCP from now on, as long as the runtime lives.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn serve(&self) -> Result<()> {
        let listen = || "listen outside".to_owned();
        let listener = self
            .netns
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))?
            .context(listen)?;
        listener.set_nonblocking(true).context(listen)?;
        let listener = tokio::net::TcpListener::from_std(listener).context(listen)?;
        tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(echo(client));
                }
            }
        });
        Ok(())
    }

    /// Captures whatever comes in from now on.
    ///
    /// # Errors
    /// When tcpdump cannot be started, or does not begin to capture; the message is its own.
    pub fn capture(&self) -> Result<(Capture, Frames<BufReader<ChildStdout>>)> {
        let mut command = Command::new("tcpdump");
        command.args(["-i", "eth0", "-Q", "in", "-n", "-w", "-", "-U", "-s", "192"]);
        command.args(["-B", RING, "--time-stamp-precision=nano", "ip or ip6"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.netns.spawn(&mut command)?;
        let (Some(stdout), stderr) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::State("tcpdump has no output".into()));
        };
        let mut capture = Capture { child, stderr };
        match Frames::new(BufReader::with_capacity(1 << 20, stdout)) {
            Ok(frames) => Ok((capture, frames)),
            Err(_) => Err(Error::State(format!(
                "failed to start tcpdump: {}",
                capture.said()
            ))),
        }
    }
}

async fn echo(mut client: tokio::net::TcpStream) {
    let mut buffer = [0; 256];
    // A client that goes away in the middle is its own affair.
    while let Ok(Ok(length)) = tokio::time::timeout(PATIENCE, client.read(&mut buffer)).await {
        if length == 0 || client.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    stderr: Option<ChildStderr>,
}

impl Capture {
    /// Tells tcpdump to end; its stream ends once all that it saw is read.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn interrupt(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).context(|| "end tcpdump".into())
    }

    /// How many packets the kernel had no room for, after the stream's end.
    ///
    /// # Errors
    /// When tcpdump does not say it.
    pub fn lost(mut self) -> Result<u64> {
        let said = self.said();
        let mut lines = said.lines();
        let count = lines.find_map(|line| line.strip_suffix(" packets dropped by kernel")?.parse().ok());
        count.ok_or_else(|| Error::State(format!("tcpdump does not say how much it lost: {said}")))
    }

    /// What it says on its way out.
    fn said(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        let _ = self.child.wait();
        said
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.stderr.is_some() {
            let _ = self.interrupt();
            let _ = self.child.wait();
        }
    }
}

/// Reads the next packet, past what is none.
///
/// # Errors
/// When the stream breaks.
pub fn next_packet(frames: &mut Frames<impl Read>, frame: &mut Vec<u8>) -> std::io::Result<Option<Packet>> {
    while let Some(at) = frames.next(frame)? {
        if let Some(packet) = Packet::parse(at, frame) {
            return Ok(Some(packet));
        }
    }
    Ok(None)
}
