//! What hyper leaves to the server: requests that RFC 9112 has answered by 400, whatever the service would say.

use http::{HeaderMap, Method, Request, Uri, Version, header};

/// Why a request is none; `None` if it is one.
pub(crate) fn reason<B>(request: &Request<B>) -> Option<&'static str> {
    target(request.method(), request.uri()).or_else(|| host(request.version(), request.headers()))
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
    // RFC 3986, 3.2.2: `uri-host [ ":" port ]`; empty if the target has no authority.
    let is_of_a_host =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    (!host.as_bytes().iter().all(is_of_a_host)).then_some("a Host that is none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_of(method: &str, target: &str, hosts: &[&str]) -> Option<&'static str> {
        let mut request = Request::builder().method(method).uri(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        reason(&request.body(()).expect("a request"))
    }

    #[test]
    fn a_request_is_one() {
        for host in ["a", "", "a.example:80", "[::1]:80", "127.0.0.1", "a%20b"] {
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
        for host in ["a b", "user@a", "a/b", "a#b", "ä"] {
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
            reason(&request.body(()).expect("a request"))
        };
        assert_eq!(request(0), None);
        assert_eq!(request(1), None);
        assert!(request(2).is_some());
    }
}
