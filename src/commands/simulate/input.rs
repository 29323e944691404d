//! Reads a recorded day, line by line.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, bail};
use job_router::simulation::{Day, Recording};
use tokio_util::sync::CancellationToken;

use crate::commands::{BadData, output};

/// Bad lines that are told one by one; a file of the wrong kind has a million of them.
const TOLD_MAX: u64 = 20;

/// The day of the good lines, and how many were bad, if any.
pub(super) async fn read(file: &Path, stop: &CancellationToken) -> anyhow::Result<(Day, Option<BadData>)> {
    let from_stdin = file.as_os_str() == "-";
    let name = if from_stdin { "stdin".to_owned() } else { file.display().to_string() };
    let mut lines = if from_stdin {
        output::lines_of(BufReader::new(std::io::stdin()))
    } else {
        output::lines_of(BufReader::new(File::open(file).with_context(|| format!("cannot read {name}"))?))
    };
    let (mut recording, mut number, mut bad) = (Recording::default(), 0_u64, 0_u64);
    loop {
        let line = tokio::select! {
            biased;
            () = stop.cancelled() => bail!("interrupted"),
            line = lines.recv() => line,
        };
        let Some(line) = line else { break };
        number += 1;
        if let Err(what) = recording.add(&line.with_context(|| format!("cannot read {name}"))?) {
            bad += 1;
            if bad <= TOLD_MAX {
                eprintln!("{name}:{number}: {what}");
            }
        }
    }
    if bad > TOLD_MAX {
        eprintln!("{name}: {} more bad lines", bad - TOLD_MAX);
    }
    let day = recording.day();
    if day.jobs().is_empty() {
        return Err(BadData(format!("{name} has no job to simulate")).into());
    }
    let refused = (bad > 0).then(|| BadData(format!("{bad} of the lines of {name} were refused")));
    Ok((day, refused))
}
