use super::{Action as A, Event as E, *};

/// Words where words do not matter.
fn why() -> String {
    "why".to_owned()
}

fn offered() -> Parent {
    let mut parent = Parent::new(false).0;
    parent.on(E::Hello(Ok(1)));
    parent
}

/// A parent in each state that it can be in before `Confirm`, with a name.
fn before_confirm(probation: bool) -> Vec<(&'static str, Parent)> {
    let mut parent = Parent::new(probation).0;
    let mut states = vec![("joining", parent.clone())];
    let events = [
        ("booting", E::Hello(Ok(1))),
        ("snapshotting", E::Prepared),
        ("restoring", E::Snapshot(Ok(()))),
        ("retiring", E::Ready),
        ("committing", E::Retired),
        ("probation", E::Accepting),
    ];
    for (name, event) in events {
        parent.on(event);
        states.push((name, parent.clone()));
    }
    states
}

fn at(name: &str, probation: bool) -> Parent {
    let states = before_confirm(probation).into_iter();
    let found = states.into_iter().find(|(state, _)| *state == name);
    found
        .unwrap_or_else(|| panic!("no state is named {name}"))
        .1
}

fn failure(actions: &[A]) -> Option<&Failure> {
    actions.iter().find_map(|action| match action {
        A::Failed(failure) => Some(failure),
        _ => None,
    })
}

#[test]
fn a_dry_run_ends_where_a_reload_would_be_decided() {
    let mut parent = Parent::dry_run().0;
    for event in [E::Hello(Ok(1)), E::Prepared, E::Snapshot(Ok(()))] {
        parent.on(event);
    }
    let discard = [
        A::Cancel(Timer::Ready),
        A::Phase("discarding"),
        A::SendAbort(DISCARDED.to_owned()),
        A::Start(Timer::Goodbye),
    ];
    assert_eq!(parent.on(E::Ready), discard);
    let mut slow = parent.clone();
    assert_eq!(slow.on(E::Timer(Timer::Goodbye)), [A::Kill]);
    // Its own words on the way out are no news.
    for event in [
        E::Refused(why()),
        E::Broken(why()),
        E::Accepting,
        E::Rollback,
    ] {
        assert_eq!(parent.on(event), []);
    }
    let gone = [A::Cancel(Timer::Goodbye), A::Discarded, A::Ended];
    assert_eq!(parent.on(E::Died("exited".to_owned())), gone);
}

#[test]
fn a_reload_without_probation() {
    let (mut parent, actions) = Parent::new(false);
    assert_eq!(actions, [A::Phase("joining"), A::Start(Timer::Ready)]);
    let mut say = |event| parent.on(event);
    assert_eq!(
        say(E::Hello(Ok(7))),
        [A::SendOffer { version: 7 }, A::Phase("booting")]
    );
    assert_eq!(say(E::Prepared), [A::Phase("restoring"), A::TakeSnapshot]);
    assert_eq!(say(E::Snapshot(Ok(()))), [A::SendState]);
    let ready = [
        A::Cancel(Timer::Ready),
        A::Phase("committing"),
        A::Start(Timer::Retire),
        A::Retire,
    ];
    assert_eq!(say(E::Ready), ready);
    let retired = [
        A::Cancel(Timer::Retire),
        A::SendCommit,
        A::Start(Timer::Accept),
    ];
    assert_eq!(say(E::Retired), retired);
    let accepting = [
        A::Cancel(Timer::Accept),
        A::PauseAccepting,
        A::Start(Timer::Confirm),
    ];
    assert_eq!(say(E::Accepting), accepting);
    let confirmed = [
        A::Cancel(Timer::Silence),
        A::Cancel(Timer::Confirm),
        A::SendConfirm,
        A::ReleaseOwnership,
        A::Phase("draining"),
        A::StartDrain,
        A::Start(Timer::Heartbeat),
    ];
    assert_eq!(say(E::Timer(Timer::Confirm)), confirmed);
    let beat = [A::SayDraining, A::Start(Timer::Heartbeat)];
    assert_eq!(say(E::Timer(Timer::Heartbeat)), beat);
    let drained = [A::Cancel(Timer::Heartbeat), A::SendBye, A::Ended];
    assert_eq!(say(E::Drained), drained);
    assert_eq!(parent.state(), &State::Ended);
}

#[test]
fn a_probation_asks_and_ends_with_a_last_answer() {
    let mut parent = at("committing", true);
    let actions = parent.on(E::Accepting);
    assert!(actions.contains(&A::PauseAccepting));
    assert!(actions.ends_with(&[A::AskHealth, A::Start(Timer::Silence)]));
    let answered = [A::Cancel(Timer::Silence), A::Start(Timer::Heartbeat)];
    assert_eq!(parent.on(E::Health(None)), answered);
    let asked = [A::AskHealth, A::Start(Timer::Silence)];
    assert_eq!(parent.on(E::Timer(Timer::Heartbeat)), asked);
    parent.on(E::Health(None));
    assert!(parent.on(E::Timer(Timer::Probation)).ends_with(&asked));
    assert_eq!(parent.state(), &State::Confirming);
    let answered = [A::Cancel(Timer::Silence), A::Start(Timer::Confirm)];
    assert_eq!(parent.on(E::Health(None)), answered);
    assert!(
        parent
            .on(E::Timer(Timer::Confirm))
            .contains(&A::SendConfirm)
    );
    assert!(parent.is_confirmed());
}

#[test]
fn an_operator_who_confirms_gets_a_last_answer_too() {
    let mut parent = at("probation", true);
    assert!(parent.on(E::ConfirmNow).contains(&A::AskHealth));
    assert_eq!(parent.on(E::ConfirmNow), []);
    assert!(parent.on(E::Timer(Timer::Silence)).contains(&A::Kill));
}

#[test]
fn an_operator_who_decides_outside_of_probation_decides_nothing() {
    for (name, parent) in before_confirm(false) {
        for event in [E::ConfirmNow, E::Rollback] {
            let mut parent = parent.clone();
            let before = parent.clone();
            if name != "probation" {
                assert_eq!(parent.on(event), [], "{name}");
                assert_eq!(parent, before, "{name}");
            }
        }
    }
}

#[test]
fn a_child_that_dies_leaves_the_parent_as_it_was() {
    let undo = [
        ("joining", "joining", Undo::Nothing),
        ("booting", "booting", Undo::Nothing),
        ("snapshotting", "restoring", Undo::Nothing),
        ("restoring", "restoring", Undo::Nothing),
        ("retiring", "committing", Undo::Retired),
        ("committing", "committing", Undo::Ownership),
        ("probation", "probation", Undo::Accepting),
    ];
    for (name, phase, undo) in undo {
        let mut parent = at(name, true);
        let actions = parent.on(E::Died("was killed by signal 9".to_owned()));
        let failure = failure(&actions).unwrap();
        assert_eq!((failure.phase, failure.undo), (phase, undo));
        assert_eq!(failure.reason, "the child was killed by signal 9");
        assert_eq!(actions.last(), Some(&A::Ended));
        assert!(actions.iter().all(|a| !matches!(a, A::Start(_))));
        assert_eq!(parent.state(), &State::Ended);
    }
}

#[test]
fn a_child_that_refuses_is_told_until_it_may_accept_and_killed_from_then_on() {
    for (name, mut parent) in before_confirm(true) {
        let actions = parent.on(E::Refused(why()));
        let told = actions.contains(&A::SendAbort(why()));
        let killed = actions.contains(&A::Kill);
        let may_accept = matches!(name, "committing" | "probation");
        assert_eq!((told, killed), (!may_accept, may_accept), "{name}");
        assert_eq!(actions.contains(&A::Start(Timer::Goodbye)), told, "{name}");
        assert_eq!(failure(&actions), None, "{name}: before its death");
        let actions = parent.on(E::Died(why()));
        assert_eq!(
            failure(&actions).unwrap().reason,
            "why",
            "{name}: the first reason counts"
        );
    }
}

#[test]
fn what_is_late_is_told_or_killed_and_its_death_awaited() {
    let deadlines = [
        ("joining", Timer::Ready, "Hello"),
        ("booting", Timer::Ready, "prepared"),
        ("snapshotting", Timer::Ready, "state"),
        ("restoring", Timer::Ready, "ready"),
        ("retiring", Timer::Retire, "hook"),
        ("committing", Timer::Accept, "accept"),
        ("probation", Timer::Silence, "answer"),
    ];
    for (name, timer, word) in deadlines {
        let mut parent = at(name, true);
        let actions = parent.on(E::Timer(timer));
        // The hook is our own: the child is not to blame.
        let killed = name != "retiring";
        assert_eq!(actions.contains(&A::Kill), killed, "{name}");
        assert_eq!(failure(&actions), None, "{name}");
        if !killed {
            assert_eq!(parent.on(E::Timer(Timer::Goodbye)), [A::Kill]);
        }
        let actions = parent.on(E::Died(why()));
        let reason = &failure(&actions).unwrap().reason;
        assert!(reason.contains(word), "{name}: {reason}");
    }
}

#[test]
fn a_child_that_talks_nonsense_is_killed() {
    for (name, parent) in before_confirm(true) {
        for event in [E::Broken(why()), E::Returned] {
            let actions = parent.clone().on(event);
            assert!(actions.contains(&A::Kill), "{name}: {actions:?}");
        }
    }
    assert!(offered().on(E::Accepting).contains(&A::Kill));
    assert!(offered().on(E::Hello(Ok(1))).contains(&A::Kill));
}

#[test]
fn versions_that_do_not_meet_are_said() {
    let mut parent = Parent::new(false).0;
    let actions = parent.on(E::Hello(Err(why())));
    assert!(actions.contains(&A::SendAbort(why())));
}

#[test]
fn what_comes_too_late_is_nothing() {
    let mut parent = at("retiring", true);
    parent.on(E::Timer(Timer::Retire));
    for event in [
        E::Retired,
        E::Snapshot(Ok(())),
        E::Ready,
        E::Timer(Timer::Ready),
    ] {
        assert_eq!(parent.on(event), []);
    }
    assert_eq!(offered().on(E::Timer(Timer::Accept)), []);
}

#[test]
fn a_child_is_revoked_when_the_parent_accepts_again() {
    let ill = E::Health(Some("no database".to_owned()));
    for event in [E::Rollback, ill] {
        for confirming in [false, true] {
            let mut parent = at("probation", true);
            if confirming {
                parent.on(E::ConfirmNow);
            }
            let actions = parent.on(event.clone());
            let place = |wanted: fn(&A) -> bool| actions.iter().position(wanted).unwrap();
            let accepts = place(|a| *a == A::ResumeAccepting);
            assert!(accepts < place(|a| matches!(a, A::SendRevoke(_))));
            assert!(actions.contains(&A::Start(Timer::Leave)));
            assert_eq!(parent.on(E::Health(None)), []);
            for yields in [false, true] {
                let mut parent = parent.clone();
                if yields {
                    assert_eq!(parent.on(E::Yielded), [A::TakeBack]);
                }
                let over = [A::Cancel(Timer::Leave), A::Start(Timer::Goodbye)];
                assert_eq!(parent.on(E::Returned), over);
                let actions = parent.on(E::Died(why()));
                let undo = if yields {
                    Undo::Nothing
                } else {
                    Undo::Accepting
                };
                assert_eq!(failure(&actions).unwrap().undo, undo);
            }
        }
    }
}

#[test]
fn a_revoked_child_that_does_not_go_is_killed() {
    for event in [E::Timer(Timer::Leave), E::Broken(why())] {
        let mut parent = at("probation", true);
        parent.on(E::Rollback);
        assert_eq!(parent.on(event), [A::Cancel(Timer::Leave), A::Kill]);
    }
    let mut parent = at("probation", true);
    parent.on(E::Rollback);
    parent.on(E::Returned);
    assert_eq!(parent.on(E::Timer(Timer::Goodbye)), [A::Kill]);
}

#[test]
fn after_a_stop_nothing_comes_back() {
    for (name, parent) in before_confirm(true) {
        for by_operator in [true, false] {
            let mut parent = parent.clone();
            let event = if by_operator {
                E::Stop(why())
            } else {
                E::Stopped(why())
            };
            let actions = parent.on(event);
            assert_eq!(actions.contains(&A::SendStop(why())), by_operator, "{name}");
            assert!(actions.contains(&A::StopSelf(why())), "{name}");
            let accepts = matches!(name, "committing" | "probation");
            let timer = if accepts {
                Timer::Leave
            } else {
                Timer::Goodbye
            };
            assert!(actions.contains(&A::Start(timer)), "{name}");
            for event in [E::Accepting, E::Rollback, E::Broken(why()), E::Stop(why())] {
                assert_eq!(parent.on(event), [], "{name}");
            }
            assert_eq!(parent.on(E::Timer(timer)), [A::Kill]);
            assert_eq!(failure(&parent.on(E::Died(why()))), None, "{name}");
            assert_eq!(parent.state(), &State::Ended);
        }
    }
}

fn draining() -> Parent {
    let mut parent = at("probation", false);
    parent.on(E::Timer(Timer::Confirm));
    assert!(parent.is_confirmed());
    parent
}

#[test]
fn a_drain_goes_on_without_the_child() {
    for (event, child_is_dead) in [(E::Died(why()), true), (E::Broken(why()), false)] {
        let mut parent = draining();
        assert_eq!(parent.on(event), [A::DrainAlone { child_is_dead }]);
        for late in [E::Died(why()), E::Broken(why()), E::Successor, E::Vanished] {
            assert_eq!(parent.on(late), []);
        }
        // Somebody may have the other end, and takes silence for a crash.
        let beat = [A::SayDraining, A::Start(Timer::Heartbeat)];
        assert_eq!(parent.on(E::Timer(Timer::Heartbeat)), beat);
        let bye = [A::Cancel(Timer::Heartbeat), A::SendBye, A::Ended];
        assert_eq!(parent.on(E::Drained), bye);
    }
}

#[test]
fn a_child_that_dies_may_have_passed_the_channel_on() {
    let forsaken = || {
        let mut parent = draining();
        assert_eq!(parent.on(E::Vanished), [A::Start(Timer::Successor)]);
        assert!(parent.is_confirmed());
        let beat = [A::SayDraining, A::Start(Timer::Heartbeat)];
        assert_eq!(parent.on(E::Timer(Timer::Heartbeat)), beat);
        parent
    };
    let over = A::Cancel(Timer::Successor);
    let mut parent = forsaken();
    assert_eq!(parent.on(E::Successor), std::slice::from_ref(&over));
    assert_eq!(parent.state(), &State::Draining { child_lives: true });
    for (event, child_is_dead) in [
        (E::Timer(Timer::Successor), false),
        (E::Broken(why()), false),
        (E::Died(why()), true),
    ] {
        let mut parent = forsaken();
        let alone = [over.clone(), A::DrainAlone { child_is_dead }];
        assert_eq!(parent.on(event), alone);
        assert_eq!(parent.state(), &State::Draining { child_lives: false });
    }
    for event in [E::Stop(why()), E::Stopped(why())] {
        assert_eq!(forsaken().on(event), [A::StopSelf(why())]);
    }
    assert!(forsaken().on(E::Drained).contains(&A::SendBye));
}

#[test]
fn a_draining_parent_that_is_stopped_ends_alone() {
    for event in [E::Stop(why()), E::Stopped(why())] {
        let mut parent = draining();
        assert_eq!(parent.on(event), [A::StopSelf(why())]);
        assert!(parent.on(E::Drained).contains(&A::SendBye));
    }
}
