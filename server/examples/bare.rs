//! hyper in a loop, and nothing else: what `server` is measured against (`cargo xtask bench throughput`). It answers every
//! request as the demo answers `/hello`, and cannot be replaced.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8321".to_owned());
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service =
                service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(answer()) });
            // A client that breaks off is no failure of ours.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(b"hello world eee\n")));
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("x-generation", "1"),
        ("x-pid", "12345"),
    ] {
        let value = http::HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}
