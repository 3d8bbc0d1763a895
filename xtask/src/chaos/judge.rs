//! What an event may cost. It follows from what was done to the processes, and from who then ended: docs/soak.md has the
//! same in words.

use anyhow::{Result, ensure};

use super::crowd::{CLIENTS, Counts};
use super::place::Seen;
use super::script::{Event, Who};

/// What clients may notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Requests that were sent, and not answered.
    pub(super) lost: u64,
    /// Connections that rested, and sessions, that were ended in order.
    pub(super) closed: bool,
    /// Nobody listened for a while.
    pub(super) refused: bool,
    /// The service has ended, and nothing that was done to it explains that.
    pub(super) ended_by_itself: bool,
}

pub(super) fn allowed(event: &Event, seen: &Seen) -> Allowed {
    let mut allowed = Allowed::default();
    // Each process that was killed takes with it what it owned: at most one request of each client.
    allowed.lost += seen.killed_owners * CLIENTS;
    allowed.closed |= seen.killed_owners > 0;
    // Between its end and the next start nobody serves; who was in the queue of a service that ended is told by a reset.
    allowed.lost += seen.ends * 2 * CLIENTS;
    allowed.closed |= seen.ends > 0;
    allowed.refused |= seen.ends > 0;
    allowed.ended_by_itself = seen.ends > u64::from(may_end(event, seen));
    // What cannot move, for want of a descriptor, is finished where it is, and closed.
    allowed.closed |= matches!(event, Event::Descriptors { .. });
    allowed
}

/// Whether what was done can end the service: once at most.
fn may_end(event: &Event, seen: &Seen) -> bool {
    let told = seen.reload.as_ref().map(|(code, _)| *code);
    match event {
        Event::KillAtRest | Event::StopAndServe | Event::TwoServe => true,
        // The child serves by the reload's own word: the parent is not needed any more.
        Event::KillInReload {
            who: Who::Parent, ..
        } => told != Some(Some(0)),
        // The parent serves on by the reload's own word.
        Event::KillInReload {
            who: Who::Child, ..
        } => told != Some(Some(1)),
        _ => false,
    }
}

pub(super) fn judge(allowed: &Allowed, cost: &Counts) -> Result<()> {
    ensure!(
        !allowed.ended_by_itself,
        "the service has ended by itself: {cost:?}"
    );
    let lost = cost.lost + cost.silent;
    ensure!(
        lost <= allowed.lost,
        "{lost} requests were lost, and {} may be: {cost:?}",
        allowed.lost
    );
    ensure!(
        cost.closed == 0 || allowed.closed,
        "connections were closed that could have moved: {cost:?}"
    );
    ensure!(
        cost.refused == 0 || allowed.refused,
        "clients were refused: {cost:?}"
    );
    Ok(())
}

/// The application's own count of this start of it.
pub(super) fn count(requests: u64, answered: u64, lost: u64, is_exact: bool) -> Result<()> {
    ensure!(
        requests <= answered + lost,
        "served twice: the count is {requests}, {answered} were answered and {lost} lost"
    );
    ensure!(
        !is_exact || requests == answered,
        "the count is {requests}, and {answered} were answered"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cost(lost: u64, closed: u64, refused: u64) -> Counts {
        Counts {
            answered: 100,
            lost,
            closed,
            refused,
            silent: 0,
        }
    }

    #[test]
    fn a_reload_costs_nothing() {
        let nothing = allowed(&Event::Reload, &Seen::default());
        assert_eq!(nothing, Allowed::default());
        assert!(judge(&nothing, &cost(0, 0, 0)).is_ok());
        for (lost, closed, refused) in [(1, 0, 0), (0, 1, 0), (0, 0, 1)] {
            assert!(judge(&nothing, &cost(lost, closed, refused)).is_err());
        }
        let silent = Counts {
            silent: 1,
            ..cost(0, 0, 0)
        };
        assert!(judge(&nothing, &silent).is_err());
    }

    #[test]
    fn who_is_killed_takes_what_it_owned_and_no_more() {
        let event = Event::KillInReload {
            who: Who::Parent,
            after: Duration::ZERO,
        };
        let innocent = allowed(&event, &Seen::default());
        assert!(
            judge(&innocent, &cost(1, 0, 0)).is_err(),
            "a child that owned nothing"
        );
        let seen = Seen {
            killed_owners: 1,
            ..Seen::default()
        };
        let owner = allowed(&event, &seen);
        assert!(judge(&owner, &cost(CLIENTS, 9, 0)).is_ok());
        assert!(judge(&owner, &cost(CLIENTS + 1, 9, 0)).is_err());
        assert!(judge(&owner, &cost(0, 0, 1)).is_err(), "somebody serves");
        let ended = |code| Seen {
            ends: 1,
            killed_owners: 1,
            reload: Some((code, String::new())),
            ..Seen::default()
        };
        let unknown = allowed(&event, &ended(Some(4)));
        assert!(judge(&unknown, &cost(0, 0, 50)).is_ok());
        // The child was said to serve, and does not.
        let served = allowed(&event, &ended(Some(0)));
        assert!(judge(&served, &cost(0, 0, 50)).is_err());
    }

    #[test]
    fn a_service_does_not_end_by_itself() {
        let ended = Seen {
            ends: 1,
            ..Seen::default()
        };
        assert!(judge(&allowed(&Event::Reload, &ended), &cost(0, 0, 0)).is_err());
        assert!(judge(&allowed(&Event::StopAndServe, &ended), &cost(0, 0, 9)).is_ok());
    }

    #[test]
    fn a_count_is_exact_or_within_what_was_lost() {
        assert!(count(10, 10, 0, true).is_ok());
        assert!(count(9, 10, 0, true).is_err());
        assert!(count(9, 10, 1, false).is_ok());
        assert!(count(11, 10, 1, false).is_ok());
        assert!(count(12, 10, 1, false).is_err());
    }
}
