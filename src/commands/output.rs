//! What the subcommands print and read: lines on stdout, whose reader may go away, and on stdin.

use std::io::{BufRead, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use tokio::sync::mpsc;

/// Lines read ahead of who works on them.
const LINES_AHEAD: usize = 1_000;

/// Prints one line to stdout at once. An error, and no panic, when the reader is gone.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// A table without lines, for people and for `awk`.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

/// Prints a table.
pub(super) fn print(table: &Table) -> anyhow::Result<()> {
    line(&table.trim_fmt())
}

/// Text from outside, safe to print to a terminal: no control characters, at most so many characters.
pub(super) fn safe(text: &str, max: usize) -> String {
    let printable = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    if text.chars().count() <= max { printable.collect() } else { printable.take(max - 1).chain(['…']).collect() }
}

/// Unix milliseconds as local time.
pub(super) fn time(at_ms: u64) -> String {
    let stamp = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let zone = jiff::tz::TimeZone::system();
    stamp.map_or_else(|| at_ms.to_string(), |stamp| stamp.to_zoned(zone).strftime("%F %T%.3f").to_string())
}

/// The lines of a reader, such as stdin, as they come, be they UTF-8 or not; the channel closes at its end.
pub(super) fn lines_of(reader: impl BufRead + Send + 'static) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (lines, read) = mpsc::channel(LINES_AHEAD);
    // A thread of its own, held by nobody: a read of stdin cannot be given up, and must not hold up the end.
    std::thread::spawn(move || {
        for line in reader.split(b'\n') {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    read
}
