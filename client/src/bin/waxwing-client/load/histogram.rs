//! Durations counted in buckets whose width grows with the value: any number of them in fixed memory, each quantile
//! right to less than one part in a hundred.

use std::time::Duration;

/// Buckets to each doubling; the widest error is half of one part in so many.
const STEPS: u64 = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Doublings above the first: microseconds up to 2^32, which is more than an hour. What is longer counts as that.
const DOUBLINGS: u64 = 32 - STEP_BITS as u64;

/// Counts durations, in microseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u32>,
    count: u64,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; ((DOUBLINGS + 1) * STEPS) as usize], count: 0, longest: Duration::ZERO }
    }
}

/// Values below `STEPS` have a bucket each; above, each doubling has `STEPS` of them.
fn bucket(microseconds: u64) -> usize {
    let value = microseconds.min(u64::from(u32::MAX));
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEP_BITS;
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket as f64;
    }
    let shift = (bucket - STEPS) / STEPS;
    let low = (bucket - shift * STEPS) << shift;
    low as f64 + ((1_u64 << shift) - 1) as f64 / 2.0
}

impl Histogram {
    pub fn add(&mut self, value: Duration) {
        let microseconds = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(microseconds)] += 1;
        self.count += 1;
        self.longest = self.longest.max(value);
    }

    /// Adds all that the other counted.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += more;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value below which the fraction (0 to 1) of all values lies, in milliseconds; nothing without values. The
    /// value of rank `ceil(fraction × count)`, as quantiles of a sorted list are taken.
    pub fn quantile(&self, fraction: f64) -> Option<f64> {
        let rank = ((fraction * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Some((middle(index) / 1e3).min(self.longest.as_secs_f64() * 1e3));
            }
        }
        None
    }

    /// The longest, in milliseconds, exactly.
    pub fn max(&self) -> Option<f64> {
        (self.count > 0).then_some(self.longest.as_secs_f64() * 1e3)
    }
}

/// The median of some figures: the middle one, or the mean of the two in the middle.
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = figures.iter().copied().filter(|figure| figure.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(values: &[u64], fraction: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let rank = (fraction * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1] as f64 / 1e3
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_list() {
        // From microseconds to minutes, far from uniform.
        let values: Vec<u64> = (1..=5000_u64).map(|n| n * n * (n % 7 + 1)).collect();
        let mut histogram = Histogram::default();
        let mut other = Histogram::default();
        for (number, value) in values.iter().enumerate() {
            let half = if number % 2 == 0 { &mut histogram } else { &mut other };
            half.add(Duration::from_micros(*value));
        }
        histogram.merge(&other);
        assert_eq!(histogram.count(), 5000);
        for fraction in [0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let (found, wanted) = (histogram.quantile(fraction).unwrap(), exact(&values, fraction));
            assert!((found - wanted).abs() <= wanted * 0.01, "{fraction}: {found} for {wanted}");
        }
        assert_eq!(histogram.max(), values.iter().max().map(|longest| *longest as f64 / 1e3));
    }

    #[test]
    fn buckets_rise_without_gaps_to_the_last() {
        let mut last = 0;
        for exponent in 0..32 {
            for value in [1_u64 << exponent, (1 << exponent) + (1 << exponent) / 3] {
                let at = bucket(value);
                assert!(at >= last, "{value}");
                last = at;
                assert!((middle(at) - value as f64).abs() <= value as f64 / STEPS as f64, "{value}");
            }
        }
        assert_eq!(bucket(STEPS - 1) + 1, bucket(STEPS));
        assert!(bucket(u64::MAX) < Histogram::default().buckets.len());
    }

    #[test]
    fn nothing_has_no_quantiles_and_one_value_has_itself() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (None, None));
        histogram.add(Duration::from_secs(100_000));
        assert_eq!(histogram.quantile(0.99), histogram.quantile(0.01));
        assert_eq!(histogram.max(), Some(1e8));
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, f64::NAN, 2.0, 3.0]), Some(2.5));
    }
}
