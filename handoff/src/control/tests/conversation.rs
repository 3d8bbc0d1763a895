//! Conversations with servers that answer, go, or say too much.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::super::message::{ConnectionCounts, Generation, ListenerChanges};
use super::super::*;
use super::{PARENT, World};

const CHILD: Generation = Generation {
    generation: 2,
    pid: 22,
};

fn phase(name: &str) -> Event {
    Event::Phase {
        reload: 7,
        phase: name.to_owned(),
        pid: Some(CHILD.pid),
        at_us: 1,
        lasts_ms: None,
    }
}

fn confirmed() -> Outcome {
    Outcome::Confirmed {
        from: PARENT,
        to: CHILD,
        serving_us: 4100,
        listeners: ListenerChanges::default(),
    }
}

fn reloaded(outcome: Outcome) -> Event {
    Event::Reloaded { reload: 7, outcome }
}

fn drained() -> Event {
    Event::Drained {
        reload: 7,
        at_us: 12_000,
        connections: ConnectionCounts {
            moved: 3,
            ..ConnectionCounts::default()
        },
    }
}

const WAITS: Waits = Waits {
    outcome: Duration::from_secs(20),
    drained: Some(Duration::from_secs(20)),
};

type Reloading = JoinHandle<(Result<ReloadReport, ClientError>, usize)>;

fn begin_reload(path: &Path, waits: Waits) -> Reloading {
    let path = path.to_owned();
    tokio::spawn(async move {
        let mut events = 0;
        let result = reload(&path, waits, |_| events += 1).await;
        (result, events)
    })
}

#[tokio::test]
async fn a_reload_is_followed_to_the_parents_end() {
    let mut world = World::new();
    let reloading = begin_reload(&world.path, WAITS);
    let Incoming { request, reply, .. } = world.next().await;
    assert_eq!(request, Request::Reload);
    for event in [phase("starting"), reloaded(confirmed()), drained()] {
        reply.send(&event);
    }
    let (report, events) = reloading.await.unwrap();
    let report = report.unwrap();
    assert_eq!((report.reload, report.outcome), (7, confirmed()));
    assert_eq!(report.drained.unwrap().connections.moved, 3);
    assert_eq!(events, 3);
}

#[tokio::test]
async fn the_successor_is_asked_when_the_answering_process_goes() {
    let mut world = World::new();
    let reloading = begin_reload(&world.path, WAITS);
    let reply = world.next().await.reply;
    reply.send(&phase("booting"));
    drop(reply);
    // The outcome from the second process, the parent's end from the third.
    let incoming = world.next().await;
    assert_eq!(incoming.request, Request::Outcome { reload: 7 });
    incoming.reply.send(&reloaded(confirmed()));
    drop(incoming);
    let incoming = world.next().await;
    assert_eq!(incoming.request, Request::Outcome { reload: 7 });
    incoming.reply.send(&reloaded(confirmed()));
    incoming.reply.send(&drained());
    let (report, _) = reloading.await.unwrap();
    assert!(report.unwrap().drained.is_some());
}

#[tokio::test]
async fn a_reload_is_asked_for_once_and_its_end_is_told_honestly() {
    let mut world = World::new();

    let reloading = begin_reload(&world.path, WAITS);
    let reason = "reload 7: child 22 is booting, 3.2 s".to_owned();
    world.next().await.reply.send(&Event::Refused { reason });
    let error = reloading.await.unwrap().0.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }));
    assert_eq!(error.to_string(), "reload 7: child 22 is booting, 3.2 s");

    // It goes before it said anything: perhaps it has begun, so it is not asked again.
    let reloading = begin_reload(&world.path, WAITS);
    drop(world.next().await);
    let error = reloading.await.unwrap().0.unwrap_err();
    assert!(matches!(error, ClientError::Gone));

    // Somebody else has taken the place meanwhile.
    let reloading = begin_reload(&world.path, WAITS);
    world.next().await.reply.send(&phase("booting"));
    let reason = "no reload 7 is known here".to_owned();
    world.next().await.reply.send(&Event::Refused { reason });
    let error = reloading.await.unwrap().0.unwrap_err();
    assert!(matches!(error, ClientError::Forgotten { reload: 7, .. }));

    // A frozen server.
    let waits = Waits {
        outcome: Duration::from_millis(50),
        drained: None,
    };
    let reloading = begin_reload(&world.path, waits);
    let silent = world.next().await;
    let error = reloading.await.unwrap().0.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the reload's outcome did not come within 50ms"
    );
    drop(silent);

    // All of them are gone.
    let reloading = begin_reload(&world.path, WAITS);
    let incoming = world.next().await;
    incoming.reply.send(&phase("booting"));
    assert!(world.server.flush(Duration::from_secs(5)).await);
    std::fs::remove_file(&world.path).unwrap();
    drop(incoming);
    let error = reloading.await.unwrap().0.unwrap_err();
    assert!(matches!(error, ClientError::Gone));
}

#[tokio::test]
async fn the_status_is_asked_again_when_the_answering_process_goes() {
    let mut world = World::new();
    let path = world.path.clone();
    let asking = tokio::spawn(async move { status(&path, Duration::from_secs(20)).await });
    drop(world.next().await);
    let incoming = world.next().await;
    assert_eq!(incoming.request, Request::Status);
    let reason = "not you".to_owned();
    incoming.reply.send(&Event::Refused { reason });
    let error = asking.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }));
}

#[tokio::test]
async fn the_parents_end_is_waited_for_only_so_long() {
    let mut world = World::new();
    let waits = Waits {
        outcome: Duration::from_secs(20),
        drained: Some(Duration::from_millis(50)),
    };
    let reloading = begin_reload(&world.path, waits);
    let incoming = world.next().await;
    incoming.reply.send(&reloaded(confirmed()));
    let report = reloading.await.unwrap().0.unwrap();
    assert_eq!(report.drained, None);
    drop(incoming);
}

#[tokio::test]
async fn nobody_there_is_told_from_nobody_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.sock");
    let error = Client::connect(&path).await.unwrap_err();
    assert!(matches!(error, ConnectError::Missing { .. }));
    drop(bind(&path).unwrap());
    let error = Client::connect(&path).await.unwrap_err();
    assert!(matches!(error, ConnectError::Stale { .. }));
    assert!(error.is_not_running());
}

#[tokio::test]
async fn a_later_versions_words_are_skipped_and_nonsense_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path).await.unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server
        .write_all(
            b"{\"event\":\"eclipse\",\"moon\":1}\n\
              {\"event\":\"stopping\",\"generation\":1,\"pid\":11,\"mood\":\"calm\"}\n\
              {\"event\":\"stopping\"}\n{\"event\":\"st",
        )
        .unwrap();
    drop(server);
    let event = client.next_event().await.unwrap().unwrap();
    assert_eq!(event, Event::Stopping { process: PARENT });
    let error = client.next_event().await.unwrap_err();
    assert!(error.to_string().contains(r#"`{"event":"stopping"}`"#));
    assert_eq!(client.next_event().await.unwrap(), None);
}

#[tokio::test]
async fn an_endless_answer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut client = Client::connect(&path).await.unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let writing = std::thread::spawn(move || server.write_all(&vec![b'x'; 8 << 20]));
    let error = client.next_event().await.unwrap_err();
    assert!(matches!(error, ClientError::TooLong));
    drop(client);
    assert!(writing.join().unwrap().is_err());
}
