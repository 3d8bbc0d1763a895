//! Breadth first through every state, so that what is found first is the shortest way to it.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fmt::Write as _,
    hash::{DefaultHasher, Hash, Hasher},
    mem::Discriminant,
};

use super::{
    super::{Timer, child, parent},
    invariants::{Broken, Invariant, check, check_end, end_of},
    world::{Config, Step, Who, World},
};

/// What a walk has seen.
#[derive(Debug, Default)]
pub(super) struct Walk {
    pub(super) states: usize,
    pub(super) transitions: usize,
    /// States in which nothing more happens by itself: parent serves, child serves, stopped, excused.
    pub(super) ends: [usize; 4],
    pub(super) parent_states: HashSet<Discriminant<parent::State>>,
    pub(super) child_states: HashSet<Discriminant<child::State>>,
}

/// A broken invariant, and the shortest way to it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) invariant: Invariant,
    pub(super) story: String,
}

/// The way back: the state before, and the step from there.
struct Seen {
    from: u32,
    step: Option<Step>,
}

/// 128 bits of a state stand for it: the states themselves are not kept.
fn fingerprint(world: &World) -> u128 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    let high = hasher.finish();
    hasher.write_u8(1);
    u128::from(high) << 64 | u128::from(hasher.finish())
}

fn number(of: usize) -> u32 {
    u32::try_from(of).expect("fewer states than fit into memory")
}

/// Walks through all that the configuration allows.
pub(super) fn walk(config: &Config) -> Result<Walk, Found> {
    let mut walk = Walk::default();
    let start = World::start(config);
    let mut known = HashMap::from([(fingerprint(&start), 0)]);
    let mut seen = vec![Seen {
        from: 0,
        step: None,
    }];
    let mut edges = Vec::new();
    let mut level = vec![(0, start)];
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for (place, world) in level {
            walk.parent_states
                .insert(std::mem::discriminant(world.parent.state()));
            walk.child_states
                .insert(std::mem::discriminant(&world.child.state()));
            let fail = |broken| Err(found(config, &seen, place, broken));
            if let Err(broken) = check(&world, config) {
                return fail(broken);
            }
            let steps = world.steps(config);
            if !steps.iter().any(|step| step.is_natural()) {
                walk.ends[end_of(&world) as usize] += 1;
                if let Err(broken) = check_end(&world, config) {
                    return fail(broken);
                }
            }
            for step in steps {
                let after = world.after(step, config);
                if after == world {
                    continue;
                }
                walk.transitions += 1;
                let to = match known.entry(fingerprint(&after)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let to = *new.insert(number(seen.len()));
                        seen.push(Seen {
                            from: place,
                            step: Some(step),
                        });
                        next_level.push((to, after));
                        to
                    }
                };
                if !matches!(step, Step::TimerOf(_, Timer::Heartbeat)) {
                    edges.push((place, to));
                }
            }
        }
        level = next_level;
    }
    walk.states = seen.len();
    match in_a_circle(seen.len(), &edges) {
        Some(place) => {
            let broken = (
                Invariant::I7,
                "a story without an end: this state comes again, without a heartbeat between",
            );
            Err(found(config, &seen, place, broken))
        }
        None => Ok(walk),
    }
}

/// A state on, or behind, a circle of these edges (Kahn's algorithm).
fn in_a_circle(states: usize, edges: &[(u32, u32)]) -> Option<u32> {
    let mut first = vec![0_usize; states + 1];
    let mut incoming = vec![0_u32; states];
    for (from, to) in edges {
        first[*from as usize + 1] += 1;
        incoming[*to as usize] += 1;
    }
    for place in 0..states {
        first[place + 1] += first[place];
    }
    let mut targets = vec![0_u32; edges.len()];
    let mut filled = first.clone();
    for (from, to) in edges {
        targets[filled[*from as usize]] = *to;
        filled[*from as usize] += 1;
    }
    let mut free: Vec<usize> = (0..states).filter(|place| incoming[*place] == 0).collect();
    let mut ordered = 0;
    while let Some(place) = free.pop() {
        ordered += 1;
        for to in &targets[first[place]..first[place + 1]] {
            incoming[*to as usize] -= 1;
            if incoming[*to as usize] == 0 {
                free.push(*to as usize);
            }
        }
    }
    (ordered < states).then(|| number(incoming.iter().position(|n| *n > 0).unwrap_or(0)))
}

/// Tells the way to a state, for people.
fn found(config: &Config, seen: &[Seen], place: u32, (invariant, words): Broken) -> Found {
    let mut steps = Vec::new();
    let mut at = place;
    while let Some(step) = seen[at as usize].step {
        steps.push(step);
        at = seen[at as usize].from;
    }
    let mut world = World::start(config);
    let mut story = format!("{invariant:?}: {words}\n  {config}\n");
    tell(&mut story, "start", &world);
    for step in steps.into_iter().rev() {
        world = world.after(step, config);
        tell(&mut story, &format!("{step:?}"), &world);
    }
    Found { invariant, story }
}

fn tell(story: &mut String, step: &str, world: &World) {
    let line = |who: Who, state: String| {
        let process = world.process(who);
        let timers: Vec<_> = process.armed().collect();
        let frozen = if process.frozen { " frozen" } else { "" };
        let doomed = if process.doomed.is_some() {
            " doomed"
        } else {
            ""
        };
        format!(
            "{state} ({:?}{frozen}{doomed}, accepts {:?}, timers {timers:?}, to hear {:?})",
            process.life, process.accepts, process.queue
        )
    };
    let parent = line(Who::Parent, format!("{:?}", world.parent.state()));
    let child = line(Who::Child, format!("{:?}", world.child.state()));
    let _ = writeln!(
        story,
        "  {step}\n      parent {parent}\n      child  {child}"
    );
}
