//! Many requests, the prober, the counter.

use super::super::load::Load;
use super::super::schedule::Schedule;
use super::super::{counter, probe};
use super::*;

#[tokio::test]
async fn the_clients_own_trouble_is_not_the_servers() {
    let mut world = World::against(&[&[Do::Hang]]).await;
    Arc::get_mut(&mut world.client).unwrap().max_open = 1;
    let first = world.connect().await;
    assert_eq!(
        world
            .client
            .connect(Kind::NewConnection)
            .await
            .unwrap_err()
            .outcome,
        Outcome::Client
    );
    drop(first);
}

#[tokio::test]
async fn the_prober_waits_for_the_new_generation() {
    let world = World::against(&[
        &[Do::Read, Do::Write(HELLO), Do::Hang],
        &[Do::Read],
        &[Do::Read, Do::Write(HEALTHY), Do::Hang],
    ])
    .await;
    probe::first_answer(Arc::clone(&world.client), 2).await;
    let account = world.account();
    assert_eq!(
        (
            account.counts["probe"]["ok"],
            account.counts["probe"]["eof"]
        ),
        (2, 1)
    );
    assert_eq!(account.answers, 0, "the server does not count probes");
}

#[tokio::test]
async fn the_counter_is_read() {
    let right = fake(&[&[
        Do::Read,
        Do::Write("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"requests\":7}"),
    ]])
    .await;
    assert_eq!(counter::requests(right).await.unwrap(), 7);
    let wrong = fake(&[&[
        Do::Read,
        Do::Write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
    ]])
    .await;
    assert!(counter::requests(wrong).await.is_err());
}

/// A server that closes every connection instead of answering, and one that is silent: the load counts that, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_counts_all_it_sends() {
    let closes: &[Do] = &[Do::Read];
    let silent: &[Do] = &[Do::Read, Do::Hang];
    for script in [closes, silent] {
        let world = World::against(&[script]).await;
        let load = Load::start(&world.client, 5, |start| Schedule::new(start, 400, 1))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sent = load.finish().await.unwrap();
        let account = world.account();
        let scheduled: u64 = account.counts.values().flat_map(|row| row.values()).sum();
        assert!(sent.paced.shots >= 80, "{sent:?}");
        assert_eq!(scheduled, sent.paced.shots, "each request has an outcome");
        assert_eq!(
            account.totals.lost, account.totals.ended,
            "this server never answers"
        );
        assert_eq!(account.totals.closed, 0, "a request was under way on each");
        let all_busy = script.len() == silent.len();
        assert!(!all_busy || sent.extra > 50, "{sent:?}");
    }
}
