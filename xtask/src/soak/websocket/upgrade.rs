//! From HTTP/1.1 to WebSocket: RFC 6455, section 4.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::outcome::Outcome;

/// The answer's head is shorter.
const MAX_HEAD: usize = 8 * 1024;

/// The key of section 1.3, and what a server makes of it. A key of its own for each session
/// guards against caches, of which there are none here.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Asks for a session. Returns what came behind the answer's head.
///
/// # Errors
///
/// How it failed, and why in words. The caller bounds it in time.
pub(super) async fn upgrade<L>(line: &mut L) -> Result<Vec<u8>, (Outcome, String)>
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: soak.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    let broken = |err: std::io::Error| (Outcome::Reset, format!("upgrade: {err}"));
    line.write_all(request.as_bytes()).await.map_err(broken)?;
    line.flush().await.map_err(broken)?;
    let mut received = Vec::new();
    loop {
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = received.split_off(end + 4);
            check(&String::from_utf8_lossy(&received))?;
            return Ok(rest);
        }
        if received.len() > MAX_HEAD {
            let detail = format!("upgrade: a head of more than {MAX_HEAD} bytes");
            return Err((Outcome::Protocol, detail));
        }
        if line.read_buf(&mut received).await.map_err(broken)? == 0 {
            let outcome = if received.is_empty() {
                Outcome::Eof
            } else {
                Outcome::Truncated
            };
            return Err((outcome, "upgrade: the server closed it".into()));
        }
    }
}

fn check(head: &str) -> Result<(), (Outcome, String)> {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status: Option<u16> = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    match status {
        Some(101) => {}
        Some(500..=599) => return Err((Outcome::ServerError, format!("upgrade: {first}"))),
        Some(_) => return Err((Outcome::OtherStatus, format!("upgrade: {first}"))),
        None => return Err((Outcome::Protocol, format!("upgrade: {first:?}"))),
    }
    let headers: Vec<(&str, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.trim()))
        .collect();
    let says = |name: &str, wanted: &dyn Fn(&str) -> bool| {
        headers
            .iter()
            .any(|(found, value)| found.eq_ignore_ascii_case(name) && wanted(value))
    };
    let right = says("upgrade", &|value| value.eq_ignore_ascii_case("websocket"))
        && says("connection", &|value| {
            value
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        })
        && says("sec-websocket-accept", &|value| value == ACCEPT);
    if right {
        Ok(())
    } else {
        Err((
            Outcome::Protocol,
            format!("upgrade: not a WebSocket server: {head:?}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    async fn against(answer: &str) -> Result<Vec<u8>, Outcome> {
        let (mut near, mut server) = tokio::io::duplex(16 * 1024);
        server.write_all(answer.as_bytes()).await.unwrap();
        server.shutdown().await.unwrap();
        upgrade(&mut near).await.map_err(|(outcome, _)| outcome)
    }

    #[tokio::test]
    async fn a_right_answer_and_what_comes_with_it() {
        assert_eq!(against(RIGHT).await, Ok(vec![]));
        assert_eq!(against(&format!("{RIGHT}\u{1}")).await, Ok(vec![1]));
    }

    #[tokio::test]
    async fn wrong_answers_have_names() {
        let cases = [
            (RIGHT.replace("s3p", "s3q"), Outcome::Protocol),
            (
                RIGHT.replace("WebSocket\r\nSec", "h2c\r\nSec"),
                Outcome::Protocol,
            ),
            (RIGHT.replace("101", "404"), Outcome::OtherStatus),
            (RIGHT.replace("101", "503"), Outcome::ServerError),
            ("SSH-2.0\r\n\r\n".into(), Outcome::Protocol),
            (String::new(), Outcome::Eof),
            ("HTTP/1.1 101".into(), Outcome::Truncated),
            ("x".repeat(MAX_HEAD + 1), Outcome::Protocol),
        ];
        for (answer, expected) in cases {
            assert_eq!(against(&answer).await, Err(expected), "{answer:.40}");
        }
    }
}
