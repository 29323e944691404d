//! Log lines on stderr: flat JSON for machines, or text for people.
//!
//! A JSON line has `timestamp`, `level`, `target`, `message` and the event's own fields, all at the top; no event may
//! name a field like one of these four. Spans are not written: an event carries what it needs.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Human if stderr is a terminal, else JSON.
    Auto,
    /// One JSON object in a line.
    Json,
    /// Text, with colours if stderr is a terminal and `NO_COLOR` is not set.
    Human,
}

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is none; see [`check_filter`].
    #[error("the log filter is wrong: {0}")]
    Filter(String),
    /// Somebody in this process logs already.
    #[error("logging has begun already")]
    Begun(#[source] tracing_subscriber::util::TryInitError),
}

/// Begins to log to stderr, for the whole process, until its end. As JSON, panics become log lines too.
///
/// # Errors
///
/// If `filter` is not one, or if logging has begun already.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LoggingError> {
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Human => false,
    };
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    subscriber(json, colours, filter, std::io::stderr)?.try_init().map_err(LoggingError::Begun)?;
    if json {
        std::panic::set_hook(Box::new(|panic| {
            let at = panic.location().map(ToString::to_string);
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
            tracing::error!(at, error = text, "thread panicked");
        }));
    }
    Ok(())
}

/// Whether `filter` is a log filter: a level, or a list of `module=level`.
///
/// # Errors
///
/// If not. The library would read the lone word `inof` as a module, and silence all others; here it must be a level.
pub fn check_filter(filter: &str) -> Result<(), LoggingError> {
    parse_filter(filter).map(drop)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    let is_module = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_:-".contains(c));
    let is_plain = |part: &str| match part.split_once('=') {
        Some((module, level)) => is_module(module) && is_level(level),
        None => is_level(part),
    };
    // A filter on spans, in brackets, is left to the library: its commas part more than directives.
    if !filter.contains('[') && !filter.split(',').all(is_plain) {
        return Err(LoggingError::Filter("neither a level nor module=level".to_owned()));
    }
    EnvFilter::builder().parse(filter).map_err(|error| LoggingError::Filter(error.to_string()))
}

fn subscriber<W>(
    json: bool,
    colours: bool,
    filter: &str,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.boxed()
    };
    Ok(tracing_subscriber::registry().with(parse_filter(filter)?).with(lines))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, filter: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(json, false, filter, move || writer.clone()).expect("a filter");
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_json_line_is_flat_and_its_names_are_stable() {
        let text = logged(true, "info", || {
            let _span = tracing::info_span!("session", hidden = true).entered();
            tracing::info!(job_id = 7, attempt = 1, reason = "line\nbreak", "job pushed");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).expect("JSON");
        let names: Vec<&str> = line.keys().map(String::as_str).collect();
        assert_eq!(names, ["attempt", "job_id", "level", "message", "reason", "target", "timestamp"]);
        assert_eq!((&line["message"], &line["job_id"]), (&"job pushed".into(), &7.into()));
    }

    #[test]
    fn the_filter_decides_what_is_logged() {
        let text = logged(false, "warn,job_router::telemetry=debug", || {
            tracing::debug!("ours");
            tracing::info!(target: "other", "theirs");
            tracing::warn!(target: "other", "grave");
        });
        let has = |word| text.contains(word);
        assert!(has("ours") && has("grave") && !has("theirs"), "{text}");
    }

    #[test]
    fn a_filter_with_a_misspelt_level_is_refused() {
        for good in ["info", "warn,job_router=debug", "off", "job_router[session]=trace"] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "info,job_router", "job_router=loud", "", "info,", "a module=info"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }
}
