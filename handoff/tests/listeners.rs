//! Listeners that the next build keeps, adds, drops, moves: nobody who connects is lost.

#[path = "../../tests/support/diag.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod diag;
mod support;

use std::{fs, io::ErrorKind, os::unix::net::UnixListener};

use handoff::listeners::Spec;
use support::{Line, Service, eventually, meanwhile};
use tokio::io::AsyncWriteExt;

/// Listens on what the configuration says, `name address [backlog]` a line, and tells every client
/// its generation and the listener's name.
#[test]
fn program() {
    let Some((dir, config)) = support::playing() else {
        return;
    };
    support::play(async {
        let mut server = support::builder(&dir);
        for line in config.lines() {
            let mut words = line.split(' ');
            let mut word = || words.next();
            let (name, address) = (word().expect("a name"), word().expect("an address"));
            let mut spec = Spec::new(name, address.parse().expect("an address"));
            if let Some(backlog) = word() {
                spec.backlog = backlog.parse().expect("a backlog");
            }
            server = server.listener(spec);
        }
        // Its reason is told by the parent.
        let Ok(starting) = server.start().await else {
            return;
        };
        let serving = starting.ready().await.expect("ready");
        let generation = serving.identity().generation;
        for name in serving.listeners() {
            let mut acceptor = serving.acceptor(&name).expect("acceptor");
            tokio::spawn(async move {
                while let Some(mut accepted) = acceptor.accept().await {
                    let words = format!("{generation} {name}\n");
                    tokio::spawn(async move {
                        let _ = accepted.stream.write_all(words.as_bytes()).await;
                        drop(accepted.guard);
                    });
                }
            });
        }
        let _ = serving.finished().await;
    });
}

const MAIN: &str = "main 127.0.0.1:0\n";

/// What the listener says to one who connects.
fn greeting(service: &Service, listener: &str) -> String {
    service.connect(listener).hear()
}

/// Connects to `main` again and again: each time it must be greeted.
fn under_traffic(service: &Service, act: impl FnOnce(&dyn Fn())) {
    let address = service.address("main");
    let visit = || {
        let line = Line::connect(&address).expect("connect").hear();
        assert!(line.ends_with(" main"), "{line:?}");
    };
    meanwhile(visit, act);
}

#[test]
fn a_listener_on_port_0_keeps_its_port() {
    let service = Service::start(MAIN);
    let address = service.address("main");
    under_traffic(&service, |goes_on| {
        for generation in 2..=6 {
            let changes = service.reload();
            assert_eq!(changes.kept, ["main"]);
            assert!(changes.added.is_empty() && changes.removed.is_empty());
            assert_eq!(service.address("main"), address);
            assert_eq!(greeting(&service, "main"), format!("{generation} main"));
            goes_on();
        }
    });
}

#[test]
fn listeners_are_added_by_the_next_build() {
    let service = Service::start(MAIN);
    under_traffic(&service, |_| {
        service.configure("main 127.0.0.1:0\nadmin 127.0.0.1:0\nlocal unix:local.sock\n");
        let changes = service.reload();
        assert_eq!(changes.kept, ["main"]);
        assert_eq!(changes.added, ["admin", "local"]);
        for name in ["main", "admin", "local"] {
            assert_eq!(greeting(&service, name), format!("2 {name}"));
        }
        // They are like the others then.
        assert_eq!(service.reload().kept, ["main", "admin", "local"]);
        assert_eq!(greeting(&service, "local"), "3 local");
    });
}

#[test]
fn a_removed_listener_is_closed_and_its_path_goes() {
    let service = Service::start("main 127.0.0.1:0\nadmin 127.0.0.1:0\nlocal unix:local.sock\n");
    let (admin, local) = (service.address("admin"), service.address("local"));
    let path = service.dir().join("local.sock");
    assert!(path.exists());
    under_traffic(&service, |_| {
        service.configure(MAIN);
        let changes = service.reload();
        assert_eq!(changes.kept, ["main"]);
        assert_eq!(changes.removed, ["admin", "local"]);
        let refused = |address: &str| Line::connect(address).err().map(|e| e.kind());
        assert_eq!(refused(&admin), Some(ErrorKind::ConnectionRefused));
        assert_eq!(refused(&local), Some(ErrorKind::NotFound));
        assert!(!path.exists());
    });
    // The name is free for something else.
    service.configure("main 127.0.0.1:0\nadmin unix:local.sock\n");
    assert_eq!(service.reload().added, ["admin"]);
    assert_eq!(greeting(&service, "admin"), "3 admin");
}

#[cfg(feature = "failpoints")]
#[test]
fn the_queue_of_a_removed_listener_is_emptied_first() {
    use nix::sys::signal::Signal;
    let service = Service::start_with(
        "main 127.0.0.1:0\nadmin 127.0.0.1:0\nlocal unix:local.sock\n",
        "parent/heard/Accepting=stop",
    );
    let parent = service.pid();
    let addresses = [service.address("admin"), service.address("local")];
    service.configure(MAIN);
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| service.try_reload(true, |_| {}));
        // The child accepts, though not on these; the parent is frozen before it knows.
        eventually("the parent is frozen", || is_stopped(parent));
        let mut queued: Vec<Line> = (0..100)
            .map(|n| Line::connect(&addresses[n % 2]).expect("connect"))
            .collect();
        service.signal(parent, Signal::SIGCONT);
        for line in &mut queued {
            assert!(line.hear().starts_with("1 "), "a client was forgotten");
        }
        reload.join().expect("reload").expect("an outcome");
    });
    for address in &addresses {
        assert!(Line::connect(address).is_err());
    }
    assert_eq!(greeting(&service, "main"), "2 main");
}

#[cfg(feature = "failpoints")]
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// A port that is free now.
fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("an address").port()
}

#[test]
fn a_listener_moves_to_another_address() {
    let service = Service::start("main 127.0.0.1:0\nadmin unix:a.sock\n");
    let port = free_port();
    let old = service.address("admin");
    under_traffic(&service, |goes_on| {
        service.configure(&format!("main 127.0.0.1:0\nadmin 127.0.0.1:{port}\n"));
        let changes = service.reload();
        assert_eq!(changes.kept, ["main"]);
        assert_eq!(
            (changes.added, changes.removed),
            (vec!["admin".to_owned()], vec!["admin".to_owned()])
        );
        assert_eq!(service.address("admin"), format!("127.0.0.1:{port}"));
        assert_eq!(greeting(&service, "admin"), "2 admin");
        assert!(
            Line::connect(&old).is_err(),
            "the old address still answers"
        );
        goes_on();
        service.configure("main 127.0.0.1:0\nadmin unix:b.sock\n");
        service.reload();
        assert_eq!(greeting(&service, "admin"), "3 admin");
        assert!(Line::connect(&format!("127.0.0.1:{port}")).is_err());
    });
}

#[test]
fn an_address_that_overlaps_a_running_one_is_refused_with_the_remedy() {
    let service = Service::start(MAIN);
    let address = service.address("main");
    let port = address.rsplit_once(':').expect("a port").1.to_owned();
    under_traffic(&service, |goes_on| {
        for wrong in [
            format!("main 0.0.0.0:{port}\n"),
            format!("main [::]:{port}\n"),
            format!("main {address}\nother {address}\n"),
            format!("renamed {address}\n"),
        ] {
            service.configure(&wrong);
            let reason = service.reload_fails();
            assert!(reason.contains(&address), "{reason}");
            assert!(
                ["stop", "rename", "name", "remove"]
                    .iter()
                    .any(|word| reason.contains(word)),
                "no remedy: {reason}"
            );
            goes_on();
        }
    });
    service.configure(&format!("main {address}\n"));
    assert_eq!(service.reload().kept, ["main"]);
}

#[test]
fn an_address_of_another_process_is_refused_and_nothing_is_left_behind() {
    let service = Service::start(MAIN);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().expect("an address");
    let foreign = service.dir().join("foreign.sock");
    let _foreign = UnixListener::bind(&foreign).expect("bind");
    under_traffic(&service, |_| {
        for wrong in [taken.to_string(), "unix:foreign.sock".to_owned()] {
            service.configure(&format!(
                "main 127.0.0.1:0\nlocal unix:l.sock\nadmin {wrong}\n"
            ));
            let reason = service.reload_fails();
            assert!(reason.contains("admin"), "{reason}");
            assert!(
                !service.dir().join("l.sock").exists(),
                "a path was left behind"
            );
            assert!(foreign.exists());
        }
        service.configure("main 127.0.0.1:0\nlocal unix:l.sock\n");
        assert_eq!(service.reload().added, ["local"]);
    });
}

/// What the kernel says of a listening socket.
fn kernel_backlog(address: &str) -> u32 {
    diag::backlog(address.parse().expect("an address")).expect("a listener")
}

#[test]
fn a_backlog_grows_and_shrinks() {
    let service = Service::start("main 127.0.0.1:0 100\n");
    let address = service.address("main");
    assert_eq!(kernel_backlog(&address), 100);
    under_traffic(&service, |_| {
        for backlog in [200, 50, 1000] {
            service.configure(&format!("main 127.0.0.1:0 {backlog}\n"));
            assert_eq!(service.reload().kept, ["main"]);
            assert_eq!(service.status().listeners[0].backlog, backlog);
            assert_eq!(kernel_backlog(&address), backlog);
        }
    });
}

#[test]
fn a_path_is_never_away_while_somebody_listens_on_it() {
    let service = Service::start("main 127.0.0.1:0\nlocal unix:local.sock\n");
    let path = service.dir().join("local.sock");
    let address = service.address("local");
    let visit = || {
        let line = Line::connect(&address).expect("connect").hear();
        assert!(line.ends_with(" local"), "{line:?}");
    };
    meanwhile(visit, |goes_on| {
        for _ in 0..10 {
            service.reload();
            // A child that comes to nothing has bound nothing.
            service.configure(
                "main 127.0.0.1:0\nlocal unix:local.sock\nbad 127.0.0.1:1\nbad2 unix:/nowhere/x\n",
            );
            service.reload_fails();
            service.configure("main 127.0.0.1:0\nlocal unix:local.sock\n");
            goes_on();
        }
    });
    assert!(path.exists());
    service.stop();
    assert!(!path.exists(), "the path outlives the service");
}

#[test]
fn a_path_that_is_somebody_else_s_by_now_is_left_alone() {
    let service = Service::start("main 127.0.0.1:0\nlocal unix:local.sock\n");
    let path = service.dir().join("local.sock");
    fs::remove_file(&path).expect("remove");
    let _other = UnixListener::bind(&path).expect("bind");
    service.configure(MAIN);
    assert_eq!(service.reload().removed, ["local"]);
    assert!(path.exists(), "another server's path was removed");
    service.stop();
    assert!(path.exists());
}
