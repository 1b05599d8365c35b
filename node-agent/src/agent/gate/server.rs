//! The socket at which the plugin asks. Root's alone, and bounded in everything that comes in by it.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cni::gate::{Answer, LONGEST, Request};

/// Requests under way at once: a node that boots starts some hundred pods. More wait to be accepted.
const AT_ONCE: usize = 256;
/// A plugin writes its request at once.
const READ: Duration = Duration::from_secs(2);

/// A request, and where its answer goes.
pub struct Asked {
    /// What the plugin asks.
    pub request: Request,
    /// The plugin may have given up: then nobody listens.
    pub answer: oneshot::Sender<Answer>,
}

/// Listens at `socket`, whose folder is made where it is missing, and yields requests from then on.
pub fn listen(socket: &Path) -> io::Result<mpsc::Receiver<Asked>> {
    if let Some(folder) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    // Of an agent that has ended: nobody listens there any more.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let (sender, receiver) = mpsc::channel(AT_ONCE);
    tokio::spawn(accept(listener, sender));
    Ok(receiver)
}

async fn accept(listener: UnixListener, sender: mpsc::Sender<Asked>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "failed to accept a connection of the start gate");
                tokio::time::sleep(READ).await;
                continue;
            }
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(stream, sender).await {
                debug!(%error, "a request to the start gate came to nothing");
            }
            drop(slot);
        });
    }
}

async fn serve(stream: UnixStream, sender: mpsc::Sender<Asked>) -> io::Result<()> {
    if stream.peer_cred()?.uid() != 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut lines = BufReader::new(read.take(LONGEST));
    timeout(READ, lines.read_line(&mut line)).await??;
    let (answer, answered) = oneshot::channel();
    let request = serde_json::from_str(&line)?;
    let asked = Asked { request, answer };
    sender.send(asked).await.map_err(io::Error::other)?;
    let answer = answered.await.map_err(io::Error::other)?;
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    write.write_all(&line).await
}
