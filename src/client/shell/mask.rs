//! Finds what must not be shown in a job's output.
//!
//! A job chooses its masked values and what it says, so a byte must cost the same whatever they are, and so must the
//! building. This is Aho and Corasick's automaton (<https://doi.org/10.1145/360825.360855>): both are linear. The crate
//! of that name searches faster, but a value within another makes its building quadratic: over a minute for 200 kB.
//! Some 40 bytes are held for each byte of a value, twice that while it is built.

use std::collections::HashMap;

const MASK: &[u8] = b"[MASKED]";
const ROOT: u32 = 0;

/// The values that must not be shown, as an automaton. A state is the longest beginning of a value that ends here.
#[derive(Debug)]
pub(super) struct Mask {
    next: HashMap<(u32, u8), u32>,
    /// By state: the next longest beginning of a value that ends here too.
    shorter: Vec<u32>,
    /// By state: the length of the longest value that ends here; 0: none does.
    ends: Vec<usize>,
    longest: usize,
}

// === impl Mask ===

impl Mask {
    /// Each line of a value by itself: output is masked line by line.
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut mask = Self { next: HashMap::new(), shorter: vec![ROOT], ends: vec![0], longest: 0 };
        let mut edges = Vec::new();
        for value in values.flat_map(str::lines).filter(|line| !line.is_empty()) {
            let mut state = ROOT;
            for (depth, byte) in value.bytes().enumerate() {
                state = *mask.next.entry((state, byte)).or_insert_with(|| {
                    let new = u32::try_from(mask.ends.len()).expect("a payload is far smaller than 4 GiB");
                    mask.ends.push(0);
                    mask.shorter.push(ROOT);
                    edges.push((depth, state, byte, new));
                    new
                });
            }
            mask.ends[state as usize] = value.len();
            mask.longest = mask.longest.max(value.len());
        }
        // Short beginnings first: the longer ones are looked up among them.
        edges.sort_by_key(|(depth, ..)| *depth);
        for (_, parent, byte, state) in edges {
            if parent != ROOT {
                let shorter = mask.step(mask.shorter[parent as usize], byte);
                mask.shorter[state as usize] = shorter;
                if mask.ends[state as usize] == 0 {
                    mask.ends[state as usize] = mask.ends[shorter as usize];
                }
            }
        }
        mask
    }

    /// The length of the longest value.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Replaces each run of bytes that values cover, be it by several that overlap.
    pub(super) fn apply(&self, line: &[u8], out: &mut Vec<u8>) {
        let mut shown = 0;
        for (start, end) in self.covered(line) {
            out.extend_from_slice(&line[shown..start]);
            out.extend_from_slice(MASK);
            shown = end;
        }
        out.extend_from_slice(&line[shown..]);
    }

    /// The runs that values cover, each from its first byte to the one after its last, in order.
    fn covered(&self, line: &[u8]) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        let mut state = ROOT;
        // Without values there is nothing to look for.
        for (at, byte) in line.iter().enumerate().filter(|_| self.longest > 0) {
            state = self.step(state, *byte);
            let length = self.ends[state as usize];
            if length > 0 {
                let end = at + 1;
                let mut start = end - length;
                while let Some((before, _)) = runs.pop_if(|(_, before)| *before > start) {
                    start = start.min(before);
                }
                runs.push((start, end));
            }
        }
        runs
    }

    fn step(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            match self.next.get(&(state, byte)) {
                Some(next) => return *next,
                None if state == ROOT => return ROOT,
                None => state = self.shorter[state as usize],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn masked(values: &[&str], line: &str) -> String {
        let mut out = Vec::new();
        Mask::new(values.iter().copied()).apply(line.as_bytes(), &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_longer_of_two_masked_values_wins() {
        assert_eq!(masked(&["abc", "abcdef"], "abcdef abcd"), "[MASKED] [MASKED]d");
    }

    #[test]
    fn masked_values_that_overlap_show_no_part_of_either() {
        assert_eq!(masked(&["abc", "bcd", "d-"], "abcd-abcabc"), "[MASKED][MASKED][MASKED]");
    }

    #[test]
    fn each_line_of_a_masked_value_is_masked_and_an_empty_one_masks_nothing() {
        assert_eq!(masked(&["first\n\nsecond\n", ""], "first-second-"), "[MASKED]-[MASKED]-");
    }

    #[test]
    fn neither_many_values_nor_values_within_values_make_a_byte_cost_more() {
        // All begin as the output does: a comparison with each, or a search that begins anew, would take minutes.
        let mut values: Vec<String> = (0..20_000).map(|n| format!("{}{n}", "a".repeat(30))).collect();
        values.push("a".repeat(200_000) + "b");
        values.push("aa".to_owned());
        let since = Instant::now();
        let mask = Mask::new(values.iter().map(String::as_str));
        let mut out = Vec::new();
        for _ in 0..4 {
            mask.apply(&vec![b'a'; 1 << 20], &mut out);
            assert!(since.elapsed() < Duration::from_secs(20), "{} bytes", out.len());
        }
    }

    proptest! {
        #[test]
        fn just_the_bytes_of_masked_values_are_covered(
            values in proptest::collection::vec("[ab]{1,5}", 1..6),
            line in "[abc]{0,40}",
        ) {
            let mut expected = vec![false; line.len()];
            for value in &values {
                for at in (0..line.len()).filter(|at| line[*at..].starts_with(value.as_str())) {
                    expected[at..at + value.len()].fill(true);
                }
            }
            let mut found = vec![false; line.len()];
            for (start, end) in Mask::new(values.iter().map(String::as_str)).covered(line.as_bytes()) {
                prop_assert!(!found[start..end].contains(&true), "runs overlap");
                found[start..end].fill(true);
            }
            prop_assert_eq!(found, expected);
        }
    }
}
