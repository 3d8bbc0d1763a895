//! How a reload went, from the events that the server sends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Child;

/// A phase of a reload, as the control socket tells it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Phase {
    /// `starting`, `joining`, `booting`, `restoring`, `committing`, `draining`; `drained` is the end.
    pub(crate) name: String,
    /// When it began, since the request, by the server's clock.
    pub(crate) at_ms: f64,
}

/// How `hello reload` went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reloaded {
    /// Its exit code; `None`: killed.
    pub(crate) exit: Option<i32>,
    /// The new generation and its process, if one was confirmed.
    pub(crate) to: Option<(u64, u32)>,
    /// From the start of the command to the line that says so.
    pub(crate) confirmed: Option<Duration>,
    /// What the server measured: from the request to its accepting.
    pub(crate) serving: Option<Duration>,
    /// From the start of the command to the line that says that the parent has gone.
    pub(crate) drained: Option<Duration>,
    /// The server's own measure: from its start of the drain to its end.
    pub(crate) drain: Option<Duration>,
    /// Since the request, in microseconds: when the drain began.
    pub(crate) draining_at_us: Option<u64>,
    /// The server's phases, in order.
    pub(crate) phases: Vec<Phase>,
    /// Connections that moved to the new generation.
    pub(crate) moved: u64,
    /// The same, by what they were: `idle`, `answered`, `upgraded` and others.
    pub(crate) moved_as: BTreeMap<String, u64>,
    /// Connections that the old generation finished itself.
    pub(crate) finished: u64,
    /// Connections cut at the drain deadline.
    pub(crate) cut: u64,
    /// `drained` came without its counts, or with others than we know.
    pub(crate) unintelligible: bool,
    /// From start to exit of the command.
    pub(crate) took: Duration,
    /// What it printed, both streams, for the report of a failure.
    pub(crate) output: String,
}

/// Follows `hello reload --json`, begun at `began`, to its end.
pub(crate) async fn follow_reload(
    mut child: Child,
    began: Instant,
    mut committed: impl FnMut((u64, u32)),
) -> Result<Reloaded> {
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("`hello reload` has no output");
    };
    let mut errors = String::new();
    let mut reloaded = Reloaded::default();
    // Both at a time: a full pipe would stop the command.
    let (read_errors, read_events) = tokio::join!(
        stderr.read_to_string(&mut errors),
        reloaded.take_events(stdout, began, &mut committed)
    );
    read_errors?;
    read_events?;
    reloaded.exit = child.wait().await?.code();
    reloaded.took = began.elapsed();
    reloaded.output.push_str(&errors);
    Ok(reloaded)
}

/// Asks for a reload on the control socket, and follows it to the end of the process that was asked.
pub(crate) async fn follow_socket(
    mut socket: UnixStream,
    began: Instant,
    mut committed: impl FnMut((u64, u32)),
) -> Result<Reloaded> {
    let mut reloaded = Reloaded::default();
    socket.write_all(b"{\"verb\":\"reload\"}\n").await?;
    reloaded.take_events(socket, began, &mut committed).await?;
    reloaded.exit = Some(i32::from(reloaded.to.is_none()));
    reloaded.took = began.elapsed();
    Ok(reloaded)
}

impl Reloaded {
    /// Events, one a line, until they end.
    async fn take_events(
        &mut self,
        events: impl AsyncRead + Unpin,
        began: Instant,
        committed: &mut impl FnMut((u64, u32)),
    ) -> Result<()> {
        let mut lines = BufReader::new(events).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some(to) = self.take_event(&line, began.elapsed()) {
                committed(to);
            }
        }
        Ok(())
    }

    /// One line of `hello reload --json`. Returns the generation and the process that it says serve now.
    fn take_event(&mut self, line: &str, at: Duration) -> Option<(u64, u32)> {
        self.output.push_str(line);
        self.output.push('\n');
        let event: Value = serde_json::from_str(line).ok()?;
        self.take_phase(&event);
        match (event["event"].as_str()?, event["result"].as_str()) {
            ("reloaded", Some("confirmed")) => {
                let to = &event["to"];
                let generation = to["generation"].as_u64()?;
                let pid = to["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())?;
                self.to = Some((generation, pid));
                self.confirmed = Some(at);
                self.serving = event["serving_us"].as_u64().map(Duration::from_micros);
                self.to
            }
            ("phase", _) if event["phase"] == "draining" => {
                self.draining_at_us = event["at_us"].as_u64();
                None
            }
            ("drained", _) => {
                self.drained = Some(at);
                self.take_counts(&event["connections"]);
                // 0: the successor answers, which does not know when the parent began.
                let ended_at_us = event["at_us"].as_u64().filter(|us| *us > 0);
                self.drain = ended_at_us
                    .zip(self.draining_at_us)
                    .and_then(|(end, begin)| Some(Duration::from_micros(end.checked_sub(begin)?)));
                None
            }
            _ => None,
        }
    }

    fn take_phase(&mut self, event: &Value) {
        let (name, at_us) = match event["event"].as_str() {
            Some("phase") => (event["phase"].as_str(), event["at_us"].as_u64()),
            // 0: the successor answers, which does not know when the parent began.
            Some("drained") => (
                Some("drained"),
                event["at_us"].as_u64().filter(|us| *us > 0),
            ),
            _ => return,
        };
        if let (Some(name), Some(at_us)) = (name, at_us) {
            self.phases.push(Phase {
                name: name.into(),
                at_ms: at_us as f64 / 1e3,
            });
        }
    }

    /// A count that is missing is an error of ours, and must not look like a good reload.
    fn take_counts(&mut self, connections: &Value) {
        let count = |name: &str| connections[name].as_u64();
        let moved_as = connections["moved_as"].as_object();
        let (Some(moved), Some(cut), Some(moved_as)) = (count("moved"), count("cut"), moved_as)
        else {
            self.unintelligible = true;
            return;
        };
        (self.moved, self.cut) = (moved, cut);
        self.finished = count("drained").unwrap_or(0);
        self.moved_as = moved_as
            .iter()
            .map(|(kind, count)| (kind.clone(), count.as_u64().unwrap_or(0)))
            .collect();
    }

    /// Whether it did what it was asked for; if not, why.
    pub(crate) fn failure(&self) -> Option<String> {
        let why = match (self.exit, self.to) {
            (Some(0), Some(_)) if self.unintelligible => {
                "the counts of `drained` are not understood".into()
            }
            (Some(0), Some(_)) if self.cut == 0 => return None,
            (Some(0), Some(_)) => format!("{} connections were cut", self.cut),
            (Some(0), None) => "exit code 0, but no generation was confirmed".into(),
            (Some(code), _) => format!("exit code {code}"),
            (None, _) => "killed by a signal".into(),
        };
        Some(format!("{why}: {}", self.output.trim()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_reload_is_followed_line_by_line() {
        let script = r#"
            echo '{"event":"phase","reload":1,"phase":"starting","pid":null,"at_us":3}'
            echo '{"event":"phase","reload":1,"phase":"draining","pid":6,"at_us":4000}'
            echo '{"event":"reloaded","reload":1,"result":"confirmed","from":{"generation":1,"pid":5},"to":{"generation":2,"pid":6},"serving_us":4100,"listeners":{}}'
            sleep 0.2
            echo '{"event":"drained","reload":1,"at_us":9000,"connections":{"moved":7,"moved_as":{"idle":5,"upgraded":2},"drained":0,"cut":1,"named":["x"]}}'
            echo done >&2"#;
        let mut command = Command::new("/bin/sh");
        let child = command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let mut commits = Vec::new();
        let reloaded = follow_reload(child, began, |(generation, _)| {
            commits.push((generation, began.elapsed()));
        })
        .await
        .unwrap();
        assert_eq!((reloaded.exit, reloaded.to), (Some(0), Some((2, 6))));
        assert_eq!(commits[0].0, 2);
        // The command waits for 200 ms between the two, and when it began is its own affair.
        let drained = reloaded.drained.unwrap();
        assert!(
            commits[0].1 + Duration::from_millis(100) < drained,
            "told while the command still ran: {commits:?}, {drained:?}"
        );
        assert_eq!(reloaded.serving, Some(Duration::from_micros(4100)));
        assert_eq!(reloaded.drain, Some(Duration::from_millis(5)));
        assert_eq!((reloaded.moved, reloaded.cut), (7, 1));
        let phases: Vec<_> = reloaded
            .phases
            .iter()
            .map(|phase| (phase.name.as_str(), phase.at_ms))
            .collect();
        assert_eq!(
            phases,
            [("starting", 0.003), ("draining", 4.0), ("drained", 9.0)]
        );
        let moved_as = [("idle".to_owned(), 5), ("upgraded".to_owned(), 2)];
        assert_eq!(reloaded.moved_as, BTreeMap::from(moved_as));
        assert!(
            reloaded
                .failure()
                .unwrap()
                .starts_with("1 connections were cut")
        );
        assert!(reloaded.output.ends_with("done\n"));
    }

    #[test]
    fn counts_of_another_kind_do_not_pass_for_zeros() {
        let mut reloaded = Reloaded {
            exit: Some(0),
            to: Some((2, 6)),
            ..Reloaded::default()
        };
        reloaded.take_event(
            r#"{"event":"drained","at_us":9,"connections":{"moved":7,"moved_as":{},"cut":["x"]}}"#,
            Duration::ZERO,
        );
        let failure = reloaded.failure().unwrap();
        assert!(failure.starts_with("the counts"), "{failure}");
    }

    #[test]
    fn a_reload_that_failed_says_why() {
        let done = Reloaded {
            exit: Some(0),
            to: Some((2, 6)),
            ..Reloaded::default()
        };
        assert_eq!(done.failure(), None);
        let failed = Reloaded {
            exit: Some(1),
            output: "child exited\n".into(),
            ..Reloaded::default()
        };
        assert_eq!(failed.failure().unwrap(), "exit code 1: child exited");
        let silent = Reloaded {
            exit: Some(0),
            ..Reloaded::default()
        };
        assert!(silent.failure().is_some());
    }
}
