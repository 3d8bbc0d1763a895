//! `soak.csv`: a line for each reload, for spreadsheets (RFC 4180). Times are milliseconds; what is not known is empty.

use std::collections::BTreeSet;

use super::model::{Reload, Run};
use super::plots::phases::{PHASES, durations};

/// The table, its first line the names of the columns.
pub(super) fn table(run: &Run) -> String {
    let kinds: BTreeSet<&str> = run
        .reloads
        .iter()
        .flat_map(|reload| reload.moved_as.keys().map(String::as_str))
        .collect();
    let mut text = line(head(&kinds));
    for reload in &run.reloads {
        text.push_str(&line(row(run, reload, &kinds)));
    }
    text
}

fn head(kinds: &BTreeSet<&str>) -> Vec<String> {
    let fixed = [
        "reload",
        "at_s",
        "generation",
        "failure",
        "bare_exec_ms",
        "commit_ms",
        "first_answer_ms",
        "command_ms",
        "requests_ok",
        "requests_lost",
        "moved",
        "drained",
        "cut",
    ];
    fixed
        .into_iter()
        .map(str::to_owned)
        .chain(PHASES.map(|phase| format!("{phase}_ms")))
        .chain(kinds.iter().map(|kind| format!("moved_{kind}")))
        .collect()
}

fn row(run: &Run, reload: &Reload, kinds: &BTreeSet<&str>) -> Vec<String> {
    let between = run.by_reload.iter().find(|b| b.reload == reload.number);
    let (ok, lost) = between.map_or((0, 0), |b| (b.ok.values().sum(), b.lost.values().sum()));
    // What a server does not tell is not zero.
    let told = |count: u64| match run.is_driven() {
        true => String::new(),
        false => count.to_string(),
    };
    let fixed = [
        reload.number.to_string(),
        format!("{:.3}", reload.at_s),
        reload
            .generation
            .map_or_else(String::new, |n| n.to_string()),
        reload.failure.clone().unwrap_or_default(),
        ms(reload.bare_exec_ms),
        ms(reload.commit_ms),
        ms(reload.first_answer_ms),
        ms(Some(reload.command_ms)),
        u64::to_string(&ok),
        u64::to_string(&lost),
        told(reload.moved),
        told(reload.drained),
        told(reload.cut),
    ];
    let phase = |phase: usize| {
        let mut all = durations(reload);
        ms(all.find(|(place, _)| *place == phase).map(|(_, ms)| ms))
    };
    let moved = |kind: &&str| reload.moved_as.get(*kind).copied().unwrap_or(0).to_string();
    fixed
        .into_iter()
        .chain((0..PHASES.len()).map(phase))
        .chain(kinds.iter().map(moved))
        .collect()
}

fn ms(ms: Option<f64>) -> String {
    ms.map_or_else(String::new, |ms| format!("{ms:.3}"))
}

fn line(cells: Vec<String>) -> String {
    let cells: Vec<String> = cells.into_iter().map(quoted).collect();
    cells.join(",") + "\r\n"
}

/// In quotes if it has to be.
fn quoted(cell: String) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{GOOD, LOST, run};
    use super::*;

    #[test]
    fn every_line_has_every_column() {
        let run = run(GOOD);
        let table = table(&run);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), run.reloads.len() + 1);
        let columns = lines[0].split(',').count();
        assert!(
            lines.iter().all(|line| line.split(',').count() == columns),
            "{table}"
        );
        assert!(lines[0].contains("draining_ms,moved_"), "{}", lines[0]);
    }

    #[test]
    fn a_failure_of_several_lines_is_one_cell() {
        assert_eq!(quoted("a \"b\",\nc".into()), "\"a \"\"b\"\",\nc\"");
        assert!(table(&run(LOST)).contains('"'));
    }
}
