//! Programs on this crate: they build, and their next builds replace them without a client noticing.

#[path = "../examples/axum.rs"]
mod axum_example;
mod support;

use std::{convert::Infallible, fs, net::SocketAddr};

use hello_server::{BoxError, RequestBody, Server, state::Counter};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, service::service_fn};
use support::{Service, client::Client, eventually, meanwhile};

/// Which program this process is to be: the configuration's first line.
#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    let (kind, rest) = config.split_once('\n').expect("a kind");
    match kind {
        // It reads its environment, which all of its generations have.
        "axum" => axum_example::main().expect("serve"),
        "hyper" => support::play(async {
            let rest = rest.to_owned();
            // Its reason is told by the parent.
            let _ = hyper_program(&dir, rest).await;
        }),
        other => panic!("{other}"),
    }
}

/// hyper's own service.
async fn hyper_program(dir: &std::path::Path, config: String) -> Result<(), BoxError> {
    let hooks = |hook: &'static str| {
        let dir = dir.to_owned();
        move || {
            let dir = dir.clone();
            async move { note(&dir, hook) }
        }
    };
    Server::build(|ctx| async move {
        if config == "fail" {
            return Err("there is no database".into());
        }
        let bytes = ctx.state(Counter::new("bytes")).await?;
        let is_ill = config == "ill";
        Ok(service_fn(move |request: Request<RequestBody>| {
            let bytes = bytes.clone();
            async move {
                let info = request.body().connection().cloned();
                let info = info.expect("a connection");
                let length = request
                    .into_body()
                    .collect()
                    .await
                    .map(|body| body.to_bytes().len());
                let total = bytes.add(length.unwrap_or(0) as u64);
                let text = format!("{total} of {:?} on {}", info.peer, info.listener);
                let mut response = Response::new(Full::new(Bytes::from(text)));
                if is_ill {
                    *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
                }
                Ok::<_, Infallible>(response)
            }
        }))
    })
    .listen("main", "127.0.0.1:0".parse()?)
    .pidfile(dir.join("pid"))
    .probe("/")
    .committed(hooks("committed"))
    .retired(hooks("retired"))
    .revoked(hooks("revoked"))
    .run()
    .await?;
    Ok(())
}

fn note(dir: &std::path::Path, hook: &str) {
    let path = dir.join("hooks");
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::write(path, format!("{before}{hook}\n")).expect("note");
}

fn address(service: &Service, listener: &str) -> SocketAddr {
    service.address(listener).parse().expect("an address")
}

/// The axum example, on a port of its own.
fn axum() -> Service {
    Service::start_in("axum\n", |dir, command| {
        command
            .env("LISTEN", "127.0.0.1:0")
            .env("PIDFILE", dir.join("pid"));
    })
}

#[test]
fn the_axum_example_is_replaced_unchanged() {
    let service = axum();
    let address = address(&service, "http");
    let mut client = Client::connect(address);
    assert_eq!(client.get("/").text(), "hit 1 in generation 1\n");
    let mut hits = 1;
    let mut busy = Client::connect(address);
    let ask = || {
        let answer = busy.get("/");
        assert_eq!((answer.status, answer.closes()), (200, false));
    };
    hits += meanwhile(ask, |goes_on| {
        for _ in 0..5 {
            service.reload();
            goes_on();
        }
    });
    assert_eq!(
        client.get("/").text(),
        format!("hit {} in generation 6\n", hits + 1)
    );
    assert_eq!(client.get("/nowhere").status, 404);
    service.settles();
    let log = service.log();
    let cron: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("cron"))
        .collect();
    assert_eq!(cron.len(), 11, "{cron:?}");
    for (place, line) in cron.iter().enumerate() {
        assert_eq!(line.starts_with("cron stops"), place % 2 == 1, "{cron:?}");
    }
}

#[test]
fn an_axum_handler_knows_the_peer_after_a_move() {
    let service = axum();
    let mut client = Client::connect(address(&service, "http"));
    let expected = format!("Some({}) on http\n", client.name());
    assert_eq!(client.get("/peer").text(), expected);
    for _ in 0..3 {
        service.reload();
        assert_eq!(client.get("/peer").text(), expected);
    }
}

#[test]
fn a_hyper_service_is_replaced_and_knows_the_peer() {
    let service = Service::start("hyper\n");
    let mut client = Client::connect(address(&service, "main"));
    let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n";
    for round in 1..=4 {
        client.send(post);
        client.send("12345");
        client.until_read();
        service.try_reload(false, |_| {}).expect("an outcome");
        client.send("67890");
        let expected = format!("{}0 of Some({}) on main", round, client.name());
        assert_eq!(client.answer().text(), expected);
        // The parent's last word has come.
        service.settles();
    }
}

#[test]
fn a_build_that_cannot_serve_is_refused_and_the_old_one_goes_on() {
    let service = Service::start("hyper\n");
    let address = address(&service, "main");
    let mut client = Client::connect(address);
    let ask = || assert_eq!(client.get("/").status, 200);
    meanwhile(ask, |goes_on| {
        for (config, expected) in [
            ("hyper\nfail", "there is no database"),
            ("hyper\nill", "GET / was answered 500"),
        ] {
            service.configure(config);
            let reason = service.reload_fails();
            assert!(reason.contains(expected), "{reason}");
            goes_on();
        }
        service.configure("hyper\n");
        service.reload();
        goes_on();
    });
    let expected = "committed\nretired\ncommitted\n";
    eventually("the hooks were called", || {
        service.read("hooks") == expected
    });
}

/// That the programs compile is for their doctests to say (`src/lib.rs`).
#[test]
fn the_documentation_shows_the_examples_as_they_are() {
    let docs = include_str!("../../docs/embedding.md");
    for example in [
        include_str!("../../handoff/examples/tcp_echo.rs"),
        include_str!("../../handoff/examples/tcp_line.rs"),
    ] {
        let (_, code) = example.split_once("\n\n").expect("a head");
        assert!(docs.contains(code), "docs/embedding.md is behind:\n{code}");
    }
}
