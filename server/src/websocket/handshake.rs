//! The opening handshake (RFC 6455, section 4.2).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::upgrade::Upgrade;

/// Why a request does not begin a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotWebSocket {
    status: StatusCode,
    reason: &'static str,
}

impl NotWebSocket {
    fn bad(reason: &'static str) -> Self {
        let status = StatusCode::BAD_REQUEST;
        Self { status, reason }
    }

    fn upgrade_required(reason: &'static str) -> Self {
        let status = StatusCode::UPGRADE_REQUIRED;
        Self { status, reason }
    }

    /// The answer that says so: 400, or 426 with what is wanted instead. The body is the reason.
    #[must_use]
    pub fn response<B: From<String>>(&self) -> Response<B> {
        let mut response = Response::new(B::from(format!("{self}\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, plain);
        if self.status == StatusCode::UPGRADE_REQUIRED {
            insert(headers, header::UPGRADE, "websocket");
            insert(headers, header::CONNECTION, "upgrade");
            insert(headers, header::SEC_WEBSOCKET_VERSION, "13");
        }
        response
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}

/// Begins a session on the request's connection: gives the answer, 101, that must be returned.
///
/// # Errors
/// [`NotWebSocket`], whose [response](NotWebSocket::response) then is the answer.
pub fn accept<B, R: Default>(
    upgrade: &Upgrade,
    request: &mut Request<B>,
) -> Result<Response<R>, NotWebSocket> {
    let response = answer(request)?;
    upgrade
        .begin(request)
        .map_err(|_| NotWebSocket::bad("a session was begun on this request before"))?;
    Ok(response)
}

/// Checks whether a request begins a WebSocket: the answer, 101, that says so. Extensions and subprotocols are not
/// negotiated; a subprotocol is the application's to add (`Sec-WebSocket-Protocol`).
///
/// # Errors
/// [`NotWebSocket`].
pub fn answer<B, R: Default>(request: &Request<B>) -> Result<Response<R>, NotWebSocket> {
    let headers = request.headers();
    if request.method() != Method::GET || request.version() < Version::HTTP_11 {
        return Err(NotWebSocket::bad(
            "a WebSocket begins with GET and HTTP/1.1",
        ));
    }
    if !has_token(headers, header::UPGRADE, "websocket") {
        return Err(NotWebSocket::upgrade_required(
            "this is a WebSocket: the request needs `Upgrade: websocket`",
        ));
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(NotWebSocket::bad("the request needs `Connection: upgrade`"));
    }
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version.as_bytes() != b"13") {
        return Err(NotWebSocket::upgrade_required(
            "the request needs `Sec-WebSocket-Version: 13`",
        ));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.map(HeaderValue::as_bytes).filter(|key| is_key(key));
    let key = key.ok_or_else(|| {
        NotWebSocket::bad("the request needs `Sec-WebSocket-Key`: 16 bytes in base64")
    })?;
    let accept = HeaderValue::try_from(derive_accept_key(key))
        .map_err(|_| NotWebSocket::bad("`Sec-WebSocket-Key` cannot be answered"))?;
    let mut response = Response::new(R::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    insert(headers, header::UPGRADE, "websocket");
    insert(headers, header::CONNECTION, "upgrade");
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// 16 bytes in base64: 22 digits and their padding.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.split_last_chunk::<2>()
        .is_some_and(|(digits, end)| end == b"==" && digits.len() == 22 && digits.iter().all(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .header("upgrade", "h2c, WebSocket")
            .header("connection", "keep-alive, Upgrade")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        change(&mut request);
        request
    }

    fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Request<()>) {
        move |request| {
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
    }

    fn refused(change: impl FnOnce(&mut Request<()>)) -> Response<String> {
        answer::<_, ()>(&request(change)).unwrap_err().response()
    }

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn the_answer_is_that_of_the_rfc() {
        let response = answer::<_, ()>(&request(|_| {})).unwrap();
        assert_eq!(response.status(), 101);
        let accept = &response.headers()["sec-websocket-accept"];
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["upgrade"], "websocket");
        assert_eq!(response.headers()["connection"], "upgrade");
    }

    #[test]
    fn what_is_not_a_handshake_is_refused_with_a_reason() {
        for key in [
            "",
            "dGhl",
            "dGhlIHNhbXBsZSBub25jZQ=A",
            "dGhlIHNhbXBsZSBub25j!Q==",
        ] {
            let response = refused(set("sec-websocket-key", key));
            assert_eq!(response.status(), 400, "{key}");
            assert!(response.body().contains("Sec-WebSocket-Key"));
        }
        assert_eq!(refused(set("connection", "close")).status(), 400);
        assert_eq!(
            refused(|request| *request.method_mut() = Method::POST).status(),
            400
        );
        for change in [("upgrade", "h2c"), ("sec-websocket-version", "8")] {
            let response = refused(set(change.0, change.1));
            assert_eq!(response.status(), 426);
            assert_eq!(response.headers()["sec-websocket-version"], "13");
            assert_eq!(response.headers()["upgrade"], "websocket");
        }
    }
}
