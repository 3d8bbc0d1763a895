//! What a run of the matrix has seen: a table for people, JSON for programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::cells::{Boundary, Cell, FAULTS, Fault, boundaries};
use super::cross::Seen;
use super::page;
use super::rules::known;

/// One cell, as it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Crossed {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) cell: Cell,
    pub(crate) seen: Option<Seen>,
    /// What did not hold.
    pub(crate) failure: Option<String>,
    /// Why that is no news.
    pub(crate) known: Option<&'static str>,
    pub(crate) took_ms: u64,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Of this format.
    version: u32,
    pub(crate) seed: u64,
    pub(crate) took_ms: u64,
    pub(crate) cells: Vec<Crossed>,
}

impl Crossed {
    pub(crate) fn new(cell: Cell, outcome: Result<Seen>, took: Duration) -> Self {
        let (seen, failure) = match outcome {
            Ok(seen) => (Some(seen), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Self {
            name: cell.to_string(),
            cell,
            seen,
            known: known(&cell).filter(|_| failure.is_some()),
            failure,
            took_ms: millis(took),
        }
    }
}

impl Crossed {
    /// And nobody knew.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some() && self.known.is_none()
    }
}

impl Report {
    pub(crate) fn new(mut cells: Vec<Crossed>, seed: u64, took: Duration) -> Self {
        cells.sort_by_key(|crossed| (crossed.cell.boundary.step(), crossed.cell.fault));
        Self {
            version: 1,
            seed,
            took_ms: millis(took),
            cells,
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.cells.iter().any(Crossed::has_failed)
    }

    /// What is known to fail, each reason once.
    pub(crate) fn known(&self) -> Vec<&'static str> {
        let mut known: Vec<_> = self.cells.iter().filter_map(|c| c.known).collect();
        known.sort_unstable();
        known.dedup();
        known
    }

    pub(crate) fn find(&self, cell: &Cell) -> Option<&Crossed> {
        self.cells.iter().find(|crossed| crossed.cell == *cell)
    }

    /// The rows of which something was run.
    pub(crate) fn rows(&self) -> Vec<Boundary> {
        let was_run = |row: &Boundary| self.cells.iter().any(|c| c.cell.boundary == *row);
        boundaries().into_iter().filter(was_run).collect()
    }

    /// In one word, or the number of the note that says why there is nothing to see.
    pub(crate) fn word(&self, cell: &Cell) -> String {
        match (self.find(cell), cell.excuse()) {
            (Some(crossed), _) if crossed.has_failed() => "FAIL".to_owned(),
            (
                Some(Crossed {
                    known: Some(why), ..
                }),
                _,
            ) => {
                format!("known {}", place(&self.known(), why))
            }
            (Some(_), _) => "ok".to_owned(),
            (None, Some(excuse)) => format!("n/a {}", place(&excuses(), excuse)),
            (None, None) => "-".to_owned(),
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut table = format!("{:<28}", "");
        for fault in FAULTS {
            table += &format!("{fault:<10}");
        }
        for boundary in self.rows() {
            table += &format!("\n{:<28}", boundary.to_string());
            for fault in FAULTS {
                table += &format!("{:<10}", self.word(&Cell { boundary, fault }));
            }
        }
        table += "\n\n";
        for (number, excuse) in (1..).zip(excuses()) {
            table += &format!("n/a {number}: {excuse}\n");
        }
        for (number, why) in (1..).zip(self.known()) {
            table += &format!("known {number}: {why}\n");
        }
        table + "-: not run\n"
    }

    /// What has failed, and how many have not.
    pub(crate) fn verdict(&self) -> String {
        let mut lines = String::new();
        for crossed in &self.cells {
            if let (Some(failure), None) = (&crossed.failure, crossed.known) {
                lines += &format!("FAIL {}: {failure}\n\n", crossed.name);
            }
        }
        let failed = self.cells.iter().filter(|c| c.has_failed()).count();
        let known = self.cells.iter().filter(|c| c.known.is_some()).count();
        let seconds = Duration::from_millis(self.took_ms).as_secs_f64();
        lines
            + &format!(
                "{} cells, {failed} failed, {known} known to, in {seconds:.0} s\n",
                self.cells.len()
            )
    }

    /// `faults.json` and `faults.html`.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let write = |name: &str, content: &str| {
            let path = dir.join(name);
            fs::write(&path, content)
                .with_context(|| format!("failed to write `{}`", path.display()))
        };
        fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
        write("faults.json", &serde_json::to_string_pretty(self)?)?;
        write("faults.html", &page::page(self))
    }
}

/// Why some cells are empty, each reason once.
pub(crate) fn excuses() -> Vec<&'static str> {
    let mut excuses = Vec::new();
    for boundary in boundaries() {
        let fault = Fault::Garbage;
        if let Some(excuse) = (Cell { boundary, fault }).excuse()
            && !excuses.contains(&excuse)
        {
            excuses.push(excuse);
        }
    }
    excuses
}

fn place(of: &[&str], reason: &str) -> usize {
    let place = of.iter().position(|other| *other == reason);
    place.map_or(0, |place| place + 1)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::cells::all;
    use super::*;

    fn report() -> Report {
        let took = Duration::from_millis(700);
        let seen = Seen {
            ending: "Stays".to_owned(),
            code: Some(1),
            counts: super::super::load::Counts::default(),
        };
        let of = |place: usize| all()[place];
        let cells = vec![
            Crossed::new(of(1), Err(anyhow::anyhow!("a <b> was lost")), took),
            Crossed::new(of(0), Ok(seen), took),
        ];
        Report::new(cells, 1, took)
    }

    #[test]
    fn a_failed_cell_fails_the_run_and_is_named() {
        let report = report();
        assert!(report.has_failed());
        assert!(
            report
                .verdict()
                .contains("FAIL child/before-say/Hello=exit: a <b> was lost")
        );
        assert!(
            report
                .verdict()
                .ends_with("2 cells, 1 failed, 0 known to, in 1 s\n")
        );
        let table = report.table();
        let row = table.lines().nth(1).unwrap();
        assert!(
            row.starts_with("child/before-say/Hello      ok        FAIL      -"),
            "{row}"
        );
    }

    #[test]
    fn the_page_is_one_file_and_escapes_what_it_quotes() {
        let page = page::page(&report());
        assert!(page.contains("a &lt;b&gt; was lost"));
        assert!(page.contains("prefers-color-scheme: dark"));
        for foreign in ["http://", "https://", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
