//! What a program that watches a namespace prints, each line with its time.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use egressnat_e2e::netns::Netns;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A line, and when it was read: seconds since 1970.
pub type Line = (f64, String);

/// In seconds: a benchmark that is killed leaves nothing behind for longer.
const LONGEST: &str = "600";

/// A program that runs until this value is dropped.
pub struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts it in the namespace.
    pub fn start(netns: &Netns, command: &[&str]) -> Result<Self> {
        let mut program = Command::new("timeout");
        program
            .arg(LONGEST)
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = netns.spawn(&mut program)?;
        let stdout = child.stdout.take().context("a program without output")?;
        let lines = Arc::default();
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || read(stdout, &sink));
        Ok(Self {
            child,
            lines,
            reader: Some(reader),
        })
    }

    /// Its lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // `timeout` hands it on. It has said all that was asked for, or has ended by itself.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    seconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn read(output: impl Read, lines: &Mutex<Vec<Line>>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let at = now();
        lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((at, line));
    }
}
