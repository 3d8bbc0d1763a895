//! `hello status --watch`.

use std::io::{self, IsTerminal, Stdout, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use handoff::control::{self, ClientError, Status};
use tokio::sync::Notify;

use crate::args;
use crate::exit::{Exit, Failure};
use crate::locate::ANSWER_PATIENCE;
use crate::{output, render};

/// Between two looks, if nothing is said to happen meanwhile.
const INTERVAL: Duration = Duration::from_secs(1);

/// To the first place of the screen.
const HOME: &str = "\x1b[H";

/// Erases the rest of the line.
const ERASE_LINE: &str = "\x1b[K";

/// Erases what is below.
const ERASE_BELOW: &str = "\x1b[J";

/// Why the view has an end.
enum End {
    /// The server was stopped.
    Stopped,
    /// Nobody reads any more.
    Unread,
}

pub(crate) fn run(args: &args::Status) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let socket = args.which.paths()?.socket;
    let mut view = View::on_stdout(args.json);
    let end = runtime
        .block_on(watch(&socket, &mut view))
        .map_err(|error| args.which.failure(error))?;
    if let End::Stopped = end {
        // A closed stdout is no news now.
        let _ = view.stopped();
    }
    Ok(Exit::Done)
}

async fn watch<W: Write>(socket: &Path, view: &mut View<W>) -> Result<End, ClientError> {
    // The first status before anything else: whoever asks in vain learns it as from `hello status`.
    let status = control::status(socket, ANSWER_PATIENCE).await?;
    if view.show(&status).is_err() {
        return Ok(End::Unread);
    }
    let something = Notify::new();
    let look = async {
        loop {
            tokio::select! {
                () = something.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            // Who is about to end may refuse, or nobody may be there for a moment. The next look finds out.
            if let Ok(status) = control::status(socket, ANSWER_PATIENCE).await
                && view.show(&status).is_err()
            {
                return End::Unread;
            }
        }
    };
    let ended = tokio::select! {
        ended = control::events(socket, |_| {
            something.notify_one();
            ControlFlow::Continue(())
        }) => ended,
        end = look => return Ok(end),
    };
    match ended {
        Ok(()) => Ok(End::Stopped),
        // There was one a moment ago.
        Err(ClientError::Connect(error)) if error.is_not_running() => Err(ClientError::Gone),
        Err(error) => Err(error),
    }
}

struct View<W> {
    out: W,
    terminal: bool,
    json: bool,
    /// What was shown last, in a line.
    last: Option<String>,
}

impl View<Stdout> {
    fn on_stdout(json: bool) -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal() && !json;
        Self::new(out, terminal, json)
    }
}

impl<W: Write> View<W> {
    fn new(out: W, terminal: bool, json: bool) -> Self {
        Self {
            out,
            terminal,
            json,
            last: None,
        }
    }

    fn show(&mut self, status: &Status) -> io::Result<()> {
        if self.terminal {
            return self.redraw(&render::status(status));
        }
        let summary = render::summary(status);
        if self.last.as_ref() == Some(&summary) {
            return Ok(());
        }
        let line = if self.json {
            serde_json::to_string(status)?
        } else {
            summary.clone()
        };
        self.last = Some(summary);
        writeln!(self.out, "{}", output::printable(&line))?;
        self.out.flush()
    }

    /// Over what is there, in one write, so that it does not flicker.
    fn redraw(&mut self, text: &str) -> io::Result<()> {
        let mut screen = match self.last {
            // What was on the screen before is not ours.
            None => format!("{HOME}{ERASE_BELOW}"),
            Some(_) => HOME.to_owned(),
        };
        for line in text.lines() {
            screen.push_str(&output::printable(line));
            screen.push_str(ERASE_LINE);
            screen.push('\n');
        }
        screen.push_str(ERASE_BELOW);
        self.last = Some(String::new());
        self.out.write_all(screen.as_bytes())?;
        self.out.flush()
    }

    fn stopped(&mut self) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.out, "stopped")?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff::control::message::Generation;

    fn status(generation: u64, serving_for_ms: u64) -> Status {
        Status {
            process: Generation {
                generation,
                pid: 811,
            },
            build: "0.1.0 eee".to_owned(),
            phase: "serving".to_owned(),
            serving_for_ms,
            probation: None,
            listeners: Vec::new(),
            reload: None,
            last_reload: None,
            draining: Vec::new(),
            application: serde_json::Value::Null,
        }
    }

    fn shown(terminal: bool, json: bool) -> String {
        let mut view = View::new(Vec::new(), terminal, json);
        for status in [status(1, 1_000), status(1, 2_000), status(2, 3_000)] {
            view.show(&status).unwrap();
        }
        view.stopped().unwrap();
        String::from_utf8(view.out).unwrap()
    }

    #[test]
    fn a_terminal_is_redrawn() {
        let line = |generation, s| {
            format!("0.1.0 eee, generation {generation}, pid 811, serving for {s}s\x1b[K\n\x1b[J")
        };
        assert_eq!(
            shown(true, false),
            format!(
                "\x1b[H\x1b[J{}\x1b[H{}\x1b[H{}stopped\n",
                line(1, 1),
                line(1, 2),
                line(2, 3)
            )
        );
    }

    #[test]
    fn a_log_file_has_a_line_for_each_change() {
        assert_eq!(
            shown(false, false),
            "0.1.0 eee, generation 1, pid 811, serving\n\
             0.1.0 eee, generation 2, pid 811, serving\n\
             stopped\n"
        );
    }

    #[test]
    fn a_script_has_the_whole_status_for_each_change() {
        let lines: Vec<serde_json::Value> = shown(false, true)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let generations: Vec<_> = lines
            .iter()
            .map(|line| line["generation"].clone())
            .collect();
        assert_eq!(generations, [1, 2]);
        assert_eq!(lines[0]["serving_for_ms"], 1_000);
    }
}
