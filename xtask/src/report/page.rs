//! The page: verdict, losses, pictures, checks, figures.

use anyhow::Result;

use super::axes::Axes;
use super::canvas::Width;
use super::html::{details, escape, legend, tag};
use super::model::Run;
use super::plots::{self, Plot};
use super::{tables, words};

pub(super) mod servers;
#[cfg(test)]
mod style;
mod verdict;

/// Nobody is to take it for zero.
const NOT_TOLD: &str = "Not known: a server that is driven by commands does not tell it.";
const STYLE: &str = include_str!("page.css");

/// The page of one run, or of several beside each other. Well-formed as XML, too.
pub(super) fn page(runs: &[Run]) -> Result<String> {
    let limits = Axes::of(runs);
    let mut main = String::new();
    if runs.len() > 1 {
        let table = servers::table(runs);
        main.push_str(&section("servers", "Side by side", servers::ABOUT, &table));
    }
    main.push_str(&verdict::verdict(runs));
    let losses = if runs.iter().any(Run::is_driven) {
        "Lost, closed or failed"
    } else {
        "Lost or failed"
    };
    main.push_str(&each(runs, "losses", losses, tables::losses));
    for plot in &plots::ALL {
        main.push_str(&picture(plot, runs, &limits)?);
    }
    main.push_str(&each(runs, "checks", "Checks", tables::checks));
    main.push_str(&each(runs, "figures", "Figures", figures));
    main.push_str(&each(runs, "about", "About this run", about));
    let title = match runs {
        [run] => format!("{}: {}", verdict::word(run), words::verdict(run)),
        runs => format!("{} runs of the soak, compared", runs.len()),
    };
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body class=\"{}\">\n<main>\n{main}</main>\n</body>\n</html>\n",
        escape(&title),
        if runs.len() > 1 { "several" } else { "one" },
    ))
}

/// A section with a part for each run; nothing if no run has anything to say.
fn each(runs: &[Run], id: &str, title: &str, part: fn(&Run) -> String) -> String {
    let parts: Vec<(&Run, String)> = runs.iter().map(|run| (run, part(run))).collect();
    if parts.iter().all(|(_, part)| part.is_empty()) {
        return String::new();
    }
    let parts: String = parts
        .into_iter()
        .map(|(run, part)| {
            let nothing = part.is_empty().then(|| tag("p", "none", "Nothing."));
            let part = nothing.unwrap_or(part);
            tag("div", "run", &(named(runs, run) + &part))
        })
        .collect();
    section(id, title, "", &parts)
}

/// The name of a run, where there are several.
fn named(runs: &[Run], run: &Run) -> String {
    if runs.len() > 1 {
        tag("h3", "name", &escape(&run.name))
    } else {
        String::new()
    }
}

fn section(id: &str, title: &str, about: &str, parts: &str) -> String {
    let about = if about.is_empty() {
        String::new()
    } else {
        tag("p", "about", &escape(about))
    };
    format!(
        "<section id=\"{id}\">\n{}<div class=\"runs\">\n{parts}</div>\n{about}</section>\n",
        tag("h2", "", &escape(title))
    )
}

fn picture(plot: &Plot, runs: &[Run], limits: &Axes) -> Result<String> {
    let mut parts = String::new();
    if runs.len() > 1 && runs.iter().all(|run| (plot.lead)(run).is_none()) {
        let none = tag("p", "none", "None of these runs has anything of it.");
        return Ok(section(plot.id, plot.title, plot.about, &none));
    }
    for run in runs {
        let mut part = named(runs, run);
        match (plot.lead)(run) {
            None if run.is_driven() => part.push_str(&tag("p", "none", NOT_TOLD)),
            None => part.push_str(&tag("p", "none", "This run has nothing of it.")),
            Some(lead) => {
                part.push_str(&tag("p", "lead", &escape(&lead)));
                part.push_str(&legend(&(plot.legend)(run)));
                for width in Width::BOTH {
                    part.push_str(&(plot.draw)(run, limits, width)?);
                    part.push('\n');
                }
            }
        }
        parts.push_str(&tag("figure", "run", &part));
    }
    Ok(section(plot.id, plot.title, plot.about, &parts))
}

fn figures(run: &Run) -> String {
    let latencies = details("Latency by kind of request", &tables::latencies(run));
    latencies + &details("Time of each phase", &tables::phases(run))
}

/// Where the figures come from: what must be known to make them again.
fn about(run: &Run) -> String {
    let builds: Vec<String> = run
        .builds
        .iter()
        .map(|build| {
            build
                .as_ref()
                .map_or("unknown", |build| build.trim())
                .to_owned()
        })
        .collect();
    let facts = [
        ("Command", run.command.join(" ")),
        ("Builds, in turns", builds.join(" / ")),
        ("When", words::date(run.machine.unix_time)),
        (
            "Machine",
            format!(
                "Linux {}, {} for the server and its load",
                run.machine.kernel,
                words::counted(run.machine.cpus, "core")
            ),
        ),
        ("Time under load", words::clock(run.lasted_s)),
        (
            "The client's own lateness, at worst",
            words::time(run.load.worst_lateness_ms),
        ),
    ];
    let facts: String = facts
        .into_iter()
        .filter(|(_, fact)| !fact.is_empty())
        .map(|(name, fact)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(&fact)))
        .collect();
    tag("dl", "", &facts)
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{GOOD, run};
    use super::super::model::{Loss, Sample, Slice};
    use super::*;

    /// What a page may weigh: mail and chat take it.
    const MAX_BYTES: usize = 2_000_000;

    #[test]
    fn what_a_server_does_not_tell_is_not_zero() {
        let good = run(GOOD);
        let driven = Run {
            ending: None,
            ..good.clone()
        };
        let alone = page(std::slice::from_ref(&good)).unwrap();
        let page = page(&[good, driven.clone()]).unwrap();
        assert!(page.contains(NOT_TOLD));
        let moved = |page: &str| page.matches("finished by the old process; 0 cut").count();
        assert_eq!(moved(&page), moved(&alone), "none of the driven one");
        assert_eq!(page.matches("counter exact").count(), 1, "of the other");
        let table = super::super::csv::table(&driven);
        let mut columns = table.lines().map(|line| line.split(','));
        let place = columns.next().unwrap().position(|name| name == "moved");
        assert!(columns.all(|mut cells| cells.nth(place.unwrap()) == Some("")));
    }

    /// An hour, a thousand reloads, and a server that died at the end of it.
    fn large() -> Run {
        let mut run = run(GOOD);
        let (slice, between) = (run.series[0], run.by_reload[1].clone());
        let reload = run.reloads[0].clone();
        run.lasted_s = 3600.0;
        run.series = (1..=3600)
            .map(|s| (f64::from(s), slice))
            .map(|(at_s, slice)| Slice { at_s, ..slice })
            .collect();
        (run.reloads, run.by_reload) = (1..=1000)
            .map(|number| {
                let (mut reload, mut between) = (reload.clone(), between.clone());
                (reload.number, between.reload) = (number, number);
                reload.at_s = number as f64 * 3.6;
                if number > 990 {
                    reload.failure = Some("exit code 4: no answer\n".repeat(200));
                    between.lost.insert("refused".into(), 100);
                }
                (reload, between)
            })
            .unzip();
        let sample = |at_s, generation| Sample {
            at_s,
            generation,
            rss_kib: 8000,
            fds: 100,
        };
        run.samples = (0..7200)
            .flat_map(|n: u32| {
                let (at_s, generation) = (f64::from(n) / 2.0, u64::from(n) / 7 + 1);
                [sample(at_s, generation), sample(at_s, generation + 1)]
            })
            .collect();
        run.losses = (0..1000)
            .map(|n| Loss {
                at_s: 3595.0 + f64::from(n) / 300.0,
                what: "refused".into(),
                kind: "keep-alive".into(),
                port: 0,
                reload: 990,
                since_reload_ms: 1.0,
                generation: 990,
                detail: "connection refused ".repeat(100),
            })
            .collect();
        run
    }

    #[test]
    fn a_large_run_makes_a_small_page() {
        let runs = [large()];
        let one = page(&runs).unwrap();
        assert!(one.len() < MAX_BYTES, "{} bytes", one.len());
        assert!(one.contains("refused (keep-alive)"));
    }

    #[test]
    fn a_run_without_a_reload_has_its_page() {
        let mut run = run(GOOD);
        run.reloads.clear();
        run.by_reload.clear();
        run.samples.clear();
        run.load.distributions.clear();
        let page = page(&[run]).unwrap();
        assert!(page.contains("This run has nothing of it."), "{page}");
    }
}
