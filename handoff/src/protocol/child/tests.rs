use super::{Action as A, Event as E, *};

fn why() -> String {
    "why".to_owned()
}

/// A child in each state that it can be in before the commit, with a name.
fn before_commit(promote: bool) -> Vec<(&'static str, Child)> {
    let mut child = Child::new(promote).0;
    let mut states = vec![("joining", child.clone())];
    let events = [
        ("preparing", E::Offer(Ok(()))),
        ("prepared", E::Prepared(Ok(()))),
        ("restoring", E::State(Ok(()))),
        ("ready", E::Restored(Ok(()))),
    ];
    for (name, event) in events {
        child.on(event);
        states.push((name, child.clone()));
    }
    states
}

fn ready(promote: bool) -> Child {
    let mut states = before_commit(promote);
    states.pop().unwrap().1
}

fn committed(promote: bool) -> Child {
    let mut child = ready(promote);
    child.on(E::Commit);
    child
}

fn exits(actions: &[A]) -> bool {
    matches!(actions.last(), Some(A::Exit(_)))
}

#[test]
fn a_succession() {
    let (mut child, actions) = Child::new(true);
    assert_eq!(actions, [A::SendHello, A::Start(Timer::Ready)]);
    assert_eq!(child.on(E::Offer(Ok(()))), [A::Prepare]);
    assert_eq!(child.on(E::Prepared(Ok(()))), [A::SendPrepared]);
    assert_eq!(child.on(E::State(Ok(()))), [A::Restore]);
    assert_eq!(child.on(E::Restored(Ok(()))), [A::SendReady]);
    assert!(!child.has_taken_over());
    let taken_over = [
        A::Cancel(Timer::Ready),
        A::TakeOver,
        A::SendAccepting,
        A::Start(Timer::Silence),
    ];
    assert_eq!(child.on(E::Commit), taken_over);
    assert!(child.has_taken_over());
    assert_eq!(
        child.on(E::AskHealth),
        [A::AnswerHealth, A::Start(Timer::Silence)]
    );
    assert_eq!(child.on(E::Confirm), [A::Final, A::Start(Timer::Silence)]);
    assert_eq!(child.on(E::Heard), [A::Start(Timer::Silence)]);
    let gone = [A::Cancel(Timer::Silence), A::ParentGone { crashed: false }];
    assert_eq!(child.on(E::Bye), gone);
    assert_eq!(child.state(), State::Ended { serving: true });
    assert_eq!(child.on(E::ParentDied), []);
}

#[test]
fn before_the_commit_it_accepts_nothing_whatever_it_is_told() {
    for (name, child) in before_commit(true) {
        let ends = [
            E::Stop(why()),
            E::Stopped(why()),
            E::Aborted(why()),
            E::Broken(why()),
            E::Timer(Timer::Ready),
            E::Offer(Err(why())),
            E::Prepared(Err(why())),
            E::State(Err(why())),
            E::Restored(Err(why())),
            E::Confirm,
            E::AskHealth,
            E::Revoke(why()),
        ];
        for event in ends {
            let mut child = child.clone();
            let actions = child.on(event.clone());
            assert!(exits(&actions), "{name}: {event:?}: {actions:?}");
            assert!(!actions.contains(&A::TakeOver));
            assert_eq!(child.state(), State::Ended { serving: false });
            assert_eq!(child.on(E::ParentDied), [], "{name}: it does not come back");
        }
    }
}

#[test]
fn a_failure_is_told_and_a_stop_is_passed_on() {
    let mut child = ready(true);
    assert_eq!(child.clone().on(E::Broken(why()))[0], A::SendRefuse(why()));
    assert_eq!(child.clone().on(E::Stop(why()))[0], A::SendStop(why()));
    let silent = child.on(E::Stopped(why()));
    assert_eq!(
        silent.len(),
        1,
        "who has said it need not be told: {silent:?}"
    );
}

#[test]
fn a_commit_comes_once_and_only_to_the_ready() {
    for (name, mut child) in before_commit(true) {
        assert_eq!(exits(&child.on(E::Commit)), name != "ready", "{name}");
    }
}

#[test]
fn an_orphan_takes_over_once_it_has_an_offer() {
    for (name, mut child) in before_commit(true) {
        let mut actions = child.on(E::ParentDied);
        assert_eq!(actions[0], A::ParentGone { crashed: true }, "{name}");
        if name == "joining" {
            assert!(exits(&actions));
            continue;
        }
        if name == "preparing" {
            assert_eq!(actions.len(), 1);
            actions = child.on(E::Prepared(Ok(())));
        }
        if matches!(name, "preparing" | "prepared") {
            assert_eq!(actions.pop(), Some(A::ColdStart), "{name}");
        }
        if name != "ready" {
            assert!(!child.has_taken_over(), "{name}");
            actions = child.on(E::Restored(Ok(())));
        }
        let taken_over = [A::Cancel(Timer::Ready), A::TakeOver, A::Final];
        assert!(actions.ends_with(&taken_over), "{name}: {actions:?}");
        assert_eq!(child.state(), State::Ended { serving: true });
    }
}

#[test]
fn an_orphan_ends_if_it_is_not_to_be_promoted() {
    for (name, mut child) in before_commit(false) {
        assert!(exits(&child.on(E::ParentDied)), "{name}");
    }
}

#[test]
fn an_orphan_has_a_deadline() {
    let (_, mut child) = before_commit(true).swap_remove(1);
    child.on(E::ParentDied);
    assert!(exits(&child.on(E::Timer(Timer::Ready))));
}

#[test]
fn in_probation_a_parent_that_dies_is_succeeded_whatever_was_agreed() {
    for promote in [true, false] {
        let mut child = committed(promote);
        let actions = child.on(E::ParentDied);
        assert!(actions.contains(&A::Final));
        assert!(actions.contains(&A::ParentGone { crashed: true }));
        assert_eq!(child.state(), State::Ended { serving: true });
    }
}

#[test]
fn in_probation_a_parent_that_is_silent_or_broken_is_killed_and_its_death_awaited() {
    for event in [E::Timer(Timer::Silence), E::Broken(why())] {
        let mut child = committed(true);
        assert_eq!(child.on(event), [A::Cancel(Timer::Silence), A::KillParent]);
        assert!(child.has_taken_over());
        for late in [E::Confirm, E::Revoke(why()), E::AskHealth, E::Heard] {
            assert_eq!(child.on(late), []);
        }
        assert!(child.on(E::ParentDied).contains(&A::Final));
    }
}

#[test]
fn a_parent_that_was_killed_may_have_said_stop() {
    let mut child = committed(true);
    child.on(E::Timer(Timer::Silence));
    assert!(child.on(E::Stopped(why())).contains(&A::StopSelf(why())));
    assert_eq!(child.on(E::ParentDied), []);
    assert_eq!(child.state(), State::Ended { serving: false });
}

fn revoked(promote: bool) -> Child {
    let mut child = committed(promote);
    let returning = [A::Cancel(Timer::Silence), A::Return, A::Start(Timer::Leave)];
    assert_eq!(child.on(E::Revoke(why())), returning);
    assert!(!child.has_taken_over());
    child
}

#[test]
fn a_revoked_child_returns_what_it_has_and_ends() {
    let mut child = revoked(true);
    assert_eq!(child.on(E::Retired), [A::SendYielded]);
    assert_eq!(child.state(), State::Returning);
    let actions = revoked(true).on(E::Returned);
    assert_eq!(actions[0], A::SendBye);
    assert!(exits(&actions));
    let actions = revoked(true).on(E::Timer(Timer::Leave));
    assert!(matches!(actions[0], A::SendRefuse(_)));
    assert!(exits(&actions));
}

#[test]
fn a_revoked_child_whose_parent_dies_serves_on() {
    let mut child = revoked(true);
    let serves = [
        A::Cancel(Timer::Leave),
        A::Resume,
        A::Final,
        A::ParentGone { crashed: true },
    ];
    assert_eq!(child.on(E::ParentDied), serves);
    assert!(child.has_taken_over());
    assert!(exits(&revoked(false).on(E::ParentDied)));
}

#[test]
fn after_a_stop_nothing_comes_back() {
    let mut deposing = committed(true);
    deposing.on(E::Broken(why()));
    let states = [
        ("probation", committed(true), true),
        ("returning", revoked(true), true),
        ("deposing", deposing, false),
    ];
    for (name, child, says) in states {
        for by_operator in [true, false] {
            let mut child = child.clone();
            let event = if by_operator {
                E::Stop(why())
            } else {
                E::Stopped(why())
            };
            let actions = child.on(event);
            let said = actions.contains(&A::SendStop(why()));
            assert_eq!(said, by_operator && says, "{name}");
            assert_eq!(actions.last(), Some(&A::StopSelf(why())), "{name}");
            for event in [E::Confirm, E::Revoke(why()), E::Timer(Timer::Silence)] {
                assert_eq!(child.on(event), [], "{name}");
            }
            assert_eq!(child.on(E::ParentDied), [], "{name}");
            assert_eq!(child.state(), State::Ended { serving: false }, "{name}");
        }
    }
}

#[test]
fn while_it_serves_a_frozen_parent_is_killed_and_a_stop_is_passed_on() {
    let mut child = committed(true);
    child.on(E::Confirm);
    assert_eq!(child.on(E::Timer(Timer::Silence)), [A::KillParent]);
    let stop = [A::SendStop(why()), A::StopSelf(why())];
    assert_eq!(child.on(E::Stop(why())), stop);
    assert_eq!(child.on(E::Broken(why())), []);
    let gone = [A::Cancel(Timer::Silence), A::ParentGone { crashed: true }];
    assert_eq!(child.on(E::ParentDied), gone);
}

#[test]
fn a_channel_that_is_passed_on_is_let_go_or_listened_to_again() {
    let sent = || {
        let (mut child, actions) = Child::inherited();
        assert_eq!(actions, [A::Start(Timer::Silence)]);
        assert!(child.has_taken_over());
        let pass = [A::Cancel(Timer::Silence), A::SendChannel];
        assert_eq!(child.on(E::PassOn), pass);
        // It is another process's to read.
        for event in [E::Heard, E::Bye, E::ParentDied, E::Timer(Timer::Silence)] {
            assert_eq!(child.on(event), []);
        }
        child
    };
    for event in [E::Passed, E::Forsaken] {
        let mut child = sent();
        assert_eq!(child.on(event), [A::LetGo]);
        assert_eq!(child.state(), State::Ended { serving: true });
    }
    let mut child = sent();
    assert_eq!(child.on(E::NotPassed), [A::Start(Timer::Silence)]);
    assert_eq!(child.state(), State::Serving);
    assert_eq!(sent().on(E::Stop(why())), [A::StopSelf(why())]);
}
