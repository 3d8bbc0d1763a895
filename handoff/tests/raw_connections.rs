//! Connections of a protocol that the library knows nothing of move with the application's own data.

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use handoff::{Connection, ConnectionGuard, Phase, Serving, Stream};
use support::{Line, Service, eventually, meanwhile};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

const KIND: &str = "names";

/// What a client has said: a name, and how often it asked.
#[derive(Clone, Default)]
struct Session {
    name: String,
    asked: u64,
}

impl Session {
    fn encode(&self) -> Vec<u8> {
        format!("{} {}", self.asked, self.name).into_bytes()
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (asked, name) = std::str::from_utf8(data).ok()?.split_once(' ')?;
        Some(Self {
            name: name.to_owned(),
            asked: asked.parse().ok()?,
        })
    }
}

struct App {
    serving: Serving,
    config: String,
    /// Connections whose data made no sense.
    damaged: AtomicU64,
}

impl App {
    fn says(&self, word: &str) -> bool {
        self.config.lines().any(|line| line == word)
    }

    /// Serves a connection; `read` is what was read of it and not answered.
    async fn serve(
        self: Arc<Self>,
        mut stream: Stream,
        mut session: Session,
        mut read: Vec<u8>,
        peer: Option<SocketAddr>,
        mut guard: ConnectionGuard,
    ) {
        let mut phase = self.serving.phase();
        let mut may_move = true;
        loop {
            tokio::select! {
                biased;
                () = handing_over(&mut phase), if may_move => {
                    match self.hand_over(stream, &session, &read, peer, guard).await {
                        None => return,
                        Some(stays) => (stream, guard) = stays,
                    }
                    may_move = false;
                }
                line = next_line(&mut stream, &mut read) => {
                    let Some(question) = line else { break };
                    let answer = self.answer(&mut session, &question, peer);
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            }
        }
        drop(guard);
    }

    fn answer(&self, session: &mut Session, question: &str, peer: Option<SocketAddr>) -> String {
        let generation = self.serving.identity().generation;
        match question.split_once(' ') {
            Some(("name", name)) => {
                session.name = name.to_owned();
                format!("{generation} ok\n")
            }
            _ if question == "peer" => format!("{peer:?}\n"),
            _ => {
                session.asked += 1;
                format!("{generation} {} {}\n", session.name, session.asked)
            }
        }
    }

    /// `None` when it has moved; else it is to be served on.
    async fn hand_over(
        &self,
        stream: Stream,
        session: &Session,
        read: &[u8],
        peer: Option<SocketAddr>,
        guard: ConnectionGuard,
    ) -> Option<(Stream, ConnectionGuard)> {
        let fd = stream.into_fd().expect("a descriptor");
        let mut connection = Connection::new(KIND, "main", fd);
        connection.peer = peer;
        connection.layers.push(read.to_vec());
        connection.data = session.encode();
        if self.says("send garbage") {
            connection.data = vec![0xff; 20];
        }
        if self.says("send too much") {
            connection.data = vec![b'x'; handoff::MAX_CONNECTION_BYTES + 1];
        }
        let not_moved = self.serving.hand_over(connection, guard).await.err()?;
        let (connection, guard) = not_moved.connection?;
        assert!(!not_moved.reason.is_empty());
        assert_eq!(connection.layers, [read.to_vec()]);
        Some((Stream::from_fd(connection.fd).expect("a stream"), guard))
    }
}

/// The next line, of what was read before or will be; `None` at the end. Cancel safe.
async fn next_line(stream: &mut Stream, read: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            return Some(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if !matches!(stream.read_buf(read).await, Ok(n) if n > 0) {
            return None;
        }
    }
}

async fn handing_over(phase: &mut watch::Receiver<Phase>) {
    let reached = phase
        .wait_for(|phase| *phase == Phase::HandingOver)
        .await
        .is_ok();
    if !reached {
        std::future::pending::<()>().await;
    }
}

#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    support::play(async {
        let main = "127.0.0.1:0".parse().expect("an address");
        let mut server = support::builder(&dir).listen("main", main);
        if !config.lines().any(|line| line == "adopt nothing") {
            server = server.adopt(KIND);
        }
        let serving = server.start().await.expect("start").ready().await;
        let serving = serving.expect("ready");
        let app = Arc::new(App {
            serving: serving.clone(),
            config,
            damaged: AtomicU64::new(0),
        });
        let reported = Arc::downgrade(&app);
        serving.report_status(move || {
            let damaged = reported
                .upgrade()
                .map(|app| app.damaged.load(Ordering::Relaxed));
            damaged.unwrap_or_default().into()
        });
        let adopting = app.clone();
        let mut adopted = serving.adopted().expect("the first call");
        tokio::spawn(async move {
            while let Some(adopted) = adopted.recv().await {
                let connection = adopted.connection;
                let Some(session) = Session::decode(&connection.data) else {
                    adopting.damaged.fetch_add(1, Ordering::Relaxed);
                    drop(adopted.guard);
                    continue;
                };
                let stream = Stream::from_fd(connection.fd).expect("a stream");
                let read = connection.layers.concat();
                let app = adopting.clone();
                tokio::spawn(app.serve(stream, session, read, connection.peer, adopted.guard));
            }
        });
        let mut acceptor = serving.acceptor("main").expect("acceptor");
        while let Some(accepted) = acceptor.accept().await {
            let app = app.clone();
            let session = Session::default();
            tokio::spawn(app.serve(
                accepted.stream,
                session,
                Vec::new(),
                accepted.peer,
                accepted.guard,
            ));
        }
        let _ = serving.finished().await;
    });
}

fn clients(service: &Service, count: usize) -> Vec<Line> {
    (0..count)
        .map(|number| {
            let mut line = service.connect("main");
            assert_eq!(line.ask(&format!("name n{number}")), "1 ok");
            line
        })
        .collect()
}

#[test]
fn connections_move_with_their_sessions() {
    let service = Service::start("");
    let mut clients = clients(&service, 300);
    let mut asked = 0;
    let mut busy = service.connect("main");
    busy.ask("name busy");
    let chat = || {
        asked += 1;
        let answer = busy.ask("?");
        assert!(
            answer.ends_with(&format!(" busy {asked}")),
            "{answer} is not {asked}"
        );
    };
    meanwhile(chat, |goes_on| {
        for generation in 2..=5 {
            service.reload();
            for (number, line) in clients.iter_mut().enumerate() {
                let expected = format!("{generation} n{number} {}", generation - 1);
                assert_eq!(line.ask("?"), expected);
            }
            goes_on();
        }
    });
}

#[test]
fn half_a_line_moves() {
    let service = Service::start("");
    let mut line = service.connect("main");
    let question = "name somebody\n";
    for at in 1..question.len() {
        line.say(&question[..at]);
        service.reload();
        line.say(&question[at..]);
        assert_eq!(line.hear(), format!("{} ok", at + 1));
    }
    assert_eq!(line.ask("?"), format!("{} somebody 1", question.len()));
}

#[test]
fn many_lines_at_once_are_answered_once_each_and_in_order() {
    let service = Service::start("");
    let mut line = service.connect("main");
    line.ask("name pipelined");
    for round in 0..5 {
        line.say(&"?\n".repeat(1000));
        service.reload();
        for number in 1..=1000 {
            let answer = line.hear();
            let expected = format!(" pipelined {}", round * 1000 + number);
            assert!(answer.ends_with(&expected), "{answer} is not{expected}");
        }
    }
}

#[test]
fn the_peer_moves_along() {
    let service = Service::start("");
    let mut line = service.connect("main");
    let peer = line.ask("peer");
    assert!(peer.contains("127.0.0.1"), "{peer}");
    service.reload();
    assert_eq!(line.ask("peer"), peer);
}

#[test]
fn data_that_makes_no_sense_closes_that_connection_and_is_counted() {
    let service = Service::start("send garbage\n");
    let mut clients = clients(&service, 5);
    service.configure("");
    service.reload();
    for line in &mut clients {
        assert_eq!(line.try_hear().unwrap_or_default(), "", "it lives");
    }
    assert_eq!(service.status().application, 5);
    // Nobody else has suffered.
    let mut line = service.connect("main");
    assert_eq!(line.ask("name x"), "2 ok");
    service.reload();
    assert_eq!(line.ask("?"), "3 x 1");
}

/// Connections that are given up and come back are served on where they are.
fn stays(config: &str, next: &str) {
    let service = Service::start(config);
    let mut clients = clients(&service, 5);
    clients[0].say("na");
    service.configure(next);
    let report = service.try_reload(false, |_| {}).expect("an outcome");
    assert!(matches!(
        report.outcome,
        handoff::control::Outcome::Confirmed { .. }
    ));
    for (number, line) in clients.iter_mut().enumerate().skip(1) {
        assert_eq!(line.ask("?"), format!("1 n{number} 1"));
        assert_eq!(line.ask("?"), format!("1 n{number} 2"));
    }
    clients[0].say("me other\n");
    assert_eq!(clients[0].hear(), "1 ok");
    assert_eq!(service.connect("main").ask("name x"), "2 ok");
    assert_eq!(service.status().draining[0].process.generation, 1);
    drop(clients);
    service.settles();
}

#[test]
fn a_kind_that_the_next_build_does_not_know_stays() {
    stays("", "adopt nothing\n");
}

#[test]
fn a_connection_with_too_much_data_stays() {
    stays("send too much\n", "");
}

#[cfg(feature = "failpoints")]
#[test]
fn connections_come_back_from_a_child_that_dies_before_its_ack() {
    let service = Service::start_with("", "child/before-say/ConnAck=kill");
    let mut clients = clients(&service, 5);
    service.try_reload(false, |_| {}).expect("an outcome");
    for (number, line) in clients.iter_mut().enumerate() {
        assert_eq!(line.ask("?"), format!("1 n{number} 1"));
    }
    drop(clients);
    eventually("all have ended", || service.processes().is_empty());
}
