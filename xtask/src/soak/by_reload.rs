//! What became of the requests, reload by reload.

use std::collections::BTreeMap;

use serde::Serialize;

/// Reloads that are told apart; what happens after the last of them is counted there.
const MAX_RELOADS: usize = 100_000;

/// What ended between the start of one reload and that of the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Between {
    /// The reload that had begun; 0 before the first.
    pub(crate) reload: u64,
    /// Right answers, by the request's kind.
    pub(crate) ok: BTreeMap<&'static str, u64>,
    /// What was lost, by its name in `losses.log`.
    pub(crate) lost: BTreeMap<&'static str, u64>,
}

/// All of them, in order; the position is the reload's number.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByReload(Vec<Between>);

impl ByReload {
    /// A right answer to a request of this kind.
    pub(crate) fn ok(&mut self, reload: u64, kind: &'static str) {
        *self.at(reload).ok.entry(kind).or_default() += 1;
    }

    /// A loss of this name.
    pub(crate) fn lost(&mut self, reload: u64, what: &'static str) {
        *self.at(reload).lost.entry(what).or_default() += 1;
    }

    /// For the results.
    pub(crate) fn all(&self) -> Vec<Between> {
        self.0.clone()
    }

    fn at(&mut self, reload: u64) -> &mut Between {
        let place = usize::try_from(reload).map_or(MAX_RELOADS, |place| place.min(MAX_RELOADS));
        while self.0.len() <= place {
            self.0.push(Between {
                reload: self.0.len() as u64,
                ..Between::default()
            });
        }
        &mut self.0[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_without_requests_has_its_place() {
        let mut by_reload = ByReload::default();
        by_reload.ok(2, "slow");
        by_reload.ok(2, "slow");
        by_reload.lost(0, "eof");
        let all = by_reload.all();
        let numbers: Vec<u64> = all.iter().map(|between| between.reload).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!((all[2].ok["slow"], all[0].lost["eof"]), (2, 1));
    }
}
