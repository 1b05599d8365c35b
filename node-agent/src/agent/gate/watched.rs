//! A folder whose changes are noticed.

use std::io;
use std::path::Path;
use std::thread;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

/// A folder whose changes are noticed (inotify(7)).
pub struct Watched {
    changes: mpsc::Receiver<()>,
}

impl Watched {
    /// Watches the folder, which is made where it is missing, from a thread that waits for the kernel.
    pub fn folder(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(path, flags)?;
        // Which change it was does not matter, nor how many there were.
        let (sender, changes) = mpsc::channel(1);
        thread::spawn(move || {
            while inotify.read_events().is_ok() {
                if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                    return;
                }
            }
        });
        Ok(Self { changes })
    }

    /// Waits until something in the folder has changed. Nothing is lost when the future is dropped. Once the kernel
    /// tells no more, this waits in vain; the folder is looked at once a minute besides.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending().await
        }
    }
}
