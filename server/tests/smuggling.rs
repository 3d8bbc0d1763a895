//! Request smuggling through services that the demo of `hello` does not have: the body of a request is never taken
//! for a request, whether the service drops it early, reads it in a task that outlives the answer, or
//! leaves it lying there, over real reloads.
//!
//! Every body here is made of requests for `/admin`, which are counted. Nobody ever asks for that.

mod support;

use std::{
    convert::Infallible,
    io::{ErrorKind, Write},
    path::Path,
    sync::{Arc, OnceLock},
};

use hello_server::{BoxError, RequestBody, Server, state::Counter};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, service::service_fn};
use support::{
    LONG, Service,
    client::{Client, request},
    eventually, meanwhile,
};
use tokio::sync::watch;

const EVIL: &str = "GET /admin HTTP/1.1\r\nhost: evil\r\n\r\n";

#[test]
fn program() {
    if let Some((dir, _)) = support::playing() {
        support::play(async { serve(&dir).await.expect("serve") });
    }
}

struct App {
    admin: Arc<Counter>,
    /// Bytes of bodies that were read in tasks.
    read: Arc<Counter>,
    /// Whoever keeps a body may let go of it.
    release: watch::Sender<bool>,
}

static APP: OnceLock<App> = OnceLock::new();

async fn serve(dir: &Path) -> Result<(), BoxError> {
    Server::build(|ctx| async move {
        let app = App {
            admin: ctx.state(Counter::new("admin")).await?,
            read: ctx.state(Counter::new("read")).await?,
            release: watch::Sender::new(false),
        };
        let _ = APP.set(app);
        Ok(service_fn(answer))
    })
    .listen("main", "127.0.0.1:0".parse()?)
    .pidfile(dir.join("pid"))
    .drain_timeout(LONG)
    .run()
    .await?;
    Ok(())
}

async fn answer(request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, Infallible> {
    let app = APP.get().expect("it was built");
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let text = match path.as_str() {
        "/drop" => {
            drop(body);
            "dropped".to_owned()
        }
        "/part" => {
            let _ = body.frame().await;
            drop(body);
            "read a part".to_owned()
        }
        "/task" => {
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    app.read.add(frame.data_ref().map_or(0, Bytes::len) as u64);
                }
            });
            "being read".to_owned()
        }
        "/keep" => {
            let mut release = app.release.subscribe();
            tokio::spawn(async move {
                let _ = release.wait_for(|released| *released).await;
                drop(body);
            });
            "kept".to_owned()
        }
        "/release" => {
            let _ = body.collect().await;
            app.release.send_replace(true);
            "released".to_owned()
        }
        "/admin" => format!("admin {}", app.admin.add(1)),
        "/counts" => format!("{} {}", app.admin.get(), app.read.get()),
        _ => "fine".to_owned(),
    };
    Ok(Response::new(Full::new(Bytes::from(text))))
}

fn with_length(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn chunked(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    )
}

/// Answers to `/`, again and again on one connection, while `act` does something.
fn under_traffic(service: &Service, act: impl FnOnce()) {
    let mut client = Client::connect(service.address("main").parse().expect("an address"));
    let ask = || assert_eq!(client.get("/").text(), "fine");
    meanwhile(ask, |_| act());
}

/// Requests that are answered while a part of their body is still to be sent; the rest comes
/// after a reload, with another request behind it.
fn the_rest_after_a_reload(path: &str, answer: &str, lives: bool) {
    let service = Service::start("");
    let address = service.address("main").parse().expect("an address");
    let mut survivors = 0;
    under_traffic(&service, || {
        for whole in [
            with_length(path, EVIL),
            chunked(path, EVIL),
            with_length(path, &EVIL.repeat(100)),
        ] {
            // From the first byte of the body to the last but one.
            let body = whole.find("GET /admin").expect("a body");
            let step = ((whole.len() - body) / 12).max(1);
            let mut clients: Vec<(usize, Client)> = (body + 1..whole.len())
                .step_by(step)
                .map(|cut| (cut, Client::connect(address)))
                .collect();
            for (cut, client) in &mut clients {
                client.send(&whole[..*cut]);
            }
            for (cut, client) in &mut clients {
                assert_eq!(client.answer().text(), answer, "cut at {cut}");
            }
            service.try_reload(false, |_| {}).expect("an outcome");
            for (cut, mut client) in clients {
                let rest = whole[cut..].to_owned() + &request("/");
                let sent = client.socket().write_all(rest.as_bytes());
                match (sent, client.try_answer()) {
                    (Ok(()), Ok(Some(answer))) => {
                        assert_eq!(answer.text(), "fine", "cut at {cut} of {whole:?}");
                        survivors += 1;
                    }
                    (_, Ok(None)) => {}
                    (_, Err(e)) if e.kind() == ErrorKind::ConnectionReset => {}
                    other => panic!("cut at {cut}: {other:?}"),
                }
            }
        }
    });
    service.reload();
    assert_eq!(survivors > 0, lives, "{survivors} connections lived");
    let mut client = Client::connect(address);
    let counts = client.get("/counts").text();
    assert!(
        counts.starts_with("0 "),
        "a body was served as a request: {counts}"
    );
    if lives {
        assert_ne!(counts, "0 0", "nothing was read");
    }
}

#[test]
fn smuggling_through_a_body_that_is_dropped_early() {
    the_rest_after_a_reload("/drop", "dropped", false);
}

#[test]
fn smuggling_through_a_body_of_which_a_part_is_read() {
    the_rest_after_a_reload("/part", "read a part", false);
}

#[test]
fn smuggling_through_a_body_that_a_task_reads_after_the_answer() {
    the_rest_after_a_reload("/task", "being read", true);
}

/// The body has arrived, nobody reads it, and nobody has dropped it: the connection must wait for that.
#[test]
fn smuggling_through_a_body_that_a_task_keeps_after_the_answer() {
    let service = Service::start("");
    let first = service.processes();
    let address = service.address("main").parse().expect("an address");
    let mut release = Client::connect(address);
    // A connection in flight stays with the first generation, to tell it something later.
    let whole = with_length("/release", "12345");
    under_traffic(&service, || {
        let mut clients: Vec<Client> = [
            with_length("/keep", EVIL),
            chunked("/keep", EVIL),
            with_length("/keep", &EVIL.repeat(3000)),
        ]
        .iter()
        .cycle()
        .take(12)
        .map(|whole| {
            let mut client = Client::connect(address);
            client.send(whole);
            assert_eq!(client.answer().text(), "kept");
            client
        })
        .collect();
        release.send(&whole[..whole.len() - 1]);
        release.until_read();
        for _ in 0..3 {
            service.try_reload(false, |_| {}).expect("an outcome");
        }
        for client in &mut clients {
            assert!(
                !client.has_input(),
                "it was served, or closed, with its body alive"
            );
            let _ = client.socket().write_all(request("/").as_bytes());
        }
        assert!(
            service.processes().contains(&first[0]),
            "the first one waits for the bodies"
        );
        release.send(&whole[whole.len() - 1..]);
        assert_eq!(release.answer().text(), "released");
        for mut client in clients {
            match client.try_answer() {
                Ok(Some(answer)) => assert_eq!(answer.text(), "fine"),
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
                Err(e) => panic!("{e}"),
            }
        }
        drop(release);
        eventually("the first generations have gone", || {
            service.processes().len() == 1
        });
    });
    let counts = Client::connect(address).get("/counts").text();
    assert_eq!(counts, "0 0", "a body was served as a request");
}
