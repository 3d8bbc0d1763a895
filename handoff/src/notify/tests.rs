use std::os::unix::net::UnixDatagram;

use super::*;

struct Ear {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Ear {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { dir, socket }
    }

    fn notifier(&self, watchdog: Option<Duration>) -> Notifier {
        let path = self.dir.path().join("notify");
        Notifier::new(Some(Outbox::new(path.as_os_str()).unwrap()), watchdog)
    }

    /// What was said; its descriptors are closed unread.
    fn heard(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let mut heard = Vec::new();
        while let Ok(length) = self.socket.recv(&mut bytes) {
            heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        heard
    }
}

fn generation(generation: u64) -> Generation {
    Generation {
        generation,
        pid: 4711,
    }
}

#[tokio::test]
async fn only_the_service_speaks() {
    let ear = Ear::new();
    let notifier = ear.notifier(Some(Duration::from_secs(1)));
    // A child before it is final.
    notifier.reloading(1, Duration::ZERO);
    notifier.reload_failed(1, "booting", "x");
    notifier.stopping("x", Duration::ZERO);
    notifier.alive();
    notifier.succeeded_by(generation(2));
    assert_eq!(ear.heard(), Vec::<String>::new());
    notifier.serves(generation(1), &[], &["old".to_owned()], false);
    assert_eq!(
        ear.heard(),
        [
            "READY=1\nSTATUS=generation 1 serves ",
            "WATCHDOG=1",
            "FDSTOREREMOVE=1\nFDNAME=stored/old"
        ]
    );
    notifier.succeeded_by(generation(2));
    assert_eq!(
        ear.heard(),
        ["MAINPID=4711\nREADY=1\nSTATUS=generation 2 takes over"]
    );
    // It drains.
    notifier.stopping("x", Duration::ZERO);
    notifier.reload_failed(1, "draining", "x");
    notifier.alive();
    assert_eq!(ear.heard(), Vec::<String>::new());
}

#[tokio::test]
async fn an_heir_names_itself() {
    let ear = Ear::new();
    ear.notifier(None).serves(generation(3), &[], &[], true);
    let heard = ear.heard();
    assert!(heard[0].starts_with("MAINPID=4711\nREADY=1\n"), "{heard:?}");
}

#[tokio::test]
async fn who_stops_is_ready_no_more() {
    let ear = Ear::new();
    let notifier = ear.notifier(None);
    notifier.serves(generation(1), &[], &[], false);
    notifier.stopping("told to", Duration::from_secs(10));
    notifier.reload_failed(1, "booting", "it was stopped");
    notifier.stopping("told again", Duration::from_secs(10));
    notifier.succeeded_by(generation(2));
    let heard = ear.heard();
    assert_eq!(
        heard[1..],
        [
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS=told to",
            "MAINPID=4711\nSTATUS=generation 2 takes over"
        ]
    );
}

#[tokio::test]
async fn what_does_not_fit_is_queued_in_its_order() {
    let ear = Ear::new();
    let notifier = ear.notifier(None);
    notifier.serves(generation(1), &[], &[], false);
    let many = 100;
    for reload in 0..many {
        notifier.reload_failed(reload, "booting", "x");
    }
    // Its reader is late: a barrier that is behind all of it.
    let barrier = tokio::spawn(async move { notifier.outbox.unwrap().barrier(FAREWELL).await });
    let mut heard = Vec::new();
    while heard.last().is_none_or(|last| last != "BARRIER=1") {
        heard.extend(ear.heard());
        tokio::task::yield_now().await;
    }
    assert_eq!(heard.len() as u64, many + 2);
    for reload in 0..many {
        let expected = format!("reload {reload} failed while");
        let at = usize::try_from(reload).unwrap() + 1;
        assert!(heard[at].contains(&expected), "{}", heard[at]);
    }
    assert!(barrier.await.unwrap());
}

#[tokio::test]
async fn a_reader_that_was_started_anew_is_found_again() {
    let ear = Ear::new();
    let notifier = ear.notifier(None);
    notifier.serves(generation(1), &[], &[], false);
    let Ear { dir, socket } = ear;
    drop(socket);
    std::fs::remove_file(dir.path().join("notify")).unwrap();
    // Nobody is there.
    notifier.reload_failed(1, "booting", "x");
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let ear = Ear { dir, socket };
    notifier.reload_failed(2, "booting", "x");
    let heard = ear.heard();
    assert_eq!(heard.len(), 1);
    assert!(heard[0].contains("reload 2 failed"), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_barrier_that_nobody_hears_falls_by_itself() {
    let ear = Ear::new();
    let notifier = ear.notifier(None);
    notifier.flush().await;
    assert_eq!(ear.heard(), ["BARRIER=1"]);
}

#[test]
fn a_status_is_one_short_line() {
    assert_eq!(line("a\nREADY=1\tb"), "a READY=1 b");
    let long = line(&"ä".repeat(1000));
    assert_eq!(long.chars().count(), MAX_STATUS + 1);
    assert!(long.ends_with('…'));
}

#[test]
fn an_interval_that_makes_no_sense_is_none() {
    for (text, expected) in [
        ("30000000", Some(Duration::from_secs(30))),
        ("10000", Some(Duration::from_millis(10))),
        ("9999", None),
        ("0", None),
        ("-5", None),
        ("soon", None),
        ("99999999999999999999999", None),
    ] {
        assert_eq!(interval(OsStr::new(text)), expected, "{text}");
    }
}

#[test]
fn names_of_sockets() {
    for (name, is_one) in [
        ("/run/systemd/notify", true),
        ("@abstract", true),
        ("@", false),
        ("", false),
        ("relative", false),
        ("vsock:2:9999", false),
    ] {
        assert_eq!(socket::address(OsStr::new(name)).is_ok(), is_one, "{name}");
    }
    let long = format!("/{}", "x".repeat(200));
    assert!(
        socket::address(OsStr::new(&long))
            .unwrap_err()
            .contains("107 bytes")
    );
}
