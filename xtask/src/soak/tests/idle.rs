//! Connections that rest: what a look finds, and what a request on one of them does.

use super::super::idle::{Idle, Look};
use super::super::timeline::Build;
use super::*;

/// A server that answers as many requests as are asked, on each connection.
const ANSWERS: &[&[Do]] = &[&[
    Do::Read,
    Do::Write(HELLO),
    Do::Read,
    Do::Write(HELLO),
    Do::Hang,
]];

fn look(looked_at: u64, alive: u64, used: u64, right: u64) -> Look {
    Look {
        looked_at,
        alive,
        used,
        right,
    }
}

/// Looks, without using any, until `alive` are left: what the server does takes a moment to arrive.
async fn look_until(idle: &mut Idle, alive: u64) -> Look {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let look = idle.check().await;
        if look.alive == alive || Instant::now() > deadline {
            return look;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn all_are_looked_at_and_each_is_used_in_its_turn() {
    let world = World::against(ANSWERS).await;
    let mut idle = Idle::open(&world.client, 5, 2).await.unwrap();
    for _ in 0..5 {
        // Ten requests on five connections that take two each: none is used out of turn.
        assert_eq!(idle.check().await, look(5, 5, 2, 2));
    }
    let account = world.closed(0).await;
    assert_eq!(account.counts["idle"]["ok"], 10);
    assert_eq!(
        world.client.open.load(std::sync::atomic::Ordering::Relaxed),
        5
    );
}

#[tokio::test]
async fn the_last_check_uses_all() {
    let world = World::against(ANSWERS).await;
    let idle = Idle::open(&world.client, 5, 2).await.unwrap();
    assert_eq!(idle.finish().await, look(5, 5, 5, 5));
    assert_eq!(
        world.client.open.load(std::sync::atomic::Ordering::Relaxed),
        0
    );
}

#[tokio::test]
async fn a_connection_that_ends_is_counted_once_and_replaced() {
    let moment = Do::Wait(Duration::from_millis(20));
    for ending in [Do::Wait(Duration::ZERO), Do::Reset] {
        let world = World::against(&[&[moment, ending], &[Do::Hang]]).await;
        let mut idle = Idle::open(&world.client, 3, 0).await.unwrap();
        assert_eq!(look_until(&mut idle, 2).await, look(3, 2, 0, 0));
        assert_eq!(idle.check().await, look(3, 3, 0, 0), "replaced");
        let account = world.closed(1).await;
        assert_eq!(account.totals.lost, 0);
        assert_eq!(account.losses[0].kind, "idle");
    }
}

#[tokio::test]
async fn a_byte_that_comes_is_no_rest() {
    let world = World::against(&[&[Do::Write("x"), Do::Hang], &[Do::Hang]]).await;
    let mut idle = Idle::open(&world.client, 2, 0).await.unwrap();
    assert_eq!(look_until(&mut idle, 1).await, look(2, 1, 0, 0));
    let account = world.closed(1).await;
    assert!(account.losses[0].detail.contains("1 bytes"), "{account:?}");
}

#[tokio::test]
async fn bytes_behind_an_answer_are_no_rest_either() {
    const MORE: &str =
        "HTTP/1.1 200 OK\r\nx-generation: 1\r\ncontent-length: 16\r\n\r\nhello world eee\nmore";
    let world = World::against(&[&[Do::Read, Do::Write(MORE), Do::Hang], &[Do::Hang]]).await;
    let mut idle = Idle::open(&world.client, 1, 1).await.unwrap();
    assert_eq!(idle.check().await, look(1, 1, 1, 0));
    let account = world.closed(1).await;
    assert_eq!(account.totals.lost, 0, "the answer was right: {account:?}");
}

#[tokio::test]
async fn a_request_that_is_lost_has_its_name() {
    let cases: [(&[Do], &str); 3] = [
        (&[Do::Read], "eof"),
        (&[Do::Read, Do::Reset], "reset"),
        (&[Do::Read, Do::Hang], "timeout"),
    ];
    for (script, name) in cases {
        let world = World::against(&[script]).await;
        let mut idle = Idle::open(&world.client, 1, 1).await.unwrap();
        assert_eq!(idle.check().await, look(1, 1, 1, 0));
        let account = world.closed(0).await;
        assert_eq!((account.counts["idle"][name], account.totals.lost), (1, 1));
    }
}

#[tokio::test]
async fn a_generation_that_has_gone_cannot_answer() {
    let world = World::against(ANSWERS).await;
    let mut idle = Idle::open(&world.client, 1, 1).await.unwrap();
    idle.check().await;
    world.client.timeline.begin_reload(1, Build::B);
    world.client.timeline.commit(2);
    world.client.timeline.settle(2);
    assert_eq!(idle.check().await, look(1, 1, 1, 0));
    assert_eq!(world.account().counts["idle"]["old-generation"], 1);
}

/// The descriptors of both ends are in this process: a quarter of what the pool is made for.
#[tokio::test]
async fn a_look_at_many_takes_no_time() {
    let world = World::against(&[&[Do::Hang]]).await;
    let mut client = (*world.client).clone();
    client.max_open = usize::MAX;
    super::super::allow_descriptors().unwrap();
    let mut idle = Idle::open(&Arc::new(client), 2500, 0).await.unwrap();
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(idle.check().await, look(2500, 2500, 0, 0));
        fastest = fastest.min(began.elapsed());
    }
    // Some 1 ms; a request on each would take a hundred times as long.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}
