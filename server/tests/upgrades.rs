//! Upgraded connections over real reloads: sessions that are given up as bytes, and such as know nothing of reloads.

#[path = "support/application.rs"]
mod application;
mod support;

use application::{begin_reload, connect, reload, start};
use support::{
    client::Client,
    eventually,
    ws::{CLOSE, HANDSHAKE, TEXT, Ws, frame, text},
};

#[test]
fn program() {
    application::play();
}

#[test]
fn a_session_moves_with_its_peer_and_any_protocol_does() {
    let service = start("chat/1\n20000");
    let mut chat = connect(&service, "/ws");
    assert_eq!(chat.ask("x"), "1 1 x");
    let mut bytes = Client::connect(service.address("main").parse().unwrap());
    bytes
        .send("GET /bytes HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\nabc");
    assert_eq!(bytes.head().status, 101);
    let mut bytes = bytes.into_stream();
    let mut read = |count| {
        let mut answer = vec![0; count];
        std::io::Read::read_exact(&mut bytes, &mut answer).expect("an answer");
        answer
    };
    assert_eq!(read(3), [1, 2, 3]);
    for _ in 0..3 {
        let counts = reload(&service);
        assert_eq!(counts.moved_as["upgraded"], 2);
        // Adopted, they count as those that were accepted.
        assert_eq!(service.status().application["connections"], 2);
    }
    let peer = chat.name();
    assert_eq!(chat.ask("peer"), format!("2 4 peer Some({peer})"));
    std::io::Write::write_all(bytes.get_mut(), b"d").expect("write");
    let mut answer = [0];
    std::io::Read::read_exact(&mut bytes, &mut answer).expect("an answer");
    assert_eq!(answer, [4]);
}

#[test]
fn a_build_that_does_not_know_the_kind_leaves_the_session_to_the_parent() {
    let service = start("chat/1\n20000");
    let mut quiet = connect(&service, "/ws");
    assert_eq!(quiet.ask("x"), "1 1 x");
    let mut half = connect(&service, "/ws");
    let message = text("half");
    half.send(&message[..4]);
    half.until_read();
    service.configure("chat/2\n20000");
    begin_reload(&service);
    // Told, and served on until it ends.
    assert_eq!(quiet.recv().code(), 1012);
    let mut new = connect(&service, "/ws");
    assert_eq!(new.ask("x"), "1 2 x");
    quiet.send(&frame(true, CLOSE, &1012_u16.to_be_bytes()));
    assert_eq!(quiet.try_recv().expect("an end in order"), None);
    half.send(&message[4..]);
    half.closes(1012);
    service.settles();
    assert_eq!(new.ask("y"), "2 2 y");
}

#[test]
fn a_session_that_is_too_large_stays_with_the_parent() {
    let service = start("chat/1\n20000");
    let mut chat = connect(&service, "/ws");
    assert_eq!(chat.ask("huge"), "1 1 huge");
    begin_reload(&service);
    chat.closes(1012);
    service.settles();
}

#[test]
fn a_session_that_cannot_be_read_is_closed_and_counted_and_the_others_live() {
    let service = start("chat/1\n20000");
    let mut bad = connect(&service, "/ws");
    let mut good = connect(&service, "/ws");
    assert_eq!(bad.ask("spoil"), "1 1 spoil");
    assert_eq!(good.ask("x"), "1 1 x");
    reload(&service);
    assert_eq!(bad.try_recv().expect("an end in order"), None);
    assert_eq!(good.ask("y"), "2 2 y");
    let application = service.status().application;
    assert_eq!(application["sessions_lost"], 1);
}

#[test]
fn an_application_that_knows_nothing_has_its_clients_told_and_they_come_back() {
    let service = start("chat/1\n20000");
    let mut idle: Vec<Ws> = (0..20).map(|_| connect(&service, "/plain")).collect();
    for ws in &mut idle {
        assert_eq!(ws.ask("x"), "1 x");
    }
    let address = service.address("main").parse().expect("an address");
    let handshake = HANDSHAKE.replace("/ws ", "/plain ");
    // One that asks all the time: it gets every answer whole, then the word.
    let busy = std::thread::spawn(move || {
        let mut ws = Ws::connect_to(address, &handshake);
        let long = "x".repeat(70_000);
        loop {
            ws.send(&text(&long));
            let answer = ws.recv();
            if answer.opcode != TEXT {
                assert_eq!(answer.code(), 1012);
                ws.send(&frame(true, CLOSE, &answer.payload));
                assert_eq!(ws.try_recv().expect("an end in order"), None);
                return Ws::connect_to(address, &handshake).ask("again");
            }
            assert_eq!(answer.text().len(), long.len() + 2);
        }
    });
    let counts = std::thread::scope(|scope| {
        let reload = scope.spawn(|| reload(&service));
        for ws in idle {
            ws.closes(1012);
        }
        reload.join().expect("a reload")
    });
    assert_eq!((counts.cut, counts.moved), (0, 0), "{counts:?}");
    assert_eq!(busy.join().expect("all in order"), "2 again");
}

#[test]
fn a_stop_says_going_away_to_all() {
    let service = start("chat/1\n20000");
    let mut sessions = [connect(&service, "/ws"), connect(&service, "/plain")];
    for ws in &mut sessions {
        ws.send(&text("x"));
        assert_eq!(ws.recv().opcode, TEXT);
    }
    service.signal(service.pid(), nix::sys::signal::Signal::SIGTERM);
    for ws in sessions {
        ws.closes(1001);
    }
    eventually("it has ended", || service.processes().is_empty());
}

#[test]
fn who_does_not_answer_and_who_is_no_websocket_is_cut_and_named() {
    let service = start("chat/1\n700");
    let mut silent = connect(&service, "/plain");
    assert_eq!(silent.ask("x"), "1 x");
    let mut raw = Client::connect(service.address("main").parse().unwrap());
    raw.send("GET /raw?x=1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n");
    assert_eq!(raw.head().status, 101);
    let counts = reload(&service);
    let mut named = [
        format!("{} GET /plain", silent.name()),
        format!("{} GET /raw", raw.name()),
    ];
    named.sort();
    let mut said = counts.named;
    said.sort();
    assert_eq!(said, named);
    assert_eq!(silent.recv().code(), 1012);
}

#[test]
fn a_long_poll_hears_of_the_drain_and_its_connection_moves() {
    let service = start("chat/1\n20000");
    let mut client = Client::connect(service.address("main").parse().unwrap());
    client.send("GET /poll HTTP/1.1\r\nhost: x\r\n\r\n");
    client.until_read();
    let counts = reload(&service);
    assert_eq!(counts.moved, 1, "{counts:?}");
    let answer = client.answer();
    assert_eq!((answer.text().as_str(), answer.closes()), ("drains", false));
    assert_eq!(client.get("/nowhere").status, 404);
}

#[test]
fn who_asks_for_nothing_gets_nothing() {
    let service = start("chat/1\n20000");
    let mut client = Client::connect(service.address("main").parse().unwrap());
    let answer = client.get("/bytes");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("does not ask for another protocol"));
    assert_eq!(client.get("/ws").status, 426);
}
