//! One request: each way in which it can end.

use super::super::client::Exchange;
use super::super::timeline::Build;
use super::*;

#[tokio::test]
async fn a_right_answer_is_ok_and_the_connection_is_kept() {
    let world = World::against(&[&[
        Do::Read,
        Do::Write(HELLO),
        Do::Read,
        Do::Write(HELLO),
        Do::Hang,
    ]])
    .await;
    let (verdict, connection) = world.ask(Kind::KeepAlive).await;
    assert_eq!(
        (verdict.outcome, verdict.generation, verdict.pid),
        (Outcome::Ok, Some(1), Some(42))
    );
    let mut connection = connection.unwrap();
    let Exchange::Done(again) = world
        .client
        .exchange(&mut connection, Ask::plain(Kind::KeepAlive))
        .await
    else {
        panic!("it was open");
    };
    assert_eq!((again.outcome, again.port), (Outcome::Ok, verdict.port));
    drop(connection);
    world.closed(0).await;
}

#[tokio::test]
async fn nobody_listens() {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let world = World::new(address, Duration::ZERO);
    assert_eq!(
        world
            .client
            .connect(Kind::NewConnection)
            .await
            .unwrap_err()
            .outcome,
        Outcome::Refused
    );
}

#[tokio::test]
async fn broken_connections() {
    assert_eq!(outcome(Kind::KeepAlive, &[&[Do::Read]]).await, Outcome::Eof);
    assert_eq!(
        outcome(Kind::KeepAlive, &[&[Do::Read, Do::Reset]]).await,
        Outcome::Reset
    );
    let head = "HTTP/1.1 200 OK\r\nx-gen";
    assert_eq!(
        outcome(Kind::KeepAlive, &[&[Do::Read, Do::Write(head)]]).await,
        Outcome::Truncated
    );
    let body = "HTTP/1.1 200 OK\r\nx-generation: 1\r\ncontent-length: 16\r\n\r\nhello wor";
    assert_eq!(
        outcome(Kind::KeepAlive, &[&[Do::Read, Do::Write(body)]]).await,
        Outcome::Truncated
    );
    assert_eq!(
        outcome(Kind::KeepAlive, &[&[Do::Read, Do::Write(body), Do::Reset]]).await,
        Outcome::Reset
    );
    assert_eq!(
        outcome(Kind::KeepAlive, &[&[Do::Read, Do::Write(body), Do::Hang]]).await,
        Outcome::Timeout
    );
    assert_eq!(
        outcome(Kind::KeepAlive, &[&[Do::Read, Do::Hang]]).await,
        Outcome::Timeout
    );
    assert_eq!(
        outcome(
            Kind::KeepAlive,
            &[&[Do::Read, Do::Write("SMTP ready\r\n\r\n"), Do::Hang]]
        )
        .await,
        Outcome::Protocol
    );
    // Closed before the request was read: unread bytes make it an RST.
    assert_eq!(
        outcome(Kind::Upload, &[&[Do::Wait(Duration::from_millis(5))]]).await,
        Outcome::Reset
    );
}

#[tokio::test]
async fn a_stream_cut_between_two_chunks() {
    let stream = "HTTP/1.1 200 OK\r\nx-generation: 1\r\ntransfer-encoding: chunked\r\n\r\n8\r\nchunk 0\n\r\n";
    assert_eq!(
        outcome(Kind::Stream, &[&[Do::Read, Do::Write(stream)]]).await,
        Outcome::Truncated
    );
    let until_close = "HTTP/1.1 200 OK\r\nx-generation: 1\r\nconnection: close\r\n\r\nchunk 0\n";
    assert_eq!(
        outcome(Kind::Stream, &[&[Do::Read, Do::Write(until_close)]]).await,
        Outcome::Truncated
    );
    let ended = "HTTP/1.1 200 OK\r\nx-generation: 1\r\ntransfer-encoding: chunked\r\n\r\n8\r\nchunk 0\n\r\n0\r\n\r\n";
    assert_eq!(
        outcome(Kind::Stream, &[&[Do::Read, Do::Write(ended), Do::Hang]]).await,
        Outcome::WrongBody
    );
}

#[tokio::test]
async fn complete_answers_that_are_wrong() {
    let cases: [(&[&[Do]], Outcome); 5] = [
        (
            &[&[
                Do::Read,
                Do::Write("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"),
                Do::Hang,
            ]],
            Outcome::ServerError,
        ),
        (
            &[&[
                Do::Read,
                Do::Write("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n"),
                Do::Hang,
            ]],
            Outcome::OtherStatus,
        ),
        (
            &[&[
                Do::Read,
                Do::Write("HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\nhello world eee\n"),
                Do::Hang,
            ]],
            Outcome::WrongBody,
        ),
        (
            &[&[
                Do::Read,
                Do::Write(
                    "HTTP/1.1 200 OK\r\nx-generation: 1\r\ncontent-length: 16\r\n\r\nhello world fff\n",
                ),
                Do::Hang,
            ]],
            Outcome::WrongBody,
        ),
        (
            &[&[
                Do::Read,
                Do::Write("HTTP/1.1 200 OK\r\nx-generation: 1\r\ncontent-length: 2\r\n\r\nhi"),
                Do::Hang,
            ]],
            Outcome::WrongBody,
        ),
    ];
    for (scripts, expected) in cases {
        let (verdict, _) = World::against(scripts).await.ask(Kind::KeepAlive).await;
        assert_eq!(verdict.outcome, expected, "{verdict:?}");
        assert!(verdict.answered, "the server has counted it");
    }
}

#[tokio::test]
async fn the_old_generation_may_answer_old_connections_only() {
    let script: &[&[Do]] = &[&[
        Do::Read,
        Do::Write(HELLO),
        Do::Read,
        Do::Write(HELLO),
        Do::Hang,
    ]];
    let world = World::against(script).await;
    let (_, connection) = world.ask(Kind::KeepAlive).await;
    world.client.timeline.begin_reload(1, Build::B);
    let (verdict, _) = world.ask(Kind::KeepAlive).await;
    assert_eq!(verdict.outcome, Outcome::Ok, "not yet reported");
    world.client.timeline.commit(2);
    let (verdict, _) = world.ask(Kind::KeepAlive).await;
    assert_eq!(verdict.outcome, Outcome::OldGeneration);
    let Exchange::Done(verdict) = world
        .client
        .exchange(&mut connection.unwrap(), Ask::plain(Kind::KeepAlive))
        .await
    else {
        panic!("it was open");
    };
    assert_eq!(verdict.outcome, Outcome::Ok, "opened before the commit");
}
