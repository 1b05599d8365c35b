//! The one thing that the lab has in the machine's own network: a loopback port that leads to the API
//! server, so that `kubectl` works on the machine.

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use crate::{
    error::{Context, Result},
    netns::Netns,
};

/// Listens on a free port of 127.0.0.1 *here*, writes the port's number to `port_file`, and passes each
/// connection on to `target` as seen from *inside* the namespace. Does not return.
///
/// # Errors
/// When it cannot listen, or the namespace is not there.
pub fn run(netns: &str, target: SocketAddr, port_file: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context(|| "listen on 127.0.0.1".into())?;
    let port = listener
        .local_addr()
        .context(|| "read the listener's port".into())?
        .port();
    // A listening socket stays in the namespace that it was made in; connections made from now on do not.
    Netns::open(netns)?.enter()?;
    let unfinished = port_file.with_extension("part");
    fs::write(&unfinished, port.to_string())
        .and_then(|()| fs::rename(&unfinished, port_file))
        .context(|| format!("write {}", port_file.display()))?;
    for client in listener.incoming() {
        let client = client.context(|| "accept a connection".into())?;
        thread::spawn(move || {
            if let Err(error) = pass_on(client, target) {
                eprintln!("connection to {target}: {error}");
            }
        });
    }
    Ok(())
}

fn pass_on(client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let upload = thread::spawn(move || copy(from_client, to_server));
    copy(server, client)?;
    upload.join().unwrap_or(Ok(()))
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let result = io::copy(&mut from, &mut to);
    // The other direction goes on until its own end; a peer that is gone already needs no goodbye.
    let _ = to.shutdown(Shutdown::Write);
    result.map(|_| ())
}
