//! The example `tcp_line`, over reloads.

#[allow(dead_code, reason = "its `main` is for those who run it")]
#[path = "../examples/tcp_line.rs"]
mod tcp_line;

mod support;

use handoff::{Builder, Connection};
use support::{Line, Service, meanwhile};

#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    support::play(async {
        let address = "127.0.0.1:0".parse().expect("an address");
        let server = support::builder(&dir).listen("line", address);
        match config.as_str() {
            "another build" => another_build(server).await,
            _ => tcp_line::run(server).await.expect("served to its end"),
        }
    });
}

/// One that gives up every connection with data that is nonsense, of the same kind.
async fn another_build(server: Builder) {
    let serving = server.start().await.expect("start").ready().await;
    let serving = serving.expect("ready");
    let mut acceptor = serving.acceptor("line").expect("acceptor");
    while let Some(accepted) = acceptor.accept().await {
        let serving = serving.clone();
        tokio::spawn(async move {
            let mut phase = serving.phase();
            let _ = phase.wait_for(|phase| phase.is_final()).await;
            let fd = accepted.stream.into_fd().expect("a descriptor");
            let mut connection = Connection::new("tcp-line/1", "line", fd);
            connection.data = b"nonsense, and more of it".to_vec();
            let _ = serving.hand_over(connection, accepted.guard).await;
        });
    }
    let _ = serving.finished().await;
}

fn is(answer: &str, generation: u64, line: u64) {
    let expected = format!("generation {generation}: line {line} of yours, ");
    assert!(answer.starts_with(&expected), "{answer} is not {expected}");
}

#[test]
fn each_connection_goes_on_counting_over_reloads() {
    let service = Service::start("");
    let mut clients: Vec<Line> = (0..50).map(|_| service.connect("line")).collect();
    let mut busy = service.connect("line");
    let mut asked = 0;
    let chat = || {
        asked += 1;
        let answer = busy.ask("?");
        assert!(
            answer.contains(&format!(" line {asked} of yours")),
            "{answer}"
        );
    };
    meanwhile(chat, |goes_on| {
        for generation in 1..=4 {
            for client in &mut clients {
                is(&client.ask("?"), generation, generation);
            }
            // Half a line moves, too.
            clients[0].say("ha");
            clients[0].say(&"l".repeat(10));
            service.reload();
            goes_on();
        }
    });
    is(&clients[0].ask("f"), 5, 5);
    drop(clients);
    // All lines of all generations.
    let answer = busy.ask("?");
    let all: u64 = 50 * 4 + 1 + asked + 1;
    assert!(
        answer.ends_with(&format!(", {all} in all")),
        "{answer} is not {all}"
    );
}

#[test]
fn what_another_build_says_need_not_make_sense() {
    let service = Service::start("another build");
    let mut clients: Vec<Line> = (0..5).map(|_| service.connect("line")).collect();
    service.configure("");
    service.reload();
    for client in &mut clients {
        assert_eq!(client.try_hear().unwrap_or_default(), "", "it lives");
    }
    assert_eq!(service.status().application, 5);
    assert_eq!(service.log().matches("makes no sense").count(), 5);
    // Nobody else has suffered.
    let mut client = service.connect("line");
    is(&client.ask("?"), 2, 1);
    service.reload();
    is(&client.ask("?"), 3, 2);
}
