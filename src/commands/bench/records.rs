//! What load processes saw, as a file: pairs of little-endian u64, the job's id and a time in ns.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// The longest time a histogram holds, in ns: longer ones count as this.
const LONGEST_NS: u64 = 600_000_000_000;

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(in crate::commands) struct Percentiles {
    pub(in crate::commands) p50: f64,
    pub(in crate::commands) p99: f64,
    pub(in crate::commands) max: f64,
}

/// Now, by the clock that all processes of this machine share and nobody sets.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Writes records.
pub(super) fn write(path: &Path, records: &[(u64, u64)]) -> anyhow::Result<()> {
    let bytes: Vec<u8> = records.iter().flat_map(|(id, ns)| [id.to_le_bytes(), ns.to_le_bytes()]).flatten().collect();
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads records.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<(u64, u64)>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len().is_multiple_of(16), "{} is cut off", path.display());
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    Ok(bytes.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect())
}

/// How often each job is among these records.
pub(super) fn counts<'a>(records: impl IntoIterator<Item = &'a (u64, u64)>) -> HashMap<u64, u32> {
    let mut counts = HashMap::new();
    for (id, _) in records {
        *counts.entry(*id).or_default() += 1;
    }
    counts
}

/// The percentiles of these times in ns; zeros when there are none.
pub(in crate::commands) fn percentiles(times_ns: impl IntoIterator<Item = u64>) -> Percentiles {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3).expect("sound bounds");
    for ns in times_ns {
        histogram.saturating_record(ns);
    }
    let ms = |ns: u64| (Duration::from_nanos(ns).as_secs_f64() * 1e6).round() / 1e3;
    Percentiles {
        p50: ms(histogram.value_at_quantile(0.5)),
        p99: ms(histogram.value_at_quantile(0.99)),
        max: ms(histogram.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("records");
        let records = [(1, 2), (u64::MAX, 0), (1, 3)];
        write(&path, &records).expect("written");
        assert_eq!(read(&path).expect("read"), records);
        assert_eq!(counts(&records)[&1], 2);
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let of = percentiles((1..=100).map(|ms| ms * 1_000_000));
        assert!((of.p50 - 50.0).abs() < 0.1 && (of.max - 100.0).abs() < 0.1, "{of:?}");
    }
}
