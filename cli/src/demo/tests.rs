use http_body_util::{Empty, Full, StreamBody};

use super::*;

impl Upload for Empty<Bytes> {}

impl Upload for Full<Bytes> {}

impl<S> Upload for StreamBody<S> where Self: Body<Data = Bytes> + Send + 'static {}

fn demo() -> Demo {
    Demo::new(4, Arc::new(Counter::new("requests")), None)
}

struct Answer {
    status: u16,
    allow: Option<String>,
    text: String,
}

async fn ask<B>(demo: &Demo, method: Method, uri: &str, body: B) -> Answer
where
    B: Upload,
    B::Error: std::fmt::Display,
{
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(body)
        .unwrap();
    let response = demo.clone().answer(request).await;
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    assert_eq!(header("x-generation").unwrap(), "4");
    assert_eq!(header("x-pid").unwrap(), std::process::id().to_string());
    Answer {
        status: response.status().as_u16(),
        allow: header("allow"),
        text: {
            let body = response.into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(body.to_vec()).unwrap()
        },
    }
}

async fn get(demo: &Demo, uri: &str) -> Answer {
    ask(demo, Method::GET, uri, Empty::new()).await
}

#[tokio::test]
async fn hello_greets_as_the_seed_does() {
    let demo = demo();
    let answer = get(&demo, "/hello").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text, format!("hello world {GREETING}\n"));
}

#[tokio::test]
async fn complete_answers_are_counted_and_nothing_else() {
    let demo = demo();
    for uri in ["/hello", "/slow?ms=1", "/stream?chunks=1&ms=0"] {
        assert_eq!(get(&demo, uri).await.status, 200);
    }
    ask(&demo, Method::POST, "/upload", Full::from("x")).await;
    assert_eq!(demo.shared.hits.get(), 4);
    for uri in ["/healthz", "/status", "/nowhere", "/slow?ms=x"] {
        get(&demo, uri).await;
    }
    ask(&demo, Method::POST, "/hello", Full::from("x")).await;
    // A stream that is cut.
    let request = Request::new(Empty::<Bytes>::new()).map(|body| body);
    let (mut parts, body) = request.into_parts();
    parts.uri = "/stream?chunks=3&ms=0".parse().unwrap();
    let mut cut = demo
        .clone()
        .answer(Request::from_parts(parts, body))
        .await
        .into_body();
    cut.frame().await.unwrap().unwrap();
    drop(cut);
    assert_eq!(demo.shared.hits.get(), 4);
    let status: serde_json::Value =
        serde_json::from_str(&get(&demo, "/status").await.text).unwrap();
    assert_eq!(status["requests"], 4);
    assert_eq!(status["generation"], 4);
    assert_eq!(status["greeting"], GREETING);
}

#[tokio::test(start_paused = true)]
async fn slow_and_stream_take_their_time() {
    let demo = demo();
    let began = tokio::time::Instant::now();
    assert_eq!(get(&demo, "/slow?ms=2500").await.text, "slow 2500\n");
    assert_eq!(began.elapsed().as_millis(), 2500);
    let began = tokio::time::Instant::now();
    let answer = get(&demo, "/stream?chunks=3&ms=200").await;
    assert_eq!(answer.text, "chunk 1\nchunk 2\nchunk 3\nend\n");
    assert!((600..610).contains(&began.elapsed().as_millis()));
    assert_eq!(get(&demo, "/stream?chunks=0").await.text, "end\n");
}

#[tokio::test]
async fn an_upload_is_read_to_its_end() {
    let demo = demo();
    let body = vec![b'x'; 1 << 20];
    let crc32 = crc32fast::hash(&body);
    let frames = body
        .chunks(1000)
        .map(|chunk| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::copy_from_slice(chunk))))
        .collect::<Vec<_>>();
    let answer = ask(&demo, Method::POST, "/upload", frames_of(frames)).await;
    assert_eq!(
        answer.text,
        format!("{{\"bytes\":1048576,\"crc32\":\"{crc32:08x}\"}}\n")
    );
    let broken = vec![Err(std::io::Error::other("reset"))];
    let answer = ask(&demo, Method::POST, "/upload", frames_of(broken)).await;
    assert_eq!(answer.status, 400);
    assert_eq!(demo.shared.hits.get(), 1);
}

type FrameResult = Result<http_body::Frame<Bytes>, std::io::Error>;

fn frames_of(frames: Vec<FrameResult>) -> impl Upload<Error = std::io::Error> {
    StreamBody::new(futures_util::stream::iter(frames))
}

#[tokio::test]
async fn what_is_wrong_is_said_with_a_remedy() {
    let demo = demo();
    let answer = ask(&demo, Method::DELETE, "/hello", Empty::new()).await;
    assert_eq!(
        (answer.status, answer.allow.as_deref()),
        (405, Some("GET, HEAD"))
    );
    let answer = get(&demo, "/upload").await;
    assert_eq!(
        (answer.status, answer.allow.as_deref()),
        (405, Some("POST"))
    );
    let answer = get(&demo, "/").await;
    assert_eq!(answer.status, 404);
    assert!(answer.text.contains("try /hello"));
    for uri in ["/slow?ms=x", "/slow?ms=60001", "/stream?chunks=-1"] {
        let answer = get(&demo, uri).await;
        assert_eq!(answer.status, 400);
        assert!(
            answer.text.contains("is a number from 0 to"),
            "{}",
            answer.text
        );
    }
}

fn handshake(key: &str) -> Request<Empty<Bytes>> {
    Request::builder()
        .uri("/ws")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", key)
        .body(Empty::new())
        .unwrap()
}

#[tokio::test]
async fn a_websocket_is_checked_and_its_handshake_is_not_counted() {
    let demo = demo();
    let answer = demo
        .clone()
        .answer(handshake("dGhlIHNhbXBsZSBub25jZQ=="))
        .await;
    assert_eq!(answer.status(), 101);
    assert_eq!(
        answer.headers()["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    assert_eq!(demo.clone().answer(handshake("x")).await.status(), 400);
    let answer = get(&demo, "/ws").await;
    assert_eq!(answer.status, 426);
    assert!(
        answer.text.contains("`Upgrade: websocket`"),
        "{}",
        answer.text
    );
    assert_eq!(demo.shared.hits.get(), 0);
}

#[test]
fn messages_are_numbered_and_sessions_are_read() {
    let numbered = Numbered {
        generation: 4,
        hits: Arc::new(Counter::new("requests")),
    };
    let text = |text: &str| ws::Message::Text(text.to_owned());
    assert_eq!(numbered.answer(7, text("a b")), text("7 4 a b"));
    let binary = |bytes: &'static [u8]| ws::Message::Binary(Bytes::from_static(bytes));
    assert_eq!(numbered.answer(1, binary(b"\xff")), binary(b"1 4 \xff"));
    assert_eq!(websocket::read(7_u64.to_le_bytes().to_vec()).unwrap(), 7);
    for garbage in [vec![], vec![1; 7], vec![1; 9]] {
        assert!(websocket::read(garbage).is_err());
    }
}

/// `count` chunks of an event stream.
async fn events(body: &mut DemoBody, count: usize) -> String {
    let mut text = String::new();
    for _ in 0..count {
        let frame = body.frame().await.unwrap().unwrap();
        text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
    }
    text
}

#[tokio::test(start_paused = true)]
async fn events_come_at_a_pace_and_go_on_after_the_last_one_seen() {
    let demo = demo();
    for (last, text) in [
        (None, "id: 1\ndata: 4\n\nid: 2\ndata: 4\n\n"),
        (Some("41"), "id: 42\ndata: 4\n\nid: 43\ndata: 4\n\n"),
        (Some("x"), "id: 1\ndata: 4\n\nid: 2\ndata: 4\n\n"),
    ] {
        let mut request = Request::builder().uri("/events?ms=300");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let began = tokio::time::Instant::now();
        let mut body = demo.clone().answer(request).await.into_body();
        assert_eq!(events(&mut body, 3).await, format!("retry: 100\n\n{text}"));
        assert!((300..310).contains(&began.elapsed().as_millis()));
    }
    assert_eq!(get(&demo, "/events?ms=60001").await.status, 400);
    assert_eq!(demo.shared.hits.get(), 0);
}

#[tokio::test]
async fn events_end_when_the_process_drains() {
    let (drain, drains) = tokio::sync::oneshot::channel::<()>();
    let draining = async move { drains.await.unwrap_or(()) };
    let mut body = DemoBody::events(1, 4, Duration::from_secs(60), draining);
    assert_eq!(
        events(&mut body, 2).await,
        "retry: 100\n\nid: 1\ndata: 4\n\n"
    );
    assert!(!body.is_end_stream());
    drop(drain);
    assert!(body.frame().await.is_none());
    assert!(body.is_end_stream());
}
