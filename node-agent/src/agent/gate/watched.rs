//! A folder whose changes are noticed.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::mpsc;
use tracing::warn;

/// A folder whose changes are noticed (inotify(7)).
pub struct Watched {
    changes: mpsc::Receiver<()>,
}

/// What the thread does that waits for the kernel.
struct Watch {
    inotify: Inotify,
    folder: PathBuf,
    place: Place,
}

/// Where the kernel watches.
struct Place {
    descriptor: WatchDescriptor,
    /// It is the folder itself, and not the closest there is on the way to it.
    arrived: bool,
}

impl Watched {
    /// Watches the folder, be it there or not yet, from a thread that waits for the kernel. What changes after this has
    /// returned is noticed, the folder's own coming and going among it.
    pub fn folder(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        let mut watch = Watch {
            place: place(&inotify, path)?,
            inotify,
            folder: path.to_owned(),
        };
        // Which change it was does not matter, nor how many there were.
        let (sender, changes) = mpsc::channel(1);
        thread::spawn(move || {
            while let Ok(changed) = watch.wait() {
                if changed && let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                    return;
                }
            }
            warn!(folder = %watch.folder.display(), "its changes are not noticed any more");
        });
        Ok(Self { changes })
    }

    /// Waits until something in the folder has changed. Nothing is lost when the future is dropped. Once the kernel
    /// tells no more, this waits in vain.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

impl Watch {
    /// Waits for the kernel, and follows the folder where it comes or goes. Whether anything in the folder may have
    /// changed.
    fn wait(&mut self) -> io::Result<bool> {
        let events = match self.inotify.read_events() {
            Err(Errno::EINTR) => return Ok(false),
            events => events?,
        };
        // The end of a former watch is told as well, and is no news.
        let lost = |event: &InotifyEvent| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        let ours = |event: &&InotifyEvent| event.wd == self.place.descriptor || lost(event);
        let mut ours = events.iter().filter(ours).peekable();
        if ours.peek().is_none() {
            return Ok(false);
        }
        let was_there = self.place.arrived;
        let gone = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_Q_OVERFLOW;
        if !was_there || ours.any(|event| event.mask.intersects(gone)) {
            // What is gone has no watch any more.
            let _ = self.inotify.rm_watch(self.place.descriptor);
            self.place = place(&self.inotify, &self.folder)?;
        }
        Ok(was_there || self.place.arrived)
    }
}

/// Watches the folder, or the closest there is on the way to it.
fn place(inotify: &Inotify, folder: &Path) -> io::Result<Place> {
    let ends = AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_ONLYDIR;
    let comes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    loop {
        let closest = || folder.ancestors().find(|path| path.is_dir());
        let at = closest().ok_or(Errno::ENOENT)?;
        let arrived = at == folder;
        let descriptor = match inotify.add_watch(at, ends | if arrived { changes } else { comes }) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            descriptor => descriptor?,
        };
        // The next one on the way may have come before the watch.
        if closest() == Some(at) {
            return Ok(Place { descriptor, arrived });
        }
        inotify.rm_watch(descriptor)?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn expect_change(watched: &mut Watched, what: &str) {
        timeout(SOON, watched.changed()).await.expect(what);
    }

    /// Several events may be one change, or more.
    fn drain(watched: &mut Watched) {
        while watched.changes.try_recv().is_ok() {}
    }

    #[tokio::test]
    async fn a_folder_is_followed_from_before_it_is_there_until_it_comes_again() {
        let node = tempfile::tempdir().unwrap();
        let folder = node.path().join("cni/results");
        let mut watched = Watched::folder(&folder).unwrap();
        for _ in 0..2 {
            fs::create_dir_all(&folder).unwrap();
            expect_change(&mut watched, "the folder comes").await;
            // Its parent may have been noticed alone: then it is noticed that there is more.
            let file = folder.join("file");
            timeout(SOON, async {
                loop {
                    drain(&mut watched);
                    fs::write(&file, "text").unwrap();
                    if timeout(SOON / 100, watched.changed()).await.is_ok() {
                        return;
                    }
                }
            })
            .await
            .expect("a file is written");
            drain(&mut watched);
            fs::remove_dir_all(node.path().join("cni")).unwrap();
            expect_change(&mut watched, "all goes").await;
        }
    }

    /// The end of each former watch is told by the kernel, too: to follow that would be to go round for ever.
    #[tokio::test]
    async fn a_folder_that_is_not_there_is_waited_for_in_silence() {
        let node = tempfile::tempdir().unwrap();
        let mut watched = Watched::folder(&node.path().join("cni/results")).unwrap();
        for name in ["a", "b"] {
            fs::create_dir(node.path().join(name)).unwrap();
        }
        let changed = timeout(SOON / 50, watched.changed()).await;
        assert!(changed.is_err(), "nothing is there to have changed");
        fs::create_dir_all(node.path().join("cni/results")).unwrap();
        expect_change(&mut watched, "the folder comes").await;
    }

    #[tokio::test]
    async fn a_file_is_noticed_when_it_is_written_and_when_it_goes() {
        let node = tempfile::tempdir().unwrap();
        let mut watched = Watched::folder(node.path()).unwrap();
        fs::write(node.path().join("file"), "text").unwrap();
        expect_change(&mut watched, "a file is written").await;
        fs::remove_file(node.path().join("file")).unwrap();
        expect_change(&mut watched, "a file goes").await;
    }
}
