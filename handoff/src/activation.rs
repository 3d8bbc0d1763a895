//! Sockets that a service manager has opened, or kept, for this process: `LISTEN_FDS` (sd_listen_fds(3)).
//!
//! The contract:
//! - They count only if `LISTEN_PID` is this process. The variables are never changed here: a process that
//!   this one starts does not get them.
//! - **Names decide.** A socket of a socket unit is the listener of its `FileDescriptorName=`, and must be what the
//!   configuration says of that one. What is not is refused: a service that listens elsewhere than its unit says
//!   helps nobody.
//! - A socket that the manager kept for a process that crashed is taken if the configuration still wants it, and
//!   let go of otherwise: the configuration may have changed meanwhile.

use std::{
    env,
    ffi::OsString,
    os::fd::{AsFd, OwnedFd},
};

use crate::{
    keeper,
    listeners::{Listener, MAX_LISTENERS, Spec},
    notify::STORED,
    registered::{self, FIRST_INHERITED},
    words,
};

const PID_VARIABLE: &str = "LISTEN_PID";
const COUNT_VARIABLE: &str = "LISTEN_FDS";
const NAMES_VARIABLE: &str = "LISTEN_FDNAMES";

/// They mean one process: none that it starts may see them.
pub(crate) const VARIABLES: [&str; 3] = [PID_VARIABLE, COUNT_VARIABLE, NAMES_VARIABLE];

/// Each listener from a socket unit and, of an earlier process, from the store; and some that are not wanted any more.
const MAX_PASSED: usize = 4 * MAX_LISTENERS;

/// The sockets, and what the manager calls them.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<(String, OwnedFd)>);

/// What the configuration makes of them.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    pub(crate) listeners: Vec<Listener>,
    /// Kept by the manager, and not wanted any more; closed here.
    pub(crate) forgotten: Vec<String>,
}

/// Takes what the environment says that there is. A second call finds nothing.
///
/// # Errors
/// In words, if the environment lies.
pub(crate) fn take() -> Result<Passed, String> {
    let Some(count) = env::var_os(COUNT_VARIABLE) else {
        return Ok(Passed::default());
    };
    // Somebody else's, who has not removed it.
    if !env::var_os(PID_VARIABLE).is_some_and(|pid| keeper::is_meant(&pid)) {
        return Ok(Passed::default());
    }
    let announced = Announced::read(&count, env::var_os(NAMES_VARIABLE))?;
    let take = |(number, name): (i32, String)| match registered::inherited(number) {
        Ok(fd) => Ok((name, fd)),
        Err(error) => Err(format!(
            "{COUNT_VARIABLE} says that there are {} sockets, but descriptor {number}, `{name}`, cannot be had: {error}",
            count.display()
        )),
    };
    let numbers = FIRST_INHERITED..;
    let taken: Result<Vec<_>, String> = numbers.zip(announced.names).map(take).collect();
    Ok(Passed(taken?))
}

#[derive(Debug, PartialEq, Eq)]
struct Announced {
    names: Vec<String>,
}

impl Announced {
    fn read(count: &OsString, names: Option<OsString>) -> Result<Self, String> {
        let number = count.to_str().and_then(|text| text.parse::<usize>().ok());
        let number = number.filter(|number| *number <= MAX_PASSED);
        let Some(number) = number else {
            return Err(format!(
                "{COUNT_VARIABLE}={} is not a number of sockets: at most {MAX_PASSED} are possible",
                count.display()
            ));
        };
        let Some(names) = names else {
            // As sd_listen_fds_with_names(3) has it.
            let names = vec!["unknown".to_owned(); number];
            return Ok(Self { names });
        };
        let text = names.to_string_lossy();
        let names: Vec<String> = match number {
            0 => vec![],
            _ => text.split(':').map(str::to_owned).collect(),
        };
        if names.len() != number {
            return Err(format!(
                "{COUNT_VARIABLE}={number}, but {NAMES_VARIABLE} has {} names: {text}",
                names.len()
            ));
        }
        Ok(Self { names })
    }
}

impl Passed {
    /// Finds the listener that each of them is.
    ///
    /// # Errors
    /// In words, with the remedy, if a socket unit and the configuration disagree.
    pub(crate) fn matched(self, specs: &[Spec]) -> Result<Matched, String> {
        let mut matched = Matched::default();
        // Relative paths made absolute; what is wrong is said when the others are bound.
        let specs: Vec<Spec> = specs
            .iter()
            .map(|spec| spec.checked().unwrap_or_else(|_| spec.clone()))
            .collect();
        for (name, fd) in self.0 {
            match name.strip_prefix(STORED) {
                Some(name) => matched.stored(name, fd, &specs),
                None => matched.activated(&name, fd, &specs)?,
            }
        }
        Ok(matched)
    }
}

impl Matched {
    fn activated(&mut self, name: &str, fd: OwnedFd, specs: &[Spec]) -> Result<(), String> {
        let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
            let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(format!(
                "the service manager passes a socket named `{name}`, and there is no listener of that name: in the socket \
                 unit, FileDescriptorName= is one of {}",
                names.join(", ")
            ));
        };
        if self.listeners.iter().any(|had| had.name() == name) {
            return Err(format!(
                "the service manager passes two sockets named `{name}`: one ListenStream= for each name"
            ));
        }
        let listener = Listener::passed(fd, spec, false).map_err(|e| words(&e))?;
        if !listener.satisfies(spec) {
            return Err(format!(
                "the socket `{name}` of the service manager is on {}, and the listener is to be on {}: make the two the \
                 same",
                listener.address(),
                spec.address
            ));
        }
        self.listeners.push(listener);
        Ok(())
    }

    fn stored(&mut self, name: &str, fd: OwnedFd, specs: &[Spec]) {
        let had = self.listeners.iter().find(|had| had.name() == name);
        // The manager has it from the socket unit, and from us, who had it from there.
        if had.is_some_and(|had| is_same(had, &fd)) {
            return;
        }
        let spec = specs.iter().find(|spec| spec.name == name);
        let listener = spec.filter(|_| had.is_none()).map(|spec| {
            let listener = Listener::passed(fd, spec, true).map_err(|e| words(&e))?;
            if listener.satisfies(spec) {
                Ok(listener)
            } else {
                Err(format!("it was on {}", listener.address()))
            }
        });
        match listener {
            Some(Ok(listener)) => {
                tracing::info!(
                    listener = name,
                    address = %listener.address(),
                    "the service manager has kept this listener: connections wait in its queue"
                );
                self.listeners.push(listener);
            }
            unwanted => {
                let reason = match unwanted {
                    Some(Err(reason)) => reason,
                    _ => "there is no such listener any more".to_owned(),
                };
                tracing::warn!(
                    listener = name,
                    reason,
                    "the service manager has kept a socket that is not wanted any more"
                );
                self.forgotten.push(name.to_owned());
            }
        }
    }
}

fn is_same(listener: &Listener, fd: &OwnedFd) -> bool {
    let identity =
        |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino));
    matches!((identity(listener.as_fd()), identity(fd.as_fd())), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests;
