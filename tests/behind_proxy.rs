//! Behind a proxy that keeps its connections to `hello`: a hundred reloads under load, and neither the proxy's clients nor
//! the proxy notice any. It never has to connect anew, so that there is nothing for it to answer 502 to.
//!
//! The proxies are Debian's. Where one is missing its test says so, and passes, unless `REQUIRE_PROXIES` is set.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{Hello, eventually, load::Load};

const RELOADS: u64 = 100;

/// As many as [`Load`] has clients: a proxy never needs more at once.
const CONNECTIONS: usize = 3;

/// A proxy in front of a server. It inherits its listener, so that its port is known and nobody else's.
struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A SIGKILL would leave nginx's worker behind.
        let pid = i32::try_from(self.process.id()).expect("a pid");
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

impl Proxy {
    /// `configure` writes the configuration, and says how to start it.
    fn start(program: &str, configure: impl FnOnce(SocketAddr) -> Command) -> Option<Self> {
        if !Path::new(program).exists() {
            assert!(
                std::env::var_os("REQUIRE_PROXIES").is_none(),
                "{program} is not installed"
            );
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let process = configure(address)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .expect("start the proxy");
        Some(Self { process, address })
    }
}

fn nginx(dir: &Path, server: SocketAddr) -> Option<Proxy> {
    const PROGRAM: &str = "/usr/sbin/nginx";
    Proxy::start(PROGRAM, |address| {
        // Another could not write into the directory.
        let user = if nix::unistd::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let configuration = format!(
            "daemon off;
            {user}
            worker_processes 1;
            pid nginx.pid;
            error_log nginx.log;
            events {{}}
            http {{
                access_log off;
                client_body_temp_path body;
                proxy_temp_path proxy;
                fastcgi_temp_path fastcgi;
                uwsgi_temp_path uwsgi;
                scgi_temp_path scgi;
                keepalive_requests 100000000;
                upstream hello {{
                    server {server} max_fails=0;
                    keepalive 16;
                    keepalive_requests 100000000;
                    keepalive_timeout 1h;
                }}
                server {{
                    listen {address};
                    location / {{
                        proxy_pass http://hello;
                        proxy_http_version 1.1;
                        proxy_set_header Connection '';
                        proxy_next_upstream off;
                    }}
                }}
            }}"
        );
        fs::write(dir.join("nginx.conf"), configuration).expect("write");
        let mut command = Command::new(PROGRAM);
        command
            .args(["-e", "nginx.log", "-c", "nginx.conf", "-p"])
            .arg(dir)
            // Descriptors that it has already, by number: here its stdin.
            .env("NGINX", "0;");
        command
    })
}

fn haproxy(dir: &Path, server: SocketAddr) -> Option<Proxy> {
    const PROGRAM: &str = "/usr/sbin/haproxy";
    Proxy::start(PROGRAM, |_| {
        let configuration = format!(
            "global
                nbthread 1
            defaults
                mode http
                retries 0
                timeout connect 30s
                timeout client 1h
                timeout server 1h
                http-reuse always
            frontend front
                bind fd@0
                default_backend hello
            backend hello
                server hello {server} pool-purge-delay 1h
            "
        );
        // It wants its lines to end.
        let lines: Vec<&str> = configuration.lines().map(str::trim).collect();
        fs::write(dir.join("haproxy.cfg"), lines.join("\n") + "\n").expect("write");
        let mut command = Command::new(PROGRAM);
        command.arg("-db").arg("-f").arg(dir.join("haproxy.cfg"));
        command
    })
}

/// The ports of clients that are connected to `server`: proc(5).
fn clients_of(server: SocketAddr) -> BTreeSet<u16> {
    const ESTABLISHED: &str = "01";
    let port = |address: &str| {
        let port = address.rsplit(':').next().expect("a port");
        u16::from_str_radix(port, 16).expect("a number")
    };
    let sockets = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let ends = sockets.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (port(words.next()?), port(words.next()?));
        (words.next() == Some(ESTABLISHED)).then_some((local, remote))
    });
    ends.filter(|(_, remote)| *remote == server.port())
        .map(|(local, _)| local)
        .collect()
}

fn notices_nothing(start: impl FnOnce(&Path, SocketAddr) -> Option<Proxy>) {
    let hello = Hello::start();
    let Some(proxy) = start(hello.dir(), hello.address()) else {
        return;
    };
    let load = Load::calm(proxy.address);
    let mut connected = clients_of(hello.address());
    for generation in 2..=RELOADS + 1 {
        hello.reload();
        load.goes_on();
        assert_eq!(hello.generation(), generation);
        connected.extend(clients_of(hello.address()));
    }
    let answered = load.finish();
    assert_eq!(hello.requests(), answered, "the counter is exact");
    assert!(!connected.is_empty(), "nothing was seen");
    assert!(
        connected.len() <= CONNECTIONS,
        "the proxy has connected anew: {connected:?}"
    );
    drop(proxy);
    eventually("the proxy's connections end", || {
        clients_of(hello.address()).is_empty()
    });
}

#[test]
fn nginx_notices_nothing() {
    notices_nothing(nginx);
}

#[test]
fn haproxy_notices_nothing() {
    notices_nothing(haproxy);
}
