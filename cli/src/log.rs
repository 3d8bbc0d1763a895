//! Log lines on stderr: text for people, or JSON for a collector. Each names the process, because
//! two generations share one stderr during a reload.
//!
//! Serving never waits for a log: a thread of its own writes, and when whoever reads does not keep
//! up, lines are lost.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::args::LogFormat;

/// Lines that may wait for a slow reader.
const BUFFERED_LINES: usize = 8 * 1024;

/// `--log-filter`, checked when the command line is.
#[derive(Clone, Debug)]
pub(crate) struct Filter(String);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(format!("{error}; write a level, or `info,handoff=debug`")),
        }
    }
}

/// Logs from now on, until the guard is dropped, which waits up to a second for lines under way.
///
/// # Errors
///
/// If something in this process logs already.
pub(crate) fn start(format: LogFormat, filter: &Filter) -> Result<WorkerGuard> {
    let (stderr, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&filter.0)?)
        .with_writer(stderr)
        // A child starts with a pipe for a stderr, so colours would come and go with the generations.
        .with_ansi(false)
        // It would report a broken stderr by `eprintln!`, which panics on a broken stderr.
        .log_internal_errors(false);
    let pid = std::process::id();
    match format {
        LogFormat::Text => {
            let inner = Format::default().compact().with_ansi(false);
            builder.event_format(Text { pid, inner }).try_init()
        }
        LogFormat::Json => builder.event_format(Json { pid }).try_init(),
    }
    .map_err(anyhow::Error::from_boxed)
    .context("failed to start the log")?;
    Ok(guard)
}

/// `857 2026-11-23T18:00:00.000000Z  INFO handoff::parent: the child serves generation=4`
struct Text {
    pid: u32,
    inner: Format<Compact>,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{} ", self.pid)?;
        self.inner.format_event(context, writer, event)
    }
}

/// One flat object a line: `timestamp`, `level`, `pid`, `target`, `message`, and the event's fields.
/// (The stock formatter nests the fields, and has no place for the pid.)
struct Json {
    pid: u32,
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        // After the event's own, which must not hide them.
        fields.insert("timestamp", timestamp);
        fields.insert("level", level);
        fields.0.entry("pid").or_insert(self.pid.into());
        fields.insert("target", metadata.target());
        let line = serde_json::to_string(&fields.0).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, Value>);

impl Fields {
    fn insert(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.insert(name, value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field.name(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn log_something() {
        tracing::info!(generation = 4u64, took = ?std::time::Duration::from_millis(3), "it \"serves\"");
    }

    #[test]
    fn a_text_line_begins_with_the_pid() {
        let sink = Sink::default();
        let writer = sink.clone();
        let inner = Format::default().compact().with_ansi(false);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Text { pid: 857, inner })
            .finish();
        tracing::subscriber::with_default(subscriber, log_something);
        let text = sink.text();
        assert!(text.starts_with("857 20"), "{text}");
        assert!(
            text.contains("it \"serves\" generation=4 took=3ms"),
            "{text}"
        );
    }

    #[test]
    fn a_json_line_is_flat() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Json { pid: 857 })
            .finish();
        tracing::subscriber::with_default(subscriber, log_something);
        let line: Value = serde_json::from_str(&sink.text()).unwrap();
        assert_eq!(line["pid"], 857);
        assert_eq!(line["generation"], 4);
        assert_eq!(line["message"], "it \"serves\"");
        assert_eq!(line["took"], "3ms");
        assert_eq!(line["level"], "info");
    }
}
