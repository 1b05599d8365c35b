//! Waiting for a condition: the lab never sleeps for a fixed time and hopes.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

const PAUSE: Duration = Duration::from_millis(50);

/// Asks `probe` until it answers `Ok`, and returns that answer.
///
/// # Errors
/// After `deadline`: a [`Error::Timeout`] with the last thing that the probe had to say.
pub fn until<T, E: std::fmt::Display>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(value) => return Ok(value),
            Err(error) => error.to_string(),
        };
        if start.elapsed() >= deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                after: deadline,
                last,
            });
        }
        thread::sleep(PAUSE);
    }
}
