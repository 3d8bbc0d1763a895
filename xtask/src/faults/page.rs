//! The matrix as a page: one file, for a screen of any width, light or dark.

use std::time::Duration;

use super::cells::{Cell, FAULTS};
use super::report::{Report, excuses};

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #ccc; --ok: #17692c; --bad: #b3151b; --dim: #6b6b6b }
@media (prefers-color-scheme: dark) { :root { --line: #444; --ok: #6fcf87; --bad: #ff7b72; --dim: #9a9a9a } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1rem auto; max-width: 72rem; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .5rem; text-align: left; white-space: nowrap }
tbody th { position: sticky; left: 0; background: Canvas; font-weight: normal; font-family: monospace }
.ok { color: var(--ok) } .bad { color: var(--bad); font-weight: bold } .none { color: var(--dim) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px }
";

pub(crate) fn page(report: &Report) -> String {
    let failed = report.cells.iter().filter(|c| c.has_failed()).count();
    let seconds = Duration::from_millis(report.took_ms).as_secs();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Fault matrix</title><style>\n{STYLE}</style>\n<h1>Fault matrix</h1>\n\
         <p>{} cells, {failed} failed, in {seconds} s. Rows: who fails, and when. Columns: how.</p>\n",
        report.cells.len()
    );
    page += &table(report);
    page += "<p class=\"none\">";
    for (number, excuse) in (1..).zip(excuses()) {
        page += &format!("n/a {number}: {}. ", escape(excuse));
    }
    for (number, why) in (1..).zip(report.known()) {
        page += &format!("known {number}: {}. ", escape(why));
    }
    page += "-: not run.</p>\n";
    for crossed in &report.cells {
        if let Some(failure) = &crossed.failure {
            page += &format!(
                "<h2>{}</h2>\n<pre>{}</pre>\n",
                crossed.name,
                escape(failure)
            );
        }
    }
    page + "</html>\n"
}

fn table(report: &Report) -> String {
    let mut table = "<div class=\"wide\"><table><thead><tr><th></th>".to_owned();
    for fault in FAULTS {
        table += &format!("<th>{fault}</th>");
    }
    table += "</tr></thead>\n<tbody>\n";
    for boundary in report.rows() {
        table += &format!("<tr><th scope=\"row\">{boundary}</th>");
        for fault in FAULTS {
            let cell = Cell { boundary, fault };
            let word = report.word(&cell);
            let class = match &*word {
                "ok" => "ok",
                "FAIL" => "bad",
                _ => "none",
            };
            let title = report.find(&cell).and_then(|c| c.seen.as_ref());
            let title = title.map_or_else(String::new, |seen| {
                let (answered, lost) = (seen.counts.answered, seen.counts.lost);
                format!(
                    " title=\"{}; {answered} answered, {lost} lost\"",
                    escape(&seen.ending)
                )
            });
            table += &format!("<td class=\"{class}\"{title}>{word}</td>");
        }
        table += "</tr>\n";
    }
    table + "</tbody></table></div>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
