//! What is unanswered in a session, and what an answer is worth. No I/O.
//!
//! Each fault is counted once. So the text of an answer, which is unique in the run, decides which
//! message it answers; and a count that is wrong is the base for those that follow.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::outcome::Outcome;

/// Past messages that are still known by their text: more than a session sends until a timeout
/// has passed.
const MAX_PAST: usize = 4096;

/// A message that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// When it was to be sent: its latency counts from here.
    pub(super) due: Instant,
    /// When it counts as lost.
    pub(super) deadline: Instant,
    text: String,
    /// Its number in the session, from 1: what the server is to count.
    index: u64,
    /// The oldest generation that could answer it.
    floor: u64,
}

/// What an answer is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// When the message was due; `None`: nobody has asked.
    pub(super) due: Option<Instant>,
    pub(super) outcome: Outcome,
    /// Why it is wrong; empty if it is right.
    pub(super) detail: String,
    pub(super) generation: Option<u64>,
}

/// Of one session, on one connection.
#[derive(Debug)]
pub(super) struct Tally {
    /// Messages sent.
    sent: u64,
    unanswered: VecDeque<Sent>,
    /// The texts of earlier ones, and whether they were answered.
    past: VecDeque<(String, bool)>,
    /// The highest number of a message that was answered.
    answered: u64,
    /// By how much the server counts more than we do.
    ahead: i128,
    /// The newest that has answered: an older one cannot follow.
    generation: u64,
}

impl Tally {
    /// Of a session that was opened when `generation` was reported to serve.
    pub(super) fn new(generation: u64) -> Self {
        Self {
            sent: 0,
            unanswered: VecDeque::new(),
            past: VecDeque::new(),
            answered: 0,
            ahead: 0,
            generation,
        }
    }

    /// `text` is about to be sent. `settled`: all generations before it have gone.
    pub(super) fn send(&mut self, text: String, due: Instant, deadline: Instant, settled: u64) {
        self.sent += 1;
        self.unanswered.push_back(Sent {
            due,
            deadline,
            text,
            index: self.sent,
            floor: settled,
        });
    }

    /// The oldest unanswered message.
    pub(super) fn oldest(&self) -> Option<&Sent> {
        self.unanswered.front()
    }

    /// Gives up the oldest unanswered message. Its answer may come yet, and is then counted already.
    pub(super) fn give_up(&mut self) -> Option<Sent> {
        let sent = self.unanswered.pop_front()?;
        self.pass(sent.text.clone(), false);
        Some(sent)
    }

    fn pass(&mut self, text: String, answered: bool) {
        self.past.push_back((text, answered));
        if self.past.len() > MAX_PAST {
            self.past.pop_front();
        }
    }

    /// A message came. `None`: it answers one that was given up, and that is counted already.
    pub(super) fn judge(&mut self, answer: &str) -> Option<Judged> {
        let Some((count, generation, text)) = parse(answer) else {
            let why = format!("not `<n> <generation> <message>`: {answer:.120?}");
            return Some(self.instead_of_the_oldest(Outcome::WrongBody, why));
        };
        let Some(place) = self.unanswered.iter().position(|sent| sent.text == text) else {
            return self.judge_stranger(answer, text);
        };
        let sent = self.unanswered.remove(place)?;
        self.pass(sent.text.clone(), true);
        let (outcome, detail) = self.check(&sent, count, generation);
        self.generation = self.generation.max(generation);
        self.answered = self.answered.max(sent.index);
        Some(Judged {
            due: Some(sent.due),
            outcome,
            detail,
            generation: Some(generation),
        })
    }

    fn check(&mut self, sent: &Sent, count: u64, generation: u64) -> (Outcome, String) {
        let expected = i128::from(sent.index) + self.ahead;
        let floor = self.generation.max(sent.floor);
        self.ahead = i128::from(count) - i128::from(sent.index);
        if i128::from(count) != expected {
            let why = format!("counted as {count}, when it was number {expected}");
            (Outcome::WrongCount, why)
        } else if sent.index < self.answered {
            let why = format!("number {} was answered after {}", sent.index, self.answered);
            (Outcome::WrongCount, why)
        } else if generation < floor {
            let why = format!("answered by {generation}, when it had to be {floor} or later");
            (Outcome::OldGeneration, why)
        } else {
            (Outcome::Ok, String::new())
        }
    }

    /// The echo is of no message that waits for an answer.
    fn judge_stranger(&mut self, answer: &str, text: &str) -> Option<Judged> {
        let past = self.past.iter_mut().find(|(past, _)| past == text);
        match past {
            Some((_, answered @ false)) => {
                *answered = true;
                None
            }
            Some(_) => Some(Judged {
                due: None,
                outcome: Outcome::WrongCount,
                detail: format!("answered twice: {answer:.120?}"),
                generation: None,
            }),
            None => {
                let why = format!("the echo of no message: {answer:.120?}");
                Some(self.instead_of_the_oldest(Outcome::WrongEcho, why))
            }
        }
    }

    fn instead_of_the_oldest(&mut self, outcome: Outcome, detail: String) -> Judged {
        Judged {
            due: self.give_up().map(|sent| sent.due),
            outcome,
            detail,
            generation: None,
        }
    }
}

fn parse(answer: &str) -> Option<(u64, u64, &str)> {
    let (count, rest) = answer.split_once(' ')?;
    let (generation, text) = rest.split_once(' ')?;
    Some((count.parse().ok()?, generation.parse().ok()?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session of generation 2 in which `a`, `b`, `c` were sent.
    fn tally() -> Tally {
        let mut tally = Tally::new(2);
        let now = Instant::now();
        for text in ["a", "b", "c"] {
            tally.send(text.into(), now, now, 2);
        }
        tally
    }

    fn outcomes(tally: &mut Tally, answers: &[&str]) -> Vec<Option<Outcome>> {
        answers
            .iter()
            .map(|answer| tally.judge(answer).map(|judged| judged.outcome))
            .collect()
    }

    const OK: Option<Outcome> = Some(Outcome::Ok);
    const COUNT: Option<Outcome> = Some(Outcome::WrongCount);
    const ECHO: Option<Outcome> = Some(Outcome::WrongEcho);

    #[test]
    fn right_answers_are_ok_across_generations() {
        let mut tally = tally();
        assert_eq!(outcomes(&mut tally, &["1 2 a", "2 3 b", "3 3 c"]), [OK; 3]);
        assert_eq!(tally.oldest(), None);
    }

    #[test]
    fn a_count_that_starts_anew_is_counted_once() {
        let answers = ["1 2 a", "1 3 b", "2 3 c"];
        assert_eq!(outcomes(&mut tally(), &answers), [OK, COUNT, OK]);
    }

    #[test]
    fn a_message_that_the_server_never_saw_stays_unanswered() {
        let mut tally = tally();
        assert_eq!(outcomes(&mut tally, &["1 2 a", "2 2 c"]), [OK, COUNT]);
        assert_eq!(tally.give_up().unwrap().text, "b");
    }

    #[test]
    fn answers_out_of_order_are_seen() {
        let answers = ["2 2 b", "1 2 a", "3 2 c"];
        assert_eq!(outcomes(&mut tally(), &answers), [OK, COUNT, OK]);
    }

    #[test]
    fn an_answer_that_comes_twice_is_one_too_many() {
        let answers = ["1 2 a", "2 2 a", "2 2 b", "3 2 c"];
        assert_eq!(outcomes(&mut tally(), &answers), [OK, COUNT, OK, OK]);
    }

    #[test]
    fn a_wrong_echo_takes_the_place_of_a_right_one() {
        let answers = ["1 2 x", "2 2 b", "3 2 c", "4 2 y"];
        assert_eq!(outcomes(&mut tally(), &answers), [ECHO, OK, OK, ECHO]);
    }

    #[test]
    fn a_late_answer_is_counted_as_lost_and_not_again() {
        let mut tally = tally();
        assert_eq!(tally.give_up().unwrap().text, "a");
        assert_eq!(
            outcomes(&mut tally, &["1 2 a", "2 2 b", "3 2 c"]),
            [None, OK, OK]
        );
    }

    #[test]
    fn no_generation_comes_back() {
        let old = Some(Outcome::OldGeneration);
        assert_eq!(outcomes(&mut tally(), &["1 1 a"]), [old], "opened later");
        let answers = ["1 3 a", "2 2 b", "3 3 c"];
        assert_eq!(outcomes(&mut tally(), &answers), [OK, old, OK]);
        let mut tally = tally();
        tally.send("d".into(), Instant::now(), Instant::now(), 3);
        let answers = ["1 2 a", "2 2 b", "3 2 c", "4 2 d"];
        assert_eq!(
            outcomes(&mut tally, &answers),
            [OK, OK, OK, old],
            "it has gone"
        );
    }

    #[test]
    fn what_is_no_answer_at_all() {
        for wrong in ["", "1", "1 2", "x 2 a", "1 x a", "hello"] {
            let judged = tally().judge(wrong).unwrap();
            assert_eq!(judged.outcome, Outcome::WrongBody, "{wrong}");
        }
    }
}
