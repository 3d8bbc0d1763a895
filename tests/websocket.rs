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
    let hello = Hello::start();
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
        for _ in 0..20 {
            hello.reload();
        }
        stop.store(true, Ordering::Relaxed);
        talkers
            .into_iter()
            .map(|t| t.join().expect("no message was lost"))
            .sum()
    });
    assert_eq!(idle.ask("last"), "2 21 last");
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
