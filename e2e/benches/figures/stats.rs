//! Medians, and how far the middle half of the samples spreads.

/// Samples in short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// From the first to the third quartile, as a fraction of the median.
    pub spread: f64,
    /// How many samples there were.
    pub samples: usize,
}

impl Summary {
    /// Of at least one sample.
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = percentile(&sorted, 0.5);
        let middle = percentile(&sorted, 0.75) - percentile(&sorted, 0.25);
        Self {
            median,
            spread: if median == 0.0 { 0.0 } else { middle / median },
            samples: sorted.len(),
        }
    }
}

/// The median of the ratios of samples that were taken one after the other.
pub fn paired_ratio(samples: &[f64], baseline: &[f64]) -> f64 {
    let ratios: Vec<f64> = samples.iter().zip(baseline).map(|(a, b)| a / b).collect();
    Summary::of(&ratios).median
}

/// Between the two nearest of the sorted samples, of which there is at least one.
pub fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let last = sorted.len() - 1;
    let place = fraction * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}
