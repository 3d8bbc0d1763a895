//! `cargo xtask soak` with a server that is driven by commands: it sees what such a server loses, and says what a command did wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;
use tempfile::TempDir;

/// Answers `ok` on kept-alive connections.
const SERVER: &str = r#"
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
open(os.environ["DIR"] + "/pid", "w").write(str(os.getpid()))
server.serve_forever()
"#;
const STOP: &str = "kill $(cat $DIR/pid)";

fn soak(dir: &Path, start: &str, reload: &str) -> Output {
    soak_with(5, dir, start, reload)
}

fn soak_with(connections: u32, dir: &Path, start: &str, reload: &str) -> Output {
    Command::new(cargo_bin("xtask"))
        .args(["soak", "--reloads=1", "--every=300ms", "--rate=200"])
        .args([
            "--connections",
            &connections.to_string(),
            "--command-timeout=5",
        ])
        .args(["--url", "http://127.0.0.1:$PORT/", "--stop", STOP])
        .args(["--start", start, "--reload", reload, "--out"])
        .arg(dir.join("out"))
        .output()
        .unwrap()
}

fn script(dir: &Path) -> String {
    let path = dir.join("server.py");
    fs::write(&path, SERVER).unwrap();
    format!("exec python3 {}", path.display())
}

fn results(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("out/soak.json")).unwrap()).unwrap()
}

#[test]
fn a_restart_with_a_gap_is_seen_as_loss() {
    let dir = TempDir::new().unwrap();
    let start = script(dir.path());
    // The gap is what is tested.
    let reload = format!("{STOP}; sleep 0.3; ({start}) & ");
    let output = soak(dir.path(), &start, &reload);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let results = results(dir.path());
    let refused: u64 = ["keep-alive", "new-connection"]
        .iter()
        .map(|kind| results["load"]["counts"][kind]["refused"].as_u64().unwrap())
        .sum();
    assert!(refused > 10, "{refused} of some 60 requests in 0.3 s");
    assert!(results["load"]["totals"]["closed"].as_u64() > Some(0));
    assert!(results.get("moved").is_none() && results.get("ending").is_none());
    assert_eq!(results["reloads"][0]["first_answer_ms"], Value::Null);
}

#[test]
fn a_reload_that_does_nothing_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let start = script(dir.path());
    let output = soak(dir.path(), &start, "true");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(results(dir.path())["load"]["totals"]["lost"], 0);
}

#[test]
fn a_command_that_fails_is_named_with_its_last_output() {
    let dir = TempDir::new().unwrap();
    let output = soak(dir.path(), "echo no such config; exit 3", "true");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("start command failed: exit code 3; it said: no such config"),
        "{error}"
    );
    let output = soak(dir.path(), "exec sleep 60", "true");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("did not answer 200 within 5s"), "{error}");
}

#[test]
fn a_reload_that_hangs_is_ended() {
    let dir = TempDir::new().unwrap();
    let start = script(dir.path());
    let output = soak(dir.path(), &start, "echo waiting; exec sleep 60");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let failure = results(dir.path())["reloads"][0]["failure"].to_string();
    assert!(
        failure.contains("has not ended after 5s; it said: waiting"),
        "{failure}"
    );
}

#[test]
fn connections_that_the_server_closed_are_opened_again() {
    let dir = TempDir::new().unwrap();
    // Says when as many are open as the soak keeps alive.
    let counting = r#"
    count, lock = 0, __import__("threading").Lock()
    def setup(self):
        super().setup()
        with Handler.lock:
            Handler.count += 1
            if Handler.count >= 40: open(os.environ["DIR"] + "/full", "w")
    def finish(self):
        with Handler.lock: Handler.count -= 1
        super().finish()
    def log_message"#;
    let path = dir.path().join("server.py");
    let plain = "\n    def log_message";
    assert!(SERVER.contains(plain));
    fs::write(&path, SERVER.replace(plain, counting)).unwrap();
    let start = format!("exec python3 {}", path.display());
    let reload =
        format!("{STOP}; rm $DIR/full; ({start}) & until [ -e $DIR/full ]; do sleep 0.02; done");
    soak_with(40, dir.path(), &start, &reload);
    let reload = &results(dir.path())["reloads"][0];
    assert_eq!(reload["failure"], Value::Null, "{reload}");
}

#[test]
fn a_server_is_ready_once_it_answers_200() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("server.py");
    let code = "self.send_response(200)";
    assert!(SERVER.contains(code));
    let late = "self.server.asked = getattr(self.server, 'asked', 0) + 1; self.send_response(200 if self.server.asked > 5 else 503)";
    fs::write(&path, SERVER.replace(code, late)).unwrap();
    let start = format!("exec python3 {}", path.display());
    let output = soak(dir.path(), &start, "true");
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    fs::write(&path, SERVER.replace(code, "self.send_response(503)")).unwrap();
    let output = soak(dir.path(), &start, "true");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("did not answer 200 within 5s") && error.contains("5xx: 503"),
        "{error}"
    );
}

#[test]
fn an_orphan_that_has_ended_is_gone() {
    let dir = TempDir::new().unwrap();
    // Nobody but the soak can wait for it.
    let start = format!(
        "sleep 0.1 & echo $! >$DIR/orphan; ({}) &",
        script(dir.path())
    );
    let reload = "while kill -0 $(cat $DIR/orphan); do sleep 0.05; done";
    let output = soak(dir.path(), &start, reload);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// Three reloads of a server that the soak knows: each new generation answers, and nothing is left in the end.
fn profile(name: &str) {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let output = Command::new(cargo_bin("xtask"))
        .args(["soak", "--reloads=3", "--every=300ms", "--rate=100"])
        .args(["--connections=5", "--profile", name, "--out"])
        .arg(&out)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if error.contains("is not installed") {
        let line = error.lines().find(|line| line.contains("skipped"));
        eprintln!("{}", line.unwrap());
        return;
    }
    let log = fs::read_to_string(out.join(name).join("server.log")).unwrap_or_default();
    let results = fs::read(out.join(name).join("soak.json"));
    let results: Value = serde_json::from_slice(&results.expect(&error)).unwrap();
    let reloads = results["reloads"].as_array().unwrap();
    assert_eq!(reloads.len(), 3, "{reloads:?} {log}");
    for (reload, generation) in reloads.iter().zip(2..) {
        assert_eq!(reload["failure"], Value::Null, "{log}");
        assert_eq!(reload["generation"], generation);
        assert!(reload["first_answer_ms"].as_f64() > Some(0.0), "{reload}");
    }
    let stops = results["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["what"] == "it stops, and nothing is left")
        .unwrap();
    assert_eq!(stops["passed"], true, "{stops} {log}");
    let samples = results["samples"].as_array().unwrap();
    assert!(
        samples
            .iter()
            .all(|sample| sample["rss_kib"].as_u64() > Some(1000))
    );
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains(name));
}

#[test]
fn nginx_reloads() {
    profile("nginx");
}

#[test]
fn nginx_upgrades() {
    profile("nginx-upgrade");
}

#[test]
fn haproxy_reloads() {
    profile("haproxy");
}

#[test]
fn go_restarts() {
    profile("go");
}

#[test]
fn envoy_restarts() {
    profile("envoy");
}

#[test]
fn what_is_missing_is_named() {
    for (args, named) in [
        (&["soak", "--start", "true"][..], "--reload"),
        (&["soak", "--profile", "apache"], "nginx-upgrade, haproxy"),
    ] {
        let output = Command::new(cargo_bin("xtask"))
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(named), "{error}");
    }
}
