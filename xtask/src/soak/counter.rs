//! The server's own count of its requests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 1 << 20;

/// `requests` of `GET /status`: all requests to `/hello`, `/slow`, `/stream` and `/upload` that
/// any generation has answered. Asking does not count.
pub(crate) async fn requests(server: SocketAddr) -> Result<u64> {
    let asked = match tokio::time::timeout(TIMEOUT, ask(server)).await {
        Ok(asked) => asked,
        Err(elapsed) => Err(elapsed.into()),
    };
    asked.context("failed to read the server's counter at /status")
}

async fn ask(server: SocketAddr) -> Result<u64> {
    let socket = TcpStream::connect(server).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(socket)).await?;
    let driver = tokio::spawn(driver);
    let request = Request::get("/status")
        .header(HOST, "soak.test")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    ensure!(
        answer.status() == StatusCode::OK,
        "status {}",
        answer.status()
    );
    let body = Limited::new(answer.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(anyhow::Error::from_boxed)?;
    drop(sender);
    driver.await??;
    let status: Value = serde_json::from_slice(&body.to_bytes())?;
    status["requests"]
        .as_u64()
        .with_context(|| format!("no `requests` in {status}"))
}
