//! TCP: a stream, and connections.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use super::{QUIT, RECEIVER, SENDER, Way, Window, ends, limit, pinned};

/// Octets per write, as iperf3 has it.
const WRITE: usize = 128 << 10;

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

fn listen(way: Way<'_>) -> Result<(TcpListener, SocketAddr)> {
    let listener = way.server.run(|| TcpListener::bind((way.address, 0)))??;
    limit(&listener)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
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
