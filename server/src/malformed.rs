//! What hyper leaves to the server: requests that RFC 9112 has refused, whatever the service would say.
//!
//! # Contract
//!
//! - Section 3.2: 400 to a target whose form does not go with its method, to an HTTP/1.1 request without `Host`, and to any with two
//!   or an invalid one. hyper leaves that to services, and services to each other.
//! - Section 6.1: 501 to a transfer coding that is not understood. hyper accepts any list of codings that ends in `chunked`, and undoes
//!   only that one: the service would take the other's bytes for the body. `chunked` twice, which no sender may send, is the usual
//!   disguise in request smuggling.
//!
//! Such a request ends its connection: where the next one begins is what its sender and we may not agree on.

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};

/// Why a request is not served, and the status that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
}

/// `None` if it can be served.
pub(crate) fn refusal<B>(request: &Request<B>) -> Option<Refusal> {
    let headers = request.headers();
    let bad = |reason| Refusal {
        status: StatusCode::BAD_REQUEST,
        reason,
    };
    target(request.method(), request.uri())
        .or_else(|| host(request.version(), headers))
        .map(bad)
        .or_else(|| coding(headers))
}

/// RFC 9112, 3.2: which form of the target goes with which method.
fn target(method: &Method, uri: &Uri) -> Option<&'static str> {
    let is_authority = uri.authority().is_some() && uri.scheme().is_none();
    if is_authority != (method == Method::CONNECT) {
        return Some("a target that does not go with its method");
    }
    if uri.path() == "*" && method != Method::OPTIONS {
        return Some("a target that is only for OPTIONS");
    }
    None
}

/// RFC 9112, 3.2: exactly one `Host` (none is fine with HTTP/1.0), and a valid one.
fn host(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else {
        return (version == Version::HTTP_11).then_some("no Host");
    };
    if hosts.next().is_some() {
        return Some("more than one Host");
    }
    (!is_host(host.as_bytes())).then_some("a Host that is none")
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2); empty if the target has no authority. Whether what stands in brackets is an address is left to
/// whoever uses it.
fn is_host(host: &[u8]) -> bool {
    if let [b'[', rest @ ..] = host {
        let end = rest.iter().position(|byte| *byte == b']');
        return end
            .is_some_and(|end| rest[..end].iter().all(in_literal) && is_port(&rest[end + 1..]));
    }
    let end = host.iter().position(|byte| *byte == b':');
    let (name, port) = host.split_at(end.unwrap_or(host.len()));
    name.iter().all(in_name) && is_port(port)
}

/// Nothing, or a colon and digits, which may be none (RFC 3986, 3.2.3).
fn is_port(rest: &[u8]) -> bool {
    match rest {
        [] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// Of a `reg-name` (RFC 3986, 3.2.2); the two digits after a `%` are not looked at.
fn in_name(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte)
}

/// Of an `IP-literal`.
fn in_literal(byte: &u8) -> bool {
    *byte == b':' || in_name(byte)
}

/// RFC 9112, 6.1: the one coding that can be undone here is `chunked`, once.
fn coding(headers: &HeaderMap) -> Option<Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next()?;
    let is_chunked = |value: &HeaderValue| {
        let coding = value.as_bytes().trim_ascii();
        coding.eq_ignore_ascii_case(b"chunked")
    };
    (!is_chunked(first) || codings.next().is_some()).then_some(Refusal {
        status: StatusCode::NOT_IMPLEMENTED,
        reason: "a transfer coding other than one chunked",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_of(method: &str, target: &str, hosts: &[&str]) -> Option<&'static str> {
        let mut request = Request::builder().method(method).uri(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        refusal(&request.body(()).expect("a request")).map(|refusal| refusal.reason)
    }

    #[test]
    fn a_request_is_one() {
        for host in [
            "a",
            "",
            ":",
            "a:",
            "a.example:80",
            "A-b.c_~:1",
            "[::1]",
            "[::1]:80",
            "[v1.x]:",
            "127.0.0.1",
            "a%20b",
            "a,b",
        ] {
            assert_eq!(reason_of("GET", "/a?b", &[host]), None, "{host}");
        }
        for (method, target) in [
            ("GET", "http://a/"),
            ("GET", "http://a"),
            ("OPTIONS", "*"),
            ("CONNECT", "a:443"),
        ] {
            assert_eq!(reason_of(method, target, &["a"]), None, "{method} {target}");
        }
    }

    #[test]
    fn what_is_none_is_named() {
        assert_eq!(reason_of("GET", "/", &[]), Some("no Host"));
        assert_eq!(
            reason_of("GET", "/", &["a", "a"]),
            Some("more than one Host")
        );
        for host in [
            "a b", "user@a", "a/b", "a?", "a#b", "a:b", "a:1:2", "[::1", "[::1]x", "[::1]:x",
            "[[]", "::1", "a\\b", "ä", "\"a\"",
        ] {
            assert_eq!(
                reason_of("GET", "/", &[host]),
                Some("a Host that is none"),
                "{host}"
            );
        }
        for (method, target) in [
            ("GET", "a:80"),
            ("GET", "healthz"),
            ("CONNECT", "/"),
            ("GET", "*"),
        ] {
            assert!(
                reason_of(method, target, &["a"]).is_some(),
                "{method} {target}"
            );
        }
    }

    #[test]
    fn http_1_0_needs_no_host() {
        let request = |hosts: usize| {
            let mut request = Request::builder().version(Version::HTTP_10).uri("/");
            for _ in 0..hosts {
                request = request.header("host", "a");
            }
            refusal(&request.body(()).expect("a request"))
        };
        assert_eq!(request(0), None);
        assert_eq!(request(1), None);
        assert!(request(2).is_some());
    }

    #[test]
    fn one_chunked_is_the_only_coding() {
        let with = |values: &[&str]| {
            let mut request = Request::builder().header("host", "a");
            for value in values {
                request = request.header("transfer-encoding", *value);
            }
            refusal(&request.body(()).expect("a request")).map(|refusal| refusal.status.as_u16())
        };
        for values in [&[][..], &["chunked"], &["Chunked"]] {
            assert_eq!(with(values), None, "{values:?}");
        }
        for values in [
            &["chunked", "chunked"][..],
            &["chunked, chunked"],
            &["gzip, chunked"],
            &["gzip", "chunked"],
            &["identity", "chunked"],
            &[",chunked"],
        ] {
            assert_eq!(with(values), Some(501), "{values:?}");
        }
    }
}
