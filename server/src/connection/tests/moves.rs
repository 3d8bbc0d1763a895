//! Thousands of moves under load: every answer right, in order, none lost.

use tokio::io::{AsyncRead, AsyncWrite};

use super::support::*;
use crate::connection::{Config, End, Order};

const REQUESTS: usize = 1500;

/// What a request is made of, and what its answer must be.
fn request(dice: &mut Dice, number: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let body = |dice: &mut Dice| {
        let limit = if dice.below(10) == 0 { 40_000 } else { 300 };
        let length = 1 + dice.below(limit);
        let trap = get("/admin").into_bytes();
        trap.into_iter().cycle().take(length).collect::<Vec<u8>>()
    };
    match dice.below(6) {
        // Pipelined.
        0 => {
            let paths = (0..2 + dice.below(4)).map(|part| format!("/n/{number}-{part}"));
            let paths: Vec<String> = paths.collect();
            let bytes = paths.iter().map(|path| get(path)).collect::<String>();
            (
                bytes.into(),
                paths.into_iter().map(String::into_bytes).collect(),
            )
        }
        1 => {
            let body = body(dice);
            let mut bytes = post("/echo", body.len()).into_bytes();
            bytes.extend(&body);
            (bytes, vec![body])
        }
        2 => {
            let body = body(dice);
            let mut bytes = post_chunked("/echo").into_bytes();
            for piece in body.chunks(1 + dice.below(body.len())) {
                bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
                bytes.extend(piece);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            (bytes, vec![body])
        }
        _ => {
            let path = format!("/n/{number}");
            (get(&path).into(), vec![path.into()])
        }
    }
}

/// A client in a closed loop, which cuts what it sends into pieces at random places, and has the
/// connection moved at random moments.
async fn play<T: AsyncRead + AsyncWrite + Unpin>(
    mut client: Client<T>,
    host: Host,
    seed: u64,
) -> Moves {
    let mut dice = Dice::new(seed);
    let mut next = request(&mut dice, 0);
    let mut sent = 0;
    for number in 1..=REQUESTS {
        let (mut bytes, answers) = next;
        next = request(&mut dice, number);
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 3;
        let end = bytes.len();
        if dice.below(3) == 0 {
            // Part of the next head comes along, and is read ahead.
            let ahead = 1 + dice.below(10);
            bytes.extend(&next.0[..ahead]);
        }
        while sent < bytes.len() {
            let rest = bytes.len() - sent;
            let piece = if dice.below(3) == 0 {
                1 + dice.below(rest)
            } else {
                rest
            };
            client.send(&bytes[sent..sent + piece]).await;
            sent += piece;
            for _ in 0..dice.below(10) {
                tokio::task::yield_now().await;
            }
            match dice.below(4) {
                // The connection rests within a head, so this is bound to happen.
                0 | 1 if sent <= head => host.hand_over().await,
                // Elsewhere it happens when it can.
                0 | 1 => host.order(Order::HandOver),
                _ => {}
            }
        }
        sent -= end;
        for expected in answers {
            let answer = client.receive().await;
            assert_eq!(answer.status, 200, "seed {seed}, request {number}");
            assert!(answer.body == expected, "seed {seed}, request {number}");
            assert!(!answer.says_close(), "seed {seed}, request {number}");
        }
        if dice.below(4) == 0 {
            host.hand_over().await;
        }
    }
    let moves = host.moves();
    assert_eq!(
        host.state
            .smuggled
            .load(std::sync::atomic::Ordering::SeqCst),
        0
    );
    drop(client);
    assert!(matches!(host.end().await, End::Closed));
    moves
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_moves_in_a_closed_loop() {
    let mut plays = tokio::task::JoinSet::new();
    for seed in 1..=3 {
        let (client, host) = pair(Config::default()).await;
        plays.spawn(play(client, host, seed));
    }
    let (client, host) = unix();
    plays.spawn(play(client, host, 4));
    let (mut total, mut with_leftover) = (0, 0);
    for moves in plays.join_all().await {
        total += moves.total;
        with_leftover += moves.with_leftover;
    }
    eprintln!(
        "{} requests, {total} moves, {with_leftover} of them with leftover bytes",
        4 * REQUESTS
    );
    assert!(total > 2000, "{total} moves");
    assert!(
        with_leftover > 200,
        "{with_leftover} moves with leftover bytes"
    );
}

/// Moves as fast as they go, whatever the client does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_without_end_under_load() {
    let (mut client, host) = pair(Config::default()).await;
    let mover = host.move_without_end();
    for number in 0..1000 {
        let path = format!("/n/{number}");
        let answer = client.ask(&path).await;
        assert_eq!((answer.status, answer.text()), (200, path.as_str()));
    }
    let moves = host.moves();
    eprintln!("1000 requests, {} moves", moves.total);
    assert!(moves.total > 500, "{moves:?}");
    drop(client);
    host.end().await;
    mover.await.unwrap();
}

/// A watch wakes its waiters a moment after its value is there to be seen. An order that was seen
/// before its wake-up must not leave the connection deaf for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_is_lost() {
    let (mut client, host) = pair(Config::default()).await;
    for _ in 0..300 {
        let orders = host.orders();
        let burst = tokio::task::spawn_blocking(move || {
            for _ in 0..50 {
                orders.send_replace(Order::Serve);
            }
        });
        burst.await.unwrap();
        host.hand_over().await;
    }
    assert_eq!(client.ask("/n/1").await.generation(), host.moves().total);
}
