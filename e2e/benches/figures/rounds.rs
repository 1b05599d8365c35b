//! Every variant in every round, so that whatever else the machine does meets them all.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result};

use crate::{
    probe::{self, Window},
    variant::Variant,
};

/// What is measured of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Single-stream TCP.
    TcpThroughput,
    /// Datagrams of 64 octets.
    UdpPps,
    /// TCP connections, one after the other.
    Connections,
    /// Median latency of a request.
    RttP50,
    /// 99 of 100 requests take no longer.
    RttP99,
}

impl Metric {
    /// Every one, in the order of all output.
    pub const ALL: [Self; 5] = [
        Self::TcpThroughput,
        Self::UdpPps,
        Self::Connections,
        Self::RttP50,
        Self::RttP99,
    ];

    /// Last part of the results' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpThroughput => "tcp_throughput",
            Self::UdpPps => "udp_pps",
            Self::Connections => "tcp_connections",
            Self::RttP50 => "rtt_p50",
            Self::RttP99 => "rtt_p99",
        }
    }

    /// The unit.
    pub fn unit(self) -> &'static str {
        match self {
            Self::TcpThroughput => "Gbit/s",
            Self::UdpPps | Self::Connections => "1/s",
            Self::RttP50 | Self::RttP99 => "us",
        }
    }
}

/// One value a round, for each variant by its place and each metric.
pub type Samples = BTreeMap<(usize, Metric), Vec<f64>>;

/// Connections and round trips hardly differ from round to round, streams and floods do.
const ROUNDS_PER_STEADY: usize = 4;

/// Measures every variant `rounds` times, by the steady probes in one of [`ROUNDS_PER_STEADY`] rounds. Each round
/// takes one probe after the other, and for each all variants; every other round in the opposite order.
pub fn measure(variants: &[Variant<'_>], rounds: usize, window: Window) -> Result<Samples> {
    let start = Instant::now();
    let mut samples = Samples::new();
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..variants.len()).collect();
        order.rotate_left(round / 2 % variants.len());
        if round % 2 == 1 {
            order.reverse();
        }
        let probes: &[Probe] = match round % ROUNDS_PER_STEADY {
            0 => &[tcp, udp, connections, round_trips],
            _ => &[tcp, udp],
        };
        for probe in probes {
            for &place in &order {
                let variant = &variants[place];
                let values = probe(variant, window);
                let values = values.with_context(|| format!("failed to measure {:?}", variant.kind))?;
                for (metric, value) in values {
                    samples.entry((place, metric)).or_default().push(value);
                }
            }
        }
        let elapsed = start.elapsed().as_secs();
        eprintln!("bench: round {} of {rounds} done after {elapsed} s", round + 1);
    }
    Ok(samples)
}

type Probe = fn(&Variant<'_>, Window) -> Values;
type Values = Result<Vec<(Metric, f64)>>;

fn tcp(variant: &Variant<'_>, window: Window) -> Values {
    let rate = probe::tcp_throughput(variant.way, window)?;
    Ok(vec![(Metric::TcpThroughput, rate)])
}

fn udp(variant: &Variant<'_>, window: Window) -> Values {
    Ok(vec![(Metric::UdpPps, probe::udp_pps(variant.way, window)?)])
}

fn connections(variant: &Variant<'_>, window: Window) -> Values {
    let rate = probe::connections(variant.way, window)?;
    Ok(vec![(Metric::Connections, rate)])
}

fn round_trips(variant: &Variant<'_>, window: Window) -> Values {
    let took = probe::round_trip(variant.way, window)?;
    Ok(vec![(Metric::RttP50, took.p50), (Metric::RttP99, took.p99)])
}
