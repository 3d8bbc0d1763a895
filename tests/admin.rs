//! The admin listener: numbers that go on from generation to generation, and a readiness that tells the truth.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::sys::signal::Signal;
use support::{
    Hello, LONG, Start,
    client::{Client, request},
    eventually,
    load::Load,
    text,
};

/// Status and text of a page, asked on a connection of its own.
fn ask(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    let question = format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n");
    stream.write_all(question.as_bytes()).expect("ask");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("an answer to its end");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("\r\nconnection: close"), "{head}");
    let status = head.split(' ').nth(1).expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

fn page(hello: &Hello, path: &str) -> (u16, String) {
    let address = hello.listener("admin").expect("an admin listener");
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    ask(stream, path)
}

/// By name and labels.
fn metrics(hello: &Hello) -> BTreeMap<String, f64> {
    let (status, text) = page(hello, "/metrics");
    assert_eq!(status, 200);
    let mut metrics = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let before = metrics.insert(name.to_owned(), value.parse().expect("a number"));
        assert_eq!(before, None, "{name} is there twice");
    }
    metrics
}

fn metric(hello: &Hello, name: &str) -> f64 {
    let metrics = metrics(hello);
    *metrics
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {metrics:?}"))
}

fn with_admin() -> Start {
    Hello::with().arg("--admin").arg("127.0.0.1:0")
}

const OK: &str = "handoff_http_requests_total{code=\"2xx\"}";
const CONFIRMED: &str = "handoff_reloads_total{outcome=\"confirmed\"}";
const FAILED: &str = "handoff_reloads_total{outcome=\"failed\"}";

#[test]
fn what_is_counted_is_exact_over_generations() {
    let hello = with_admin().start();
    let address = hello.listener("admin");
    let mut answered = 0;
    for generation in 2..=5 {
        let load = Load::start(hello.address());
        hello.reload();
        load.goes_on();
        answered += load.finish();
        hello.settles();
        let metrics = metrics(&hello);
        assert_eq!(metrics["handoff_generation"], f64::from(generation));
        assert_eq!(metrics[CONFIRMED], f64::from(generation - 1));
        assert_eq!(metrics[OK], answered as f64, "generation {generation}");
        assert_eq!(metrics["handoff_connections_left_total{how=\"cut\"}"], 0.0);
    }
    assert_eq!(hello.listener("admin"), address, "it is kept");

    assert!(hello.hello(&["reload", "--dry-run"]).status.success());
    hello.replace_binary_by_script("exit 7");
    hello.reload_fails(1);
    hello.restore_binary();
    hello.reload();
    hello.settles();
    let metrics = metrics(&hello);
    assert_eq!(metrics[CONFIRMED], 5.0);
    assert_eq!(metrics[FAILED], 1.0);
    assert_eq!(metrics["handoff_dry_runs_total{outcome=\"ready\"}"], 1.0);
    assert_eq!(metrics["handoff_dry_runs_total{outcome=\"failed\"}"], 0.0);
    let phase = |phase: &str, what: &str| {
        metrics[&format!("handoff_reload_phase_seconds_{what}{{phase=\"{phase}\"}}")]
    };
    // Five reloads and a dry run have come so far.
    assert_eq!(phase("restoring", "count"), 6.0);
    assert_eq!(phase("committing", "count"), 5.0);
    // The one that failed was starting, too.
    assert_eq!(phase("starting", "count"), 7.0);
    assert!(phase("restoring", "sum") > 0.0);
    let most = "handoff_reload_phase_seconds_bucket{phase=\"restoring\",le=\"+Inf\"}";
    assert_eq!(metrics[most], 6.0);
}

#[test]
fn what_moves_is_counted_and_what_is_asked_of_the_admin_is_not() {
    let hello = with_admin().start();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(hello.address())).collect();
    for client in &mut clients {
        client.get("/hello");
    }
    assert_eq!(
        metric(&hello, "handoff_connections"),
        4.0,
        "and the one that asks"
    );
    hello.reload();
    hello.settles();
    let metrics = metrics(&hello);
    assert_eq!(
        metrics["handoff_connections_left_total{how=\"moved\"}"],
        3.0
    );
    assert_eq!(metrics[OK], 3.0);
    assert_eq!(metrics["handoff_http_requests_in_flight"], 0.0);
    assert_eq!(page(&hello, "/hello").0, 404, "the application is not here");
    let answer = clients[0].get("/metrics");
    assert_eq!(answer.status, 404, "and this is not there");
    assert_eq!(
        metric(&hello, "handoff_http_requests_total{code=\"4xx\"}"),
        1.0
    );
}

#[test]
fn a_drain_is_seen_and_the_service_is_ready_meanwhile() {
    let hello = with_admin().arg("--drain-timeout").arg("60s").start();
    // It lasts until the rest of it is sent.
    let mut slow = Client::connect(hello.address());
    slow.send("POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\na");
    eventually("it is under way", || {
        metric(&hello, "handoff_http_requests_in_flight") == 1.0
    });
    hello.begin_reload();
    assert_eq!(page(&hello, "/readyz"), (200, "ready\n".to_owned()));
    eventually("the drain is known", || {
        let metrics = metrics(&hello);
        assert_eq!(metrics["handoff_generation"], 2.0);
        metrics["handoff_draining_generations"] == 1.0
            && metrics["handoff_draining_connections"] == 1.0
    });
    slow.send("b");
    assert_eq!(slow.answer().status, 200);
    eventually("the drain is over", || {
        metric(&hello, "handoff_draining_generations") == 0.0
    });
}

#[test]
fn a_probation_is_seen() {
    let hello = with_admin().probation("10m").start();
    assert_eq!(metric(&hello, "handoff_probation"), 0.0);
    let waiting = hello
        .verb(&["reload"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run hello");
    eventually("the new generation is on probation", || {
        let metrics = metrics(&hello);
        (metrics["handoff_generation"], metrics["handoff_probation"]) == (2.0, 1.0)
    });
    assert_eq!(page(&hello, "/readyz").0, 200);
    let confirmed = hello.hello(&["confirm"]);
    assert!(confirmed.status.success(), "{}", text(&confirmed));
    assert!(waiting.wait_with_output().expect("wait").status.success());
    assert_eq!(metric(&hello, "handoff_probation"), 0.0);
    assert_eq!(metric(&hello, CONFIRMED), 1.0);
}

#[test]
fn while_it_stops_it_lives_and_is_not_ready() {
    let hello = with_admin().arg("--drain-timeout").arg("60s").start();
    let admin = hello.listener("admin").expect("an address");
    let page = |path: &str| {
        let stream = TcpStream::connect(&admin).expect("connect");
        stream.set_read_timeout(Some(LONG)).expect("timeout");
        ask(stream, path)
    };
    assert_eq!(page("/readyz"), (200, "ready\n".to_owned()));
    let mut slow = Client::connect(hello.address());
    slow.send(request("/slow?ms=60000"));
    eventually("it is under way", || {
        page("/metrics").1.contains("in_flight 1\n")
    });
    let pid = hello.pid();
    hello.signal(pid, Signal::SIGTERM);
    eventually("it is not ready", || {
        page("/readyz") == (503, "stopping\n".to_owned())
    });
    assert_eq!(page("/livez"), (200, "alive\n".to_owned()));
    assert!(page("/metrics").1.contains("handoff_generation 1\n"));
    hello.signal(pid, Signal::SIGQUIT);
    hello.is_gone();
}

/// A process that ends with the test.
struct Booting(Child);

impl Drop for Booting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn while_it_boots_it_lives_and_is_not_ready() {
    let dir = tempfile::tempdir().expect("tempdir");
    let log = fs::File::create(dir.path().join("log")).expect("log");
    // Its own probe is not answered before the test is over.
    let child = Command::new(env!("CARGO_BIN_EXE_hello"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "./admin.sock",
        ])
        .args(["--pidfile", "hello.pid", "--probe", "/slow?ms=60000"])
        .args(["--ready-timeout", "60s"])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("run hello");
    let _booting = Booting(child);
    let admin = dir.path().join("admin.sock");
    let connect = |path: &Path| UnixStream::connect(path).ok();
    let mut first = None;
    eventually("it listens", || {
        first = connect(&admin);
        first.is_some()
    });
    assert_eq!(
        ask(first.expect("a stream"), "/readyz"),
        (503, "starting\n".to_owned())
    );
    let stream = connect(&admin).expect("connect");
    assert_eq!(ask(stream, "/livez"), (200, "alive\n".to_owned()));
    let stream = connect(&admin).expect("connect");
    assert!(ask(stream, "/metrics").1.contains("handoff_generation 1\n"));
}
