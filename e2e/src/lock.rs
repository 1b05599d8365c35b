//! One `up`, `down` or test run of a cluster at a time, on the whole machine: two checkouts would use the same
//! namespaces and control groups.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    time::Duration,
};

use crate::{
    error::{Context, Result},
    progress::Progress,
    site::Site,
    wait,
};

const DEADLINE: Duration = Duration::from_secs(3600);

/// The lock of a cluster. It is a socket bound to a name that is no file: it ends with this value, or with its
/// holder's process, and leaves nothing behind.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for the name that it is bound to")] UnixListener);

impl Lock {
    /// Takes the lock, waiting for whoever has it.
    ///
    /// # Errors
    /// When it is still taken after an hour.
    pub fn take(site: &Site, progress: &Progress) -> Result<Self> {
        let name = format!("egressnat-e2e/{}", site.cluster());
        let bind =
            || SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
        match bind() {
            Ok(listener) => return Ok(Self(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                progress.step(&format!(
                    "waiting for another user of the cluster {}",
                    site.cluster()
                ));
            }
            other => {
                return other
                    .map(Self)
                    .context(|| format!("lock the cluster {}", site.cluster()));
            }
        }
        let listener = wait::until(&format!("the lock of {}", site.cluster()), DEADLINE, bind)?;
        Ok(Self(listener))
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, thread};

    use super::*;

    #[test]
    fn a_second_taker_waits_for_the_first() {
        let site = Site::new(&format!("lock-test-{}", std::process::id()), Path::new("lab"));
        let progress = Progress::new(true);
        let first = Lock::take(&site, &progress).unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| Lock::take(&site, &Progress::new(true)));
            let early = wait::until("the second taker", Duration::from_millis(200), || {
                if second.is_finished() {
                    Ok(())
                } else {
                    Err("it waits")
                }
            });
            assert!(early.is_err(), "the lock was given twice");
            drop(first);
            second.join().unwrap().unwrap();
        });
    }
}
