//! The external echo server: it tells each client the address that it sees.
//!
//! HTTP over TCP and plain UDP on the same port, IPv4 and IPv6; the answer is the client's address and a
//! newline. HTTP connections stay open for further requests unless the client says otherwise, so that
//! a test can ask again on an old connection.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use crate::error::{Context, Result};

/// Serves on `port` of all addresses. Does not return.
///
/// # Errors
/// When the port is taken.
pub fn run(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let udp = UdpSocket::bind(address).context(|| format!("listen on UDP port {port}"))?;
    let tcp = TcpListener::bind(address).context(|| format!("listen on TCP port {port}"))?;
    thread::spawn(move || serve_udp(&udp));
    for client in tcp.incoming() {
        let client = client.context(|| "accept a connection".into())?;
        // A client that goes away in the middle is its own affair.
        thread::spawn(move || serve_http(client));
    }
    Ok(())
}

/// The address as the client would write it: an IPv4 client of an IPv6 socket gets its IPv4 address.
fn seen(peer: SocketAddr) -> String {
    format!("{}\n", peer.ip().to_canonical())
}

fn serve_udp(socket: &UdpSocket) {
    let mut buffer = [0_u8; 65536];
    loop {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(seen(peer).as_bytes(), peer);
        }
    }
}

fn serve_http(mut client: TcpStream) -> io::Result<()> {
    let body = seen(client.peer_addr()?);
    let mut reader = BufReader::new(client.try_clone()?);
    while let Some(keep_open) = read_request(&mut reader)? {
        let connection = if keep_open { "keep-alive" } else { "close" };
        write!(
            client,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len()
        )?;
        if !keep_open {
            break;
        }
    }
    Ok(())
}

/// Reads a request without a body; `None` at the end of the connection, otherwise whether to keep it open.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<bool>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut keep_open = line.trim_end().ends_with("HTTP/1.1");
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let header = line.trim_end().to_ascii_lowercase();
        match header.as_str() {
            "" => return Ok(Some(keep_open)),
            "connection: close" => keep_open = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_1_1_connection_stays_open_until_the_client_says_close() {
        let mut requests =
            "GET / HTTP/1.1\r\nHost: echo\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n".as_bytes();
        assert_eq!(read_request(&mut requests).unwrap(), Some(true));
        assert_eq!(read_request(&mut requests).unwrap(), Some(false));
        assert_eq!(read_request(&mut requests).unwrap(), None);
    }

    #[test]
    fn an_ipv4_client_sees_its_ipv4_address() {
        assert_eq!(seen("[::ffff:192.0.2.7]:1234".parse().unwrap()), "192.0.2.7\n");
        assert_eq!(seen("[2001:db8::7]:1234".parse().unwrap()), "2001:db8::7\n");
    }
}
