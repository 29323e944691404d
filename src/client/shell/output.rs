//! A job's output: masked, cut into lines, bounded, written somewhere.
//!
//! Bounds: a line is split at 8 KiB (at twice the longest masked value, if that is more), a job's output
//! ends at 4 MiB with a notice; more is read and dropped, so that the job never blocks on it.

use std::io::Write;
use std::path::PathBuf;

use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::mask::Mask;
use crate::client::executor::Assignment;

/// The longest line.
const LINE_MAX: usize = 8 << 10;
/// The most output of one job. GitLab's default.
const LOG_MAX: usize = 4 << 20;
/// One read; a full pipe.
const CHUNK: usize = 64 << 10;

/// Where jobs write their output.
#[derive(Debug, Clone)]
pub enum LogTo {
    /// To standard output, each line after `job <id> | `.
    Stdout,
    /// To a file for each attempt, `job-<id>-<attempt>.log`, in this directory, which must exist.
    Dir(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// One job's output on its way.
#[derive(Debug)]
pub(super) struct Output {
    lines: Lines,
    sink: Sink,
    written: usize,
    full: bool,
}

#[derive(Debug)]
enum Sink {
    Stdout { prefix: String },
    File(File),
    Nowhere,
}

/// Cuts bytes into masked lines. Pure.
#[derive(Debug)]
struct Lines {
    mask: Mask,
    /// The line so far.
    open: Vec<u8>,
}

// === impl Output ===

impl Output {
    /// Opens the job's sink.
    pub(super) async fn open<'a>(
        log: &LogTo,
        assignment: &Assignment,
        masked: impl Iterator<Item = &'a str>,
    ) -> std::io::Result<Self> {
        let job_id = assignment.lease.job_id;
        let sink = match log {
            LogTo::Stdout => Sink::Stdout { prefix: format!("job {job_id} | ") },
            LogTo::Dir(dir) => {
                let name = format!("job-{job_id}-{}.log", assignment.attempt);
                Sink::File(File::create(dir.join(name)).await?)
            }
            LogTo::Nowhere => Sink::Nowhere,
        };
        let masked: Vec<String> = masked.map(str::to_owned).collect();
        // A megabyte of values takes a good part of a second, which would hold up beats.
        let lines = tokio::task::spawn_blocking(move || Lines::new(masked.iter().map(String::as_str))).await?;
        Ok(Self { lines, sink, written: 0, full: false })
    }

    /// Copies all that comes from the reader. Ends with it, or when it fails.
    pub(super) async fn copy(&mut self, reader: &mut (impl AsyncRead + Unpin)) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(read @ 1..) = reader.read(&mut chunk).await {
            if self.full {
                continue;
            }
            let lines = self.lines.feed(&chunk[..read]);
            self.write(lines).await;
            // A job that never stops talking has always more to read: beats and fences get their turn.
            tokio::task::yield_now().await;
        }
        let rest = self.lines.finish();
        self.write(rest).await;
    }

    /// Says something on the runner's behalf.
    pub(super) async fn notice(&mut self, text: &str) {
        let lines = self.lines.feed(format!("job-router: {text}\n").as_bytes());
        self.write(lines).await;
    }

    /// Ends the output.
    pub(super) async fn close(&mut self) {
        if let Sink::File(file) = &mut self.sink
            && let Err(error) = file.flush().await
        {
            tracing::warn!(%error, "job output not written");
        }
    }

    async fn write(&mut self, mut lines: Vec<u8>) {
        if self.full || lines.is_empty() {
            return;
        }
        if self.written + lines.len() > LOG_MAX {
            self.full = true;
            lines.truncate(LOG_MAX - self.written);
            lines.extend_from_slice(b"\njob-router: the output's limit of 4 MiB is reached; the rest is dropped\n");
        }
        self.written += lines.len();
        let result = match &mut self.sink {
            Sink::Nowhere => Ok(()),
            Sink::File(file) => file.write_all(&lines).await,
            Sink::Stdout { prefix } => {
                let text = prefixed(prefix, &lines);
                // Standard output may block, on a terminal that is held for instance; that must not hold a beat.
                let written = tokio::task::spawn_blocking(move || std::io::stdout().lock().write_all(&text)).await;
                written.unwrap_or_else(|error| Err(std::io::Error::other(error)))
            }
        };
        if let Err(error) = result {
            // A full disk does not fail the job; it ends its log.
            self.full = true;
            tracing::warn!(%error, "job output not written");
        }
    }
}

fn prefixed(prefix: &str, lines: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.len() + lines.len() / 4);
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        text.extend_from_slice(prefix.as_bytes());
        text.extend_from_slice(line);
    }
    text
}

// === impl Lines ===

impl Lines {
    fn new<'a>(masked: impl Iterator<Item = &'a str>) -> Self {
        Self { mask: Mask::new(masked), open: Vec::new() }
    }

    /// Takes bytes; gives back the lines that they end, masked.
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.mask.apply(&self.open, &mut out);
                self.open.clear();
            } else if self.open.len() >= LINE_MAX.max(2 * self.mask.longest()) {
                self.split(&mut out);
            }
        }
        out
    }

    /// The last line, if it did not end.
    fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.open.is_empty() {
            self.mask.apply(&self.open, &mut out);
            out.push(b'\n');
            self.open.clear();
        }
        out
    }

    /// Ends an endless line, but keeps what may be the beginning of a masked value.
    fn split(&mut self, out: &mut Vec<u8>) {
        let mut masked = Vec::with_capacity(self.open.len());
        self.mask.apply(&self.open, &mut masked);
        let keep = self.mask.longest().saturating_sub(1).min(masked.len());
        self.open = masked.split_off(masked.len() - keep);
        out.extend_from_slice(&masked);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(masked: &[&str], chunks: &[&[u8]]) -> String {
        let mut lines = Lines::new(masked.iter().copied());
        let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| lines.feed(chunk)).collect();
        out.extend(lines.finish());
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn a_masked_value_is_replaced_across_chunks() {
        assert_eq!(through(&["hunter2"], &[b"pass: hun", b"ter2!\nok"]), "pass: [MASKED]!\nok\n");
    }

    #[test]
    fn each_line_of_a_masked_value_is_masked() {
        assert_eq!(through(&["first\nsecond\n"], &[b"first\n-second-\n"]), "[MASKED]\n-[MASKED]-\n");
    }

    #[test]
    fn bytes_that_are_no_text_pass() {
        let mut lines = Lines::new(["x"].into_iter());
        assert_eq!(lines.feed(b"\xff\xfe\n"), b"\xff\xfe\n");
    }

    #[test]
    fn an_endless_line_is_split() {
        let text = through(&[], &[&vec![b'a'; LINE_MAX], b"b"]);
        assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [LINE_MAX, 1]);
    }

    proptest! {
        #[test]
        fn no_cut_shows_a_masked_value(before in 0..2 * LINE_MAX, cut in 1..20usize) {
            let line = [&vec![b'.'; before][..], b"topsecret", &vec![b'.'; LINE_MAX]].concat();
            let (head, tail) = line.split_at((before + cut).min(line.len()));
            let shown = through(&["topsecret"], &[head, tail]).replace('\n', "");
            prop_assert!(!shown.contains("topsecret"));
            prop_assert!(!shown.contains("secret") && !shown.contains("tops"), "a part is shown");
        }
    }
}
