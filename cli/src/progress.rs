//! What a person sees of a reload while it is under way: one line that is rewritten, on a terminal
//! only, and the child's own words as they come.

use std::io::{self, IsTerminal, Stderr, Write};
use std::time::Duration;

use handoff::control::Event;
use tokio::time::Instant;

use crate::{output, render};

/// Erases the line and returns to its beginning.
const ERASE: &[u8] = b"\r\x1b[K";

/// How often the elapsed time is redrawn.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How many of the child's lines to know again: as many as a failed reload comes with.
const MAX_SHOWN: usize = 50;

pub(crate) struct Progress<W> {
    out: W,
    terminal: bool,
    phase: Option<Phase>,
    drawn: bool,
    /// The last of the child's lines that were shown.
    shown: Vec<String>,
}

struct Phase {
    reload: u64,
    name: String,
    pid: Option<u32>,
    /// When it began, on the server's clock.
    at: Duration,
    /// When we learned that.
    seen: Instant,
}

impl Progress<Stderr> {
    pub(crate) fn on_stderr() -> Self {
        let out = io::stderr();
        let terminal = out.is_terminal();
        Self::new(out, terminal)
    }
}

impl<W: Write> Progress<W> {
    fn new(out: W, terminal: bool) -> Self {
        Self {
            out,
            terminal,
            phase: None,
            drawn: false,
            shown: Vec::new(),
        }
    }

    pub(crate) fn learn(&mut self, event: &Event) {
        match event {
            Event::Phase {
                reload,
                phase,
                pid,
                at_us,
                ..
            } => {
                self.phase = Some(Phase {
                    reload: *reload,
                    name: phase.clone(),
                    pid: *pid,
                    at: Duration::from_micros(*at_us),
                    seen: Instant::now(),
                });
                self.draw();
            }
            // The log of a process that serves is no news, unless it fails: then its last words are shown.
            Event::Stderr { .. } if self.is_serving() => {}
            Event::Stderr { line, .. } => {
                self.child_said(line);
                if self.shown.len() == MAX_SHOWN {
                    self.shown.remove(0);
                }
                self.shown.push(line.clone());
                self.draw();
            }
            _ => {}
        }
    }

    fn is_serving(&self) -> bool {
        self.phase
            .as_ref()
            .is_some_and(|phase| phase.name == "probation")
    }

    /// The child's last words, as far as they were not shown as they came: a child that says more than can be
    /// passed on says why it fails at the end.
    pub(crate) fn last_words(&mut self, lines: &[String]) {
        let most = lines.len().min(self.shown.len());
        let known = (1..=most)
            .rev()
            .find(|known| self.shown.ends_with(&lines[..*known]));
        if known.is_none() && most > 0 {
            self.child_said("[…]");
        }
        let known = known.unwrap_or(0);
        lines[known..].iter().for_each(|line| self.child_said(line));
    }

    pub(crate) fn draw(&mut self) {
        let Some(phase) = self.phase.as_ref().filter(|_| self.terminal) else {
            return;
        };
        let elapsed = phase.at + phase.seen.elapsed();
        let line = render::progress(phase.reload, &phase.name, phase.pid, elapsed);
        // In one write, so that it does not flicker. What cannot be shown changes nothing.
        let bytes = [ERASE, line.as_bytes()].concat();
        let _ = self.out.write_all(&bytes).and_then(|()| self.out.flush());
        self.drawn = true;
    }

    pub(crate) fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = self.out.write_all(ERASE).and_then(|()| self.out.flush());
        }
    }

    fn child_said(&mut self, line: &str) {
        self.erase();
        let _ = writeln!(self.out, "child: {}", output::printable(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> [Event; 2] {
        [
            Event::Phase {
                reload: 7,
                phase: "booting".to_owned(),
                pid: Some(857),
                at_us: 70_000_000,
                lasts_ms: None,
            },
            Event::Stderr {
                reload: 7,
                line: "warming up".to_owned(),
            },
        ]
    }

    fn shown(terminal: bool) -> String {
        let mut progress = Progress::new(Vec::new(), terminal);
        events().iter().for_each(|event| progress.learn(event));
        progress.erase();
        progress.last_words(&["warming up".to_owned()]);
        String::from_utf8(progress.out).unwrap()
    }

    #[test]
    fn a_terminal_has_one_line_rewritten_around_the_childs_words() {
        let line = "\r\u{1b}[Kreload 7: booting, child 857, 1m10s";
        let erase = "\r\u{1b}[K";
        assert_eq!(
            shown(true),
            format!("{line}{erase}child: warming up\n{line}{erase}")
        );
    }

    #[test]
    fn a_log_file_has_the_childs_words_only() {
        assert_eq!(shown(false), "child: warming up\n");
    }

    #[test]
    fn what_a_child_says_on_probation_is_shown_if_it_fails() {
        let mut progress = Progress::new(Vec::new(), false);
        let [booting, line] = events();
        progress.learn(&booting);
        progress.learn(&line);
        progress.learn(&Event::Phase {
            reload: 7,
            phase: "probation".to_owned(),
            pid: Some(857),
            at_us: 80_000_000,
            lasts_ms: Some(1_000),
        });
        progress.learn(&Event::Stderr {
            reload: 7,
            line: "no such table".to_owned(),
        });
        assert_eq!(progress.out, b"child: warming up\n");
        progress.last_words(&["warming up".to_owned(), "no such table".to_owned()]);
        assert_eq!(progress.out, b"child: warming up\nchild: no such table\n");
    }

    #[test]
    fn words_that_were_lost_on_the_way_are_shown_at_the_end() {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        for (last, expected) in [
            (
                words(&["b", "c", "d"]),
                "child: a\nchild: b\nchild: c\nchild: d\n",
            ),
            (
                words(&["x", "y"]),
                "child: a\nchild: b\nchild: […]\nchild: x\nchild: y\n",
            ),
            (words(&[]), "child: a\nchild: b\n"),
        ] {
            let mut progress = Progress::new(Vec::new(), false);
            for line in words(&["a", "b"]) {
                progress.learn(&Event::Stderr { reload: 7, line });
            }
            progress.last_words(&last);
            assert_eq!(String::from_utf8(progress.out).unwrap(), expected);
        }
    }

    #[test]
    fn words_that_did_not_come_in_time_are_shown_at_the_end() {
        let mut progress = Progress::new(Vec::new(), false);
        progress.last_words(&["no such file".to_owned()]);
        assert_eq!(progress.out, b"child: no such file\n");
    }
}
