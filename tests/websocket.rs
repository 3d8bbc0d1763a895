//! WebSocket sessions go on in the next generation, in the same TCP connection: none is closed, no message is lost,
//! answered twice, or counted wrong.

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use support::{
    Hello,
    client::{Client, request},
    load::Load,
    raise_descriptors,
    ws::{BINARY, CLOSE, CONTINUATION, HANDSHAKE, PING, PONG, TEXT, Ws, frame, text},
};

/// The number, the generation and the echo of an answer.
fn parts(answer: &str) -> (u64, u64, &str) {
    let mut words = answer.splitn(3, ' ');
    let mut number = || words.next().and_then(|word| word.parse().ok());
    let (count, generation) = (number(), number());
    (
        count.expect("a count"),
        generation.expect("a generation"),
        words.next().expect("an echo"),
    )
}

#[test]
fn a_session_counts_on_over_twenty_reloads_while_messages_flow() {
    a_session_counts_on(20, "0");
}

#[test]
fn a_session_counts_on_over_reloads_with_a_probation() {
    a_session_counts_on(5, "100ms");
}

fn a_session_counts_on(reloads: u64, probation: &str) {
    let hello = Hello::with().probation(probation).start();
    let load = Load::calm(hello.address());
    let stop = AtomicBool::new(false);
    let mut idle = Ws::connect(hello.address());
    assert_eq!(idle.ask("first"), "1 1 first");
    let messages: u64 = thread::scope(|scope| {
        let talkers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut ws = Ws::connect(hello.address());
                    let (mut sent, mut before) = (0, 1);
                    while !stop.load(Ordering::Relaxed) {
                        sent += 1;
                        let answer = ws.ask(&format!("message {sent}"));
                        let (count, generation, echo) = parts(&answer);
                        assert_eq!((count, echo), (sent, &*format!("message {sent}")));
                        assert!(generation >= before, "back to the parent");
                        before = generation;
                    }
                    sent
                })
            })
            .collect();
        for _ in 0..reloads {
            hello.reload();
        }
        stop.store(true, Ordering::Relaxed);
        talkers
            .into_iter()
            .map(|t| t.join().expect("no message was lost"))
            .sum()
    });
    assert_eq!(idle.ask("last"), format!("2 {} last", reloads + 1));
    let answered = load.finish() + messages + 2;
    hello.settles();
    assert_eq!(hello.requests(), answered, "the counter is exact");
}

#[test]
fn what_moved_is_called_upgraded() {
    let hello = Hello::start();
    let mut ws = Ws::connect(hello.address());
    assert_eq!(ws.ask("x"), "1 1 x");
    let said = hello.reload();
    assert!(said.contains("1 connection moved (upgraded)"), "{said}");
    assert_eq!(ws.ask("y"), "2 2 y");
}

#[test]
fn what_is_half_sent_moves_with_the_session() {
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let message = text("hello");
    // Half a frame, at each place, then what remains in a second generation and a third.
    let mut clients: Vec<(usize, Ws)> = (1..message.len())
        .map(|cut| {
            let mut ws = Ws::connect(hello.address());
            assert_eq!(ws.ask("before"), "1 1 before");
            ws.send(&message[..cut]);
            ws.until_read();
            (cut, ws)
        })
        .collect();
    hello.reload();
    for (cut, ws) in &mut clients {
        let middle = *cut + (message.len() - *cut) / 2;
        ws.send(&message[*cut..middle]);
        ws.until_read();
    }
    hello.reload();
    for (cut, ws) in &mut clients {
        let middle = *cut + (message.len() - *cut) / 2;
        ws.send(&message[middle..]);
        assert_eq!(ws.recv().text(), "2 3 hello", "cut at {cut}");
        assert_eq!(ws.ask("after"), "3 3 after");
    }
    load.finish();
}

#[test]
fn frames_behind_the_request_in_one_packet_are_answered() {
    let hello = Hello::start();
    let client = Client::connect(hello.address());
    let half = text("half");
    let packet = [HANDSHAKE.as_bytes(), &text("one"), &text("two"), &half[..4]].concat();
    let mut ws = Ws::begin(client, &packet);
    assert_eq!(ws.recv().text(), "1 1 one");
    assert_eq!(ws.recv().text(), "2 1 two");
    hello.reload();
    ws.send(&half[4..]);
    assert_eq!(ws.recv().text(), "3 2 half");
}

/// A connection that moved as HTTP's, with half the request, is upgraded where it arrives, and moves as what it is then.
#[test]
fn a_session_under_what_http_had_left_over() {
    let hello = Hello::start();
    let mut client = Client::connect(hello.address());
    assert_eq!(client.get("/hello").generation(), 1);
    client.send(&HANDSHAKE[..20]);
    client.until_read();
    hello.reload();
    let half = text("half");
    let packet = [&HANDSHAKE.as_bytes()[20..], &text("one"), &half[..3]].concat();
    let mut ws = Ws::begin(client, &packet);
    assert_eq!(ws.recv().text(), "1 2 one");
    for _ in 0..5 {
        hello.begin_reload();
    }
    ws.send(&half[3..]);
    assert_eq!(parts(ws.recv().text()).0, 2);
    hello.settles();
    assert_eq!(ws.ask("end"), "3 7 end");
}

#[test]
fn many_frames_at_once_are_answered_once_each_over_reloads() {
    let hello = Hello::start();
    let mut ws = Ws::connect(hello.address());
    let mut next = 0;
    for round in 0..10_u64 {
        let count = 200 + round;
        let packet: Vec<u8> = (1..=count)
            .flat_map(|number| text(&(next + number).to_string()))
            .collect();
        thread::scope(|scope| {
            let reload = scope.spawn(|| hello.reload());
            ws.send(&packet);
            for number in next + 1..=next + count {
                let answer = ws.recv();
                let (counted, _, echo) = parts(answer.text());
                assert_eq!((counted, echo), (number, &*number.to_string()));
            }
            reload.join().expect("a reload");
        });
        next += count;
    }
    hello.settles();
    assert_eq!(hello.requests(), next, "none was answered twice");
}

#[test]
fn a_fragmented_message_ends_where_it_began_and_then_the_session_moves() {
    let hello = Hello::start();
    let mut ws = Ws::connect(hello.address());
    ws.send(&frame(false, TEXT, b"one "));
    ws.until_read();
    hello.begin_reload();
    ws.send(&frame(false, CONTINUATION, b"two "));
    // A control frame between two fragments.
    ws.send(&frame(true, PING, b"still there?"));
    let pong = ws.recv();
    assert_eq!((pong.opcode, &*pong.payload), (PONG, &b"still there?"[..]));
    ws.send(&frame(true, CONTINUATION, b"three"));
    assert_eq!(ws.recv().text(), "1 1 one two three");
    hello.settles();
    assert_eq!(ws.ask("next"), "2 2 next");
}

#[test]
fn a_megabyte_under_way_ends_where_it_began_and_then_the_session_moves() {
    let hello = Hello::start();
    let mut ws = Ws::connect(hello.address());
    let body: Vec<u8> = (0..1_u32 << 20).map(|n| (n * 7 / 3) as u8).collect();
    let message = frame(true, BINARY, &body);
    ws.send(&message[..message.len() / 2]);
    ws.until_read();
    hello.begin_reload();
    ws.send(&message[message.len() / 2..]);
    let answer = ws.recv();
    assert_eq!(answer.opcode, BINARY);
    assert_eq!(answer.payload, [b"1 1 ", &*body].concat());
    hello.settles();
    // And one that has not begun: whole in the next.
    ws.send(&message);
    assert_eq!(ws.recv().payload, [b"2 2 ", &*body].concat());
}

#[test]
fn pings_are_answered_across_reloads() {
    let hello = Hello::start();
    let mut ws = Ws::connect(hello.address());
    for round in 0..5_u64 {
        thread::scope(|scope| {
            let reload = scope.spawn(|| hello.reload());
            for number in 0..50_u64 {
                let mark = (round * 50 + number).to_be_bytes();
                ws.send(&frame(true, PING, &mark));
                let pong = ws.recv();
                assert_eq!((pong.opcode, &*pong.payload), (PONG, &mark[..]));
            }
            reload.join().expect("a reload");
        });
    }
    assert_eq!(ws.ask("x"), "1 6 x");
}

#[test]
fn a_thousand_idle_sessions_move_at_once() {
    raise_descriptors();
    let hello = Hello::start();
    let load = Load::calm(hello.address());
    let mut sessions: Vec<Ws> = (0..1000).map(|_| Ws::connect(hello.address())).collect();
    for ws in &mut sessions {
        assert_eq!(ws.ask("x"), "1 1 x");
    }
    for _ in 0..3 {
        let said = hello.reload();
        assert!(said.contains("1000 upgraded"), "{said}");
    }
    for ws in &mut sessions {
        assert_eq!(ws.ask("y"), "2 4 y");
    }
    load.finish();
}

#[test]
fn a_client_that_closes_is_answered_and_the_end_is_in_order() {
    let hello = Hello::start();
    for reloads in 0..2 {
        let mut ws = Ws::connect(hello.address());
        (0..reloads).for_each(|_| drop(hello.reload()));
        ws.send(&frame(true, CLOSE, &1000_u16.to_be_bytes()));
        assert_eq!(ws.recv().code(), 1000);
        assert_eq!(ws.try_recv().expect("an end in order"), None);
    }
}

#[test]
fn what_breaks_the_rules_is_closed_with_its_code() {
    let hello = Hello::start();
    let unmasked = vec![0x81, 1, b'x'];
    let mut reserved = text("x");
    reserved[0] |= 0x40;
    let lonely = frame(true, CONTINUATION, b"x");
    let unknown = frame(true, 3, b"x");
    let long_ping = frame(true, PING, &[0; 126]);
    let too_large = [&[0x82, 0xff][..], &(1_u64 << 40).to_be_bytes(), &[0; 4]].concat();
    let not_text = frame(true, TEXT, &[0xff]);
    for (bytes, code) in [
        (unmasked, 1002),
        (reserved, 1002),
        (lonely, 1002),
        (unknown, 1002),
        (long_ping, 1002),
        (too_large, 1009),
        (not_text, 1007),
    ] {
        let mut ws = Ws::connect(hello.address());
        assert_eq!(ws.ask("x"), "1 1 x");
        ws.send(&bytes);
        let close = ws.recv();
        assert_eq!(close.code(), code, "{bytes:?}: {close:?}");
        assert_eq!(ws.try_recv().expect("an end in order"), None);
    }
    assert!(!hello.log().contains("panicked"), "{}", hello.log());
}

#[test]
fn a_stop_says_going_away() {
    let hello = Hello::start();
    let mut ws = Ws::connect(hello.address());
    assert_eq!(ws.ask("x"), "1 1 x");
    let mut stop = hello.verb(&["stop"]).spawn().expect("stop");
    ws.closes(1001);
    assert!(stop.wait().expect("wait").success());
}

/// Nothing of a session that was not acknowledged is the child's: it goes on in the parent, to its end.
#[test]
fn a_session_comes_back_from_a_child_that_is_killed_before_its_ack() {
    let hello = Hello::with()
        .env("HANDOFF_FAILPOINTS", "child/before-say/ConnAck=kill")
        .start();
    let mut sessions: Vec<Ws> = (0..20).map(|_| Ws::connect(hello.address())).collect();
    for ws in &mut sessions {
        assert_eq!(ws.ask("x"), "1 1 x");
        let half = text("half");
        ws.send(&half[..3]);
        ws.until_read();
    }
    hello.hello(&["reload", "--no-wait"]);
    for mut ws in sessions {
        // What arrived as a part only is nobody's; the client is told.
        assert_eq!(ws.recv().code(), 1012);
        ws.send(&text("half")[3..]);
        ws.send(&frame(true, CLOSE, &1012_u16.to_be_bytes()));
        assert_eq!(ws.try_recv().expect("an end in order"), None);
    }
}

/// With the ack the session is the child's, and ends with it: were it answered here as well, it would go on twice.
#[test]
fn a_session_of_a_child_that_is_killed_after_its_ack_is_answered_by_nobody() {
    let hello = Hello::with()
        .env("HANDOFF_FAILPOINTS", "child/after-say/ConnAck=kill")
        .start();
    let mut ws = Ws::connect(hello.address());
    hello.hello(&["reload", "--no-wait"]);
    let _ = ws.try_send(&text("y"));
    assert!(matches!(ws.try_recv(), Ok(None) | Err(_)));
}

/// Whole messages that lay in the connection when it came back are answered before its client is told, once each.
#[test]
fn what_had_arrived_is_answered_in_the_parent_when_the_child_is_killed() {
    const MESSAGES: u64 = 3000;
    let hello = Hello::with()
        .env("HANDOFF_FAILPOINTS", "child/before-say/ConnAck=kill")
        .start();
    let mut ws = Ws::connect(hello.address());
    assert_eq!(ws.ask("x"), "1 1 x");
    let packet = text("y").repeat(MESSAGES as usize);
    let told = thread::scope(|scope| {
        let reload = scope.spawn(|| hello.hello(&["reload", "--no-wait"]));
        let mut told = None;
        for number in 2.. {
            if number % MESSAGES == 2 && ws.try_send(&packet).is_err() {
                break;
            }
            let answer = ws.recv();
            if answer.opcode == CLOSE {
                told = Some((answer.code(), number - 2));
                break;
            }
            assert_eq!(answer.text(), format!("{number} 1 y"));
        }
        reload.join().expect("a reload");
        told
    });
    let (code, answered) = told.expect("a word at the end");
    assert_eq!(
        (code, answered % MESSAGES),
        (1012, 0),
        "all that had arrived"
    );
}

#[test]
fn a_session_that_does_not_end_is_cut_at_the_deadline_and_named() {
    let hello = Hello::with().arg("--drain-timeout").arg("500ms").start();
    let mut ws = Ws::connect_to(hello.address(), &HANDSHAKE.replace("/ws ", "/ws?secret=1 "));
    assert_eq!(ws.ask("x"), "1 1 x");
    hello.reload();
    assert_eq!(ws.ask("y"), "2 2 y");
    // In the middle of a message that never ends.
    ws.send(&frame(false, TEXT, b"never"));
    ws.until_read();
    let said = hello.reload();
    let named = format!("cut: {} GET /ws\n", ws.name());
    assert!(said.contains(&named), "{said}");
}

#[test]
fn a_request_that_begins_no_session_is_answered_and_its_connection_lives() {
    let hello = Hello::start();
    let mut client = Client::connect(hello.address());
    let answer = client.get("/ws");
    assert_eq!(answer.status, 426);
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    client.send(HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"));
    assert_eq!(client.answer().status, 400);
    client.send(request("/hello"));
    assert_eq!(client.answer().status, 200);
    hello.reload();
    assert_eq!(client.get("/hello").generation(), 2);
}
