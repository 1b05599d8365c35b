//! From the rounds' samples to records: each variant with its baseline, and large plans with small ones.

use crate::{
    plan::{LARGE, SMALL, Scale},
    results::{Record, Target},
    rounds::{Metric, Samples},
    stats::{Summary, paired_ratio},
    variant::{Kind, Variant},
};

/// Every figure of the datapath.
pub fn records(variants: &[Variant<'_>], samples: &Samples) -> Vec<Record> {
    let values = |kind: Kind, scale: Option<Scale>, metric| {
        let place = variants.iter().position(|v| v.kind == kind && v.scale == scale);
        place.and_then(|place| samples.get(&(place, metric)))
    };
    let mut records = Vec::new();
    for metric in Metric::ALL {
        for Variant { kind, scale, .. } in variants {
            let Some(own) = values(*kind, *scale, metric) else {
                continue;
            };
            let name = format!("{}_{}", kind.name(), metric.name());
            let record = Record::new(name, metric.unit(), own);
            let record = labelled(record, *scale);
            let alike = |b| values(b, *scale, metric).or_else(|| values(b, None, metric));
            let baseline = kind.baseline().and_then(|b| Some((b, alike(b)?)));
            records.push(match baseline {
                Some((kind_of, other)) => {
                    against(record, kind_of.name(), own, other).target(target(*kind, metric))
                }
                None => record,
            });
        }
        for Variant { kind, scale, .. } in variants {
            let Some(second) = kind.second_baseline() else {
                continue;
            };
            let both = values(*kind, *scale, metric).zip(values(second, None, metric));
            let Some((own, other)) = both else { continue };
            let name = format!("{}_{}_to_{}", kind.name(), metric.name(), second.name());
            let record = labelled(Record::new(name, metric.unit(), own), *scale);
            records.push(against(record, second.name(), own, other));
        }
        for kind in [Kind::Unselected, Kind::Local, Kind::Tunnel] {
            let both = values(kind, Some(LARGE), metric).zip(values(kind, Some(SMALL), metric));
            let Some((large, small)) = both else { continue };
            let name = format!("{}_{}_at_scale", kind.name(), metric.name());
            let record = labelled(Record::new(name, metric.unit(), large), Some(LARGE));
            let to = format!("{} pods, {} policy", SMALL.pods, SMALL.policies);
            records.push(against(record, &to, large, small).target(Target::RatioWithin(0.03)));
        }
    }
    records
}

fn labelled(record: Record, scale: Option<Scale>) -> Record {
    match scale {
        Some(Scale { pods, policies }) => record.label("pods", pods).label("policies", policies),
        None => record,
    }
}

fn against(record: Record, name: &str, own: &[f64], other: &[f64]) -> Record {
    Record {
        baseline: Some(Summary::of(other).median),
        ratio: Some(paired_ratio(own, other)),
        ..record.label("baseline", name)
    }
}

fn target(kind: Kind, metric: Metric) -> Option<Target> {
    let least = match (kind, metric) {
        (Kind::Unselected, Metric::TcpThroughput) => 0.98,
        (Kind::Unselected, Metric::UdpPps) => 0.95,
        (Kind::Tunnel, Metric::TcpThroughput | Metric::UdpPps) => 0.95,
        _ => return None,
    };
    Some(Target::RatioAtLeast(least))
}
