//! What must hold in every state, and at the end of every story.

use super::{
    super::{Timer, child, parent},
    world::{Accepts, Config, Conn, Fate, Fault, Life, Message, Who, World},
};

/// The names of `docs/protocol.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Invariant {
    /// Somebody alive holds every kept listener and will accept on it.
    I1,
    /// The child accepts nothing before it has read `Commit`; the parent stops only after `Accepting`.
    I2,
    /// One process owns what there is once: pidfile, control socket, the work of one generation.
    I3,
    /// A connection is served by one process.
    I4,
    /// A child that fails before it is final leaves the parent as it was.
    I5,
    /// A crash after a complete offer is succeeded, by a child that has all it needs.
    I6,
    /// Every wait has a deadline, and every story an end.
    I7,
    /// Until `Confirm` the parent can serve again.
    I8,
    /// Nothing comes back to life after an operator's stop.
    Stopped,
    /// Where nothing fails and nothing is late, the child serves in the end, with all connections.
    Works,
    /// A dry run changes nothing at all.
    DryRun,
}

pub(super) type Broken = (Invariant, &'static str);

/// What holds in every state.
pub(super) fn check(world: &World, config: &Config) -> Result<(), Broken> {
    if let Some(wrong) = world.wrong {
        return Err(wrong);
    }
    let (p, c) = (&world.p, &world.c);
    let must = |holds: bool, invariant, words| {
        if holds {
            Ok(())
        } else {
            Err((invariant, words))
        }
    };
    let up = |who: Who| world.process(who).life == Life::Up;

    must(
        p.holds || c.holds || c.queue.contains(&Message::Offer) || world.stopped || world.excused,
        Invariant::I1,
        "nobody alive holds the listeners",
    )?;
    must(
        !config.dry_run || !world.read_commit && p.accepts != Accepts::Paused,
        Invariant::DryRun,
        "a dry run has touched the parent",
    )?;
    must(
        c.accepts != Accepts::Yes || world.read_commit || p.is_dead(),
        Invariant::I2,
        "the child accepts before it has read Commit",
    )?;
    must(
        p.accepts != Accepts::Paused || world.heard_accepting,
        Invariant::I2,
        "the parent has paused before it has read Accepting",
    )?;
    must(
        p.accepts != Accepts::Over || !up(Who::Parent) || p.ending || world.released,
        Invariant::I2,
        "the parent accepts no more, and has neither been replaced nor stopped",
    )?;
    must(
        !(p.exclusive && c.exclusive),
        Invariant::I3,
        "two generations do what only one may do",
    )?;
    must(
        !(world.is_final && !c.is_dead() && up(Who::Parent))
            || world.released
            || world.is_releasing(),
        Invariant::I3,
        "the child is final, and the parent owns the service, too",
    )?;
    for conn in &world.conns {
        must(
            !(conn.at_parent == Fate::Serves && conn.child_serves),
            Invariant::I4,
            "both serve one connection",
        )?;
        must(
            conn.at_parent != Fate::Moved || conn.child_took,
            Invariant::I4,
            "a connection was acknowledged and never taken up",
        )?;
    }
    let back = &world.back;
    must(
        !(back.at_child == Some(Fate::Serves) && back.parent_serves),
        Invariant::I4,
        "both serve one connection",
    )?;
    must(
        back.at_child != Some(Fate::Moved) || back.parent_took,
        Invariant::I4,
        "a connection was acknowledged and never taken up",
    )?;
    let watches = matches!(
        world.parent.state(),
        parent::State::Probation | parent::State::Confirming
    );
    must(
        !watches || world.is_busy(Who::Parent) || p.accepts != Accepts::Yes,
        Invariant::I3,
        "the parent accepts although the child has taken over",
    )?;
    must(
        world.child.state() != child::State::Returning || c.accepts != Accepts::Yes,
        Invariant::I3,
        "a revoked child accepts",
    )?;
    must(
        world.child.state() != child::State::Returning
            || p.accepts == Accepts::Yes
            || !up(Who::Parent)
            || p.ending
            || p.told_stop,
        Invariant::I1,
        "a revoked child has paused, and the parent does not accept",
    )?;
    must(
        c.accepts != Accepts::Yes || world.child.has_taken_over(),
        Invariant::I2,
        "the child accepts, and its machine does not know",
    )?;
    let must_be_heard = match world.parent.state() {
        parent::State::Probation | parent::State::Confirming => true,
        parent::State::Draining { child_lives } => *child_lives,
        _ => false,
    };
    let speaks = p.has(Timer::Heartbeat) || p.has(Timer::Silence) || p.has(Timer::Confirm);
    must(
        !must_be_heard
            || speaks
            || p.is_doomed()
            || !p.queue.is_empty()
            || world.is_busy(Who::Parent),
        Invariant::I7,
        "a parent that watches or drains falls silent, and will be killed for it",
    )?;
    failed_reload(world)?;
    Who::BOTH.into_iter().try_for_each(|who| waits(world, who))
}

/// How a story ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    ParentServes,
    ChildServes,
    /// Nobody does: an operator has stopped the service.
    Stopped,
    /// Nobody does: more has failed than the rules cover.
    Excused,
}

pub(super) fn end_of(world: &World) -> End {
    let serves = |who: Who| world.process(who).serves() && !world.process(who).frozen;
    match () {
        () if serves(Who::Parent) => End::ParentServes,
        () if serves(Who::Child) => End::ChildServes,
        () if world.stopped => End::Stopped,
        () => End::Excused,
    }
}

/// I5: after a failed reload the parent is as it was.
fn failed_reload(world: &World) -> Result<(), Broken> {
    let p = &world.p;
    let over = *world.parent.state() == parent::State::Ended && world.transfer.is_none();
    if !over || p.life != Life::Up || p.ending || world.is_busy(Who::Parent) {
        return Ok(());
    }
    let as_it_was =
        p.serves() && p.holds && p.control && p.exclusive && world.pidfile == Some(Who::Parent);
    if as_it_was && world.c.is_dead() {
        Ok(())
    } else {
        Err((
            Invariant::I5,
            "a failed reload has not left the parent as it was",
        ))
    }
}

/// I7: whoever waits has a timer of its own, or waits for a death that is certain.
fn waits(world: &World, who: Who) -> Result<(), Broken> {
    let (process, other) = (world.process(who), world.process(who.other()));
    if process.life != Life::Up || !world.has_link(who) || world.is_busy(who) {
        return Ok(());
    }
    let death_to_come = other.is_doomed() && !process.told_dead;
    let certain = process.has_deadline()
        || !process.queue.is_empty()
        || process.ending
        || process.is_doomed()
        || death_to_come
        || (who == Who::Parent && world.is_drained());
    if certain {
        Ok(())
    } else {
        Err((Invariant::I7, "a process waits without a deadline"))
    }
}

/// What holds when nothing more will happen by itself.
pub(super) fn check_end(world: &World, config: &Config) -> Result<(), Broken> {
    let running = |who: &Who| {
        let process = world.process(*who);
        !process.is_dead() && !process.frozen
    };
    let serves = |who: &Who| world.process(*who).serves() && world.process(*who).holds;
    if config.patient && !world.has_happened(Fault::Kill(Who::Parent)) {
        return check_success(world);
    }
    let alive: Vec<Who> = Who::BOTH.into_iter().filter(running).collect();
    if alive.iter().any(|who| !serves(who)) {
        return Err((Invariant::I7, "a process lives on and does nothing"));
    }
    match alive[..] {
        [] if world.stopped || world.excused => Ok(()),
        [] => Err((Invariant::I1, "nobody is left that accepts")),
        [_] if world.stopped && !world.channel_failed() => {
            Err((Invariant::Stopped, "the service was stopped and goes on"))
        }
        [Who::Child] if world.parent_crashed.is_none() && world.p.is_dead() => Err((
            Invariant::I7,
            "the child still waits for its parent, which is dead",
        )),
        [Who::Child] if !world.is_final => {
            Err((Invariant::I6, "the child serves alone and does not know it"))
        }
        [server] => {
            let process = world.process(server);
            let frozen_owner = !config.thaws && world.process(server.other()).frozen;
            if process.control
                && process.exclusive
                && (world.pidfile == Some(server) || frozen_owner)
            {
                Ok(())
            } else {
                Err((
                    Invariant::I3,
                    "who serves does not own pidfile, control socket and the rest",
                ))
            }
        }
        _ => Err((Invariant::I3, "two processes serve, each for itself")),
    }
}

/// `Works`: what is asked for when there is no excuse.
fn check_success(world: &World) -> Result<(), Broken> {
    let replaced = world.p.is_dead() && world.is_final && world.c.serves() && world.c.holds;
    let owns = world.c.control && world.c.exclusive && world.pidfile == Some(Who::Child);
    let kept = |conn: &Conn| conn.child_serves || conn.at_parent == Fate::Finished;
    let said_goodbye = world.parent_crashed == Some(false);
    if replaced && owns && said_goodbye && world.conns.iter().all(kept) {
        Ok(())
    } else {
        Err((
            Invariant::Works,
            "nothing has failed, and the child has not taken everything over",
        ))
    }
}
