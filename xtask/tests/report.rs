//! `cargo xtask report`, as somebody runs it: the page is whole, says what was lost, and looks right in a browser.
//!
//! The pictures are looked at by Chromium where it is installed (`apt-get install --no-install-recommends chromium`);
//! where it is not, `in_a_browser` says so and passes, or fails if `REQUIRE_CHROMIUM` is set, as `.ci/run` does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use roxmltree::{Document, Node, ParsingOptions};
use tempfile::TempDir;

#[path = "report/browser.rs"]
mod browser;

/// In the order of the page, whatever the run.
const SECTIONS: [&str; 11] = [
    "outcomes",
    "latency",
    "distribution",
    "connections",
    "phases",
    "spread",
    "memory",
    "descriptors",
    "checks",
    "figures",
    "about",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn report(runs: &[&Path], out: &Path) -> Output {
    Command::new(cargo_bin("xtask"))
        .arg("report")
        .args(runs)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap()
}

/// The page of these fixtures.
fn page(names: &[&str]) -> String {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("page.html");
    let runs: Vec<PathBuf> = names.iter().map(|name| fixture(name)).collect();
    let runs: Vec<&Path> = runs.iter().map(PathBuf::as_path).collect();
    let output = report(&runs, &out);
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(out).unwrap()
}

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(page, options).unwrap()
}

fn text(node: Node<'_, '_>) -> String {
    node.descendants()
        .filter(Node::is_text)
        .filter_map(|node| node.text())
        .collect()
}

fn ids(page: &Document<'_>) -> Vec<String> {
    page.descendants()
        .filter(|node| node.has_tag_name("section"))
        .map(|node| node.attribute("id").unwrap().to_owned())
        .collect()
}

fn first<'a>(page: &'a Document<'_>, name: &str) -> Node<'a, 'a> {
    page.descendants()
        .find(|node| node.tag_name().name() == name)
        .unwrap()
}

#[test]
fn a_good_run_says_so_first() {
    let page = page(&["good"]);
    let document = parse(&page);
    assert!(text(first(&document, "h1")).contains("Passed"));
    assert!(
        text(first(&document, "header"))
            .contains("15 reloads, 0 of 2,698 requests lost, 0 connections closed, counter exact")
    );
    assert_eq!(ids(&document), SECTIONS);
    let pictures = document
        .descendants()
        .filter(|node| node.tag_name().name() == "svg");
    assert_eq!(pictures.count(), 16, "each for a desk and for a phone");
}

#[test]
fn a_loss_is_named_before_anything_else() {
    let page = page(&["lost"]);
    let document = parse(&page);
    assert!(text(first(&document, "h1")).contains("FAILED"));
    assert!(text(first(&document, "header")).contains("4 of 2,698 requests lost"));
    let sections = ids(&document);
    assert_eq!(sections[0], "losses");
    assert_eq!(sections[1..], SECTIONS);
    let losses = text(first(&document, "section"));
    for named in [
        "reset (keep-alive)",
        "eof (keep-alive)",
        "refused (new-connection)",
        "forced-reconnect (websocket)",
        "1012 service restart",
        "<html> & \"quotes\"",
        "reload 6 failed while booting",
    ] {
        assert!(losses.contains(named), "{named}: {losses}");
    }
    let checks = document
        .descendants()
        .find(|node| node.attribute("id") == Some("checks"));
    let checks = text(checks.unwrap());
    let mut lines = checks.lines().filter(|line| !line.trim().is_empty());
    assert_eq!(lines.next(), Some("Checks"));
    assert!(lines.next().unwrap().starts_with("✗ FAILED"), "{checks}");
}

#[test]
fn the_page_needs_nobody_else() {
    for names in [&["good"][..], &["lost"], &["good", "lost"]] {
        let page = page(names);
        let document = parse(&page);
        for node in document.descendants() {
            assert_ne!(node.tag_name().name(), "script");
            for attribute in node.attributes() {
                // A namespace is a name, not an address to load.
                let loads = ["href", "src", "srcset", "data", "poster"];
                assert!(!loads.contains(&attribute.name()), "{attribute:?}");
                assert!(!attribute.value().contains("http"), "{attribute:?}");
            }
        }
        let style = text(first(&document, "style"));
        assert!(!style.contains("url(") && !style.contains("@import"));
        assert!(page.len() < 2_000_000);
    }
}

#[test]
fn several_runs_stand_side_by_side() {
    let page = page(&["good", "lost"]);
    let document = parse(&page);
    let names: Vec<String> = document
        .descendants()
        .filter(|node| node.attribute("class") == Some("name"))
        .map(text)
        .collect();
    assert_eq!(names[..2], ["good", "lost"]);
    let latency = document
        .descendants()
        .find(|node| node.attribute("id") == Some("latency"))
        .unwrap();
    let ticks: Vec<Vec<String>> = latency
        .descendants()
        .filter(|node| node.attribute("class") == Some("wide"))
        .map(|svg| {
            svg.descendants()
                .filter(|node| node.tag_name().name() == "text")
                .map(|node| text(node).trim().to_owned())
                .collect()
        })
        .collect();
    assert_eq!(ticks.len(), 2);
    assert_eq!(ticks[0], ticks[1], "the same axes");
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("page.html");
    let refused = |path: &Path| {
        let output = report(&[path], &out);
        assert_eq!(output.status.code(), Some(1));
        assert!(!out.exists(), "half a page is none");
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = dir.path().join("missing.json");
    let error = refused(&missing);
    assert!(
        error.contains("missing.json") && error.contains("cargo xtask soak"),
        "{error}"
    );
    let damaged = dir.path().join("damaged.json");
    let good = fs::read_to_string(fixture("good/soak.json")).unwrap();
    fs::write(
        &damaged,
        good.replacen("\"reload\": 2", "\"reload\": \"x\"", 1),
    )
    .unwrap();
    let error = refused(&damaged);
    assert!(
        error.contains("damaged.json") && error.contains("`by_reload[2].reload`"),
        "{error}"
    );
    fs::write(&damaged, &good[..good.len() / 2]).unwrap();
    let error = refused(&damaged);
    assert!(
        error.contains("damaged.json") && error.contains("not complete JSON"),
        "{error}"
    );
}

#[test]
fn in_a_browser() {
    let Some(browser) = browser::Browser::find() else {
        let required = std::env::var_os("REQUIRE_CHROMIUM").is_some();
        assert!(!required, "REQUIRE_CHROMIUM is set: {}", browser::MISSING);
        eprintln!("skipped: {}", browser::MISSING);
        return;
    };
    for names in [&["good"][..], &["lost"], &["good", "lost"]] {
        let page = page(names);
        for width in [390, 1280] {
            let [wide, tall] = browser.measure(&page, width);
            assert!(wide <= width, "{names:?} at {width}: {wide} pixels wide");
            assert!(tall > 1000, "{names:?} at {width}: {tall} pixels high");
        }
        let blank = browser.screenshot("<p>.</p>", 390);
        let seen = browser.screenshot(&page, 390);
        assert!(seen > 5 * blank, "{seen} bytes, blank {blank}");
    }
}
