//! Seeing packets on a wire: tcpdump in a namespace, known to be listening before the test goes on.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    error::{Context, Error, Result},
    netns::Netns,
    wait,
};

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures on an interface (or `any`) what matches a pcap filter, and returns once the socket is open:
    /// no packet from then on is missed.
    ///
    /// # Errors
    /// When tcpdump cannot be started or refuses the filter; the message is its own.
    pub fn start(netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        // Numbers only, a line per packet at once, link-level header for the direction and the addresses.
        command.args(["-i", interface, "-nnetl", "--immediate-mode", filter]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.spawn(&mut command)?;
        let stderr = child.stderr.take().map(BufReader::new);
        let stdout = child.stdout.take().map(BufReader::new);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in stdout
                .into_iter()
                .flat_map(BufRead::lines)
                .map_while(std::result::Result::ok)
            {
                // An empty line is its answer to the interrupt.
                if !line.is_empty() {
                    sink.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        let capture = Self {
            child,
            lines,
            reader: Some(reader),
        };
        wait_listening(stderr.into_iter().flat_map(BufRead::lines))?;
        Ok(capture)
    }

    /// The packets so far, a line each, as tcpdump words them.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a packet's line satisfies `wanted`; returns that line.
    ///
    /// # Errors
    /// After the deadline, with the lines seen.
    pub fn wait_for(&self, what: &str, deadline: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(what, deadline, || {
            let lines = self.lines();
            lines
                .iter()
                .find(|line| wanted(line))
                .cloned()
                .ok_or_else(|| format!("seen: {lines:#?}"))
        })
    }

    /// Ends the capture; returns all packets, those still under way between kernel and tcpdump included.
    ///
    /// # Errors
    /// When tcpdump cannot be told to end.
    pub fn stop(mut self) -> Result<Vec<String>> {
        self.end()?;
        Ok(self.lines())
    }

    fn end(&mut self) -> Result<()> {
        use nix::{
            sys::signal::{Signal, kill},
            unistd::Pid,
        };
        if let Some(reader) = self.reader.take() {
            // On an interrupt tcpdump still prints what it has read.
            let pid = Pid::from_raw(self.child.id().cast_signed());
            kill(pid, Signal::SIGINT).context(|| "end tcpdump".into())?;
            let _ = reader.join();
            self.child.wait().context(|| "wait for tcpdump".into())?;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.end();
    }
}

/// tcpdump says "listening on" once its socket is open; what it says instead is why it is not.
fn wait_listening(lines: impl Iterator<Item = std::io::Result<String>>) -> Result<()> {
    let mut said = Vec::new();
    for line in lines.map_while(std::result::Result::ok) {
        if line.contains("listening on") {
            return Ok(());
        }
        said.push(line);
    }
    Err(Error::State(format!(
        "failed to start tcpdump: {}",
        said.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_filter_is_an_error_with_the_reason() {
        let netns = Netns::anonymous().unwrap();
        let error = Capture::start(&netns, "lo", "no such filter").unwrap_err();
        assert!(error.to_string().contains("syntax error"), "{error}");
    }

    #[test]
    fn sees_a_packet_sent_right_after_the_start() {
        let netns = Netns::anonymous().unwrap();
        let capture = Capture::start(&netns, "lo", "udp port 9").unwrap();
        let sent = netns.run(|| std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9"));
        assert_eq!(sent.unwrap().unwrap(), 1);
        let deadline = Duration::from_secs(5);
        capture
            .wait_for("the packet", deadline, |line| line.contains("127.0.0.1.9: UDP"))
            .unwrap();
        let lines = capture.stop().unwrap();
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }
}
