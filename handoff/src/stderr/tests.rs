use std::{sync::atomic::AtomicBool, time::Duration};

use tokio::time::timeout;

use super::*;

/// Far more than anything here takes: a test that reaches it has failed.
const LONG: Duration = Duration::from_secs(20);

struct Setup {
    capture: Capture,
    child: File,
    passed: io::PipeReader,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

fn setup() -> Setup {
    let (passed, sink) = io::pipe().expect("pipe");
    let sink = PassThrough::to(sink).expect("thread");
    let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
    let on_line = move |line: &str| drop(sender.send(line.to_owned()));
    let (capture, child) = Capture::new(sink, on_line).expect("capture");
    Setup {
        capture,
        child: child.into(),
        passed,
        lines,
    }
}

/// Pumps until `done`.
async fn pump_until<T>(capture: &mut Capture, done: impl Future<Output = T>) -> T {
    let either = async {
        tokio::select! {
            never = capture.pump() => match never {},
            done = done => done,
        }
    };
    timeout(LONG, either).await.expect("in time")
}

fn captured(lines: &[&str]) -> Captured {
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Captured { lines, dropped: 0 }
}

#[tokio::test]
async fn lines_are_reported_as_they_come_and_bytes_passed_through() {
    let mut s = setup();
    s.child.write_all(b"one\ntw").expect("write");
    assert_eq!(
        pump_until(&mut s.capture, s.lines.recv())
            .await
            .expect("line"),
        "one"
    );
    s.child.write_all(b"o\r\n\xffthree").expect("write");
    assert_eq!(
        pump_until(&mut s.capture, s.lines.recv())
            .await
            .expect("line"),
        "two"
    );
    drop(s.child);
    assert_eq!(
        s.capture.finish(),
        captured(&["one", "two", "\u{fffd}three"])
    );
    let mut passed = Vec::new();
    s.passed.read_to_end(&mut passed).expect("read");
    assert_eq!(passed, b"one\ntwo\r\n\xffthree");
}

#[tokio::test]
async fn what_was_never_pumped_is_there_at_the_end() {
    let mut s = setup();
    s.child
        .write_all(b"thread 'main' panicked\n")
        .expect("write");
    drop(s.child);
    assert_eq!(s.capture.finish(), captured(&["thread 'main' panicked"]));
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_pipe_does_not_hold_us_up() {
    let mut s = setup();
    let _grandchild = s.child.try_clone().expect("dup");
    s.child.write_all(b"last words").expect("write");
    drop(s.child);
    assert_eq!(s.capture.finish(), captured(&["last words"]));
}

#[tokio::test]
async fn a_grandchild_that_writes_without_end_does_not_either() {
    let s = setup();
    let mut grandchild = s.child;
    let writer = std::thread::spawn(move || while grandchild.write_all(&[b'\n'; 4096]).is_ok() {});
    let captured = s.capture.finish();
    writer.join().expect("ends with our end of the pipe");
    assert!(captured.lines.len() <= MAX_LINES);
}

#[tokio::test]
async fn the_end_of_the_pipe_is_quiet() {
    let mut s = setup();
    drop(s.child);
    let (sender, ended) = tokio::sync::oneshot::channel();
    // The pump reaches the end, stays pending, and does not spin: the task gets its turn.
    tokio::spawn(async { sender.send(()) });
    pump_until(&mut s.capture, ended).await.expect("sent");
    assert_eq!(s.capture.finish(), Captured::default());
}

#[tokio::test]
async fn a_sink_that_nobody_reads_costs_bytes_and_not_the_service() {
    let mut s = setup();
    let total = 64 * 1024 + (MAX_CHUNKS + 100) * CHUNK_BYTES;
    let sink = s.capture.sink.clone();
    let mut child = s.child;
    let writer = tokio::task::spawn_blocking(move || {
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        (0..total / line.len()).try_for_each(|_| child.write_all(&line))
    });
    let written = pump_until(&mut s.capture, writer).await;
    written
        .expect("joined")
        .expect("the child is never blocked for good");
    let captured = s.capture.finish();
    assert_eq!(captured.lines.len(), MAX_LINES);
    assert_eq!(captured.dropped as usize, total / 1024 - MAX_LINES);
    assert!(sink.lost_bytes() > 0, "counted");
}

#[tokio::test]
async fn a_sink_whose_reader_has_gone_is_survived() {
    let mut s = setup();
    drop(s.passed);
    s.child.write_all(b"hello\n").expect("write");
    assert_eq!(
        pump_until(&mut s.capture, s.lines.recv())
            .await
            .expect("line"),
        "hello"
    );
    assert_eq!(s.capture.finish(), captured(&["hello"]));
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let mut s = setup();
    s.child
        .write_all(&[b'x'; MAX_LINE_BYTES + 10])
        .expect("write");
    s.child.write_all(b"\n").expect("write");
    let lines: String = (0..MAX_LINES).map(|n| format!("{n}\n")).collect();
    s.child.write_all(lines.as_bytes()).expect("write");
    let long = pump_until(&mut s.capture, s.lines.recv())
        .await
        .expect("line");
    assert!(long.ends_with("x [10 bytes cut]"), "{long}");
    assert_eq!(long.len(), MAX_LINE_BYTES + " [10 bytes cut]".len());
    let captured = s.capture.finish();
    assert_eq!(captured.dropped, 1);
    assert_eq!(captured.lines.len(), MAX_LINES);
    assert_eq!(
        (captured.lines[0].as_str(), captured.lines[49].as_str()),
        ("0", "49")
    );
}

#[tokio::test]
async fn the_ends_of_the_pipe_are_cloexec_and_the_childs_is_blocking() {
    let s = setup();
    for flags in [
        rustix::io::fcntl_getfd(&s.child),
        rustix::io::fcntl_getfd(&s.capture.receiver),
    ] {
        assert!(flags.expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
    }
    let flags = rustix::fs::fcntl_getfl(&s.child).expect("flags");
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn all_captures_share_one_thread_for_stderr() {
    let (a, b) = (
        PassThrough::stderr().expect("first"),
        PassThrough::stderr().expect("second"),
    );
    assert!(Arc::ptr_eq(&a.lost, &b.lost));
}

/// Fills the pipe up to its size, or to what was asked for.
fn fill(child: &mut File, bytes: usize) {
    child.write_all(&vec![b'x'; bytes]).expect("write");
}

#[tokio::test]
async fn a_child_sees_that_nobody_reads_what_it_writes() {
    let mut s = setup();
    let (_real_reader, real) = io::pipe().expect("pipe");
    let lent = Lent::new(real.into(), s.capture.reader().expect("reader"));
    fill(&mut s.child, 31 << 10);
    assert!(!lent.is_full());
    // More than a pipe holds by default: it was made larger, and this does not wait.
    fill(&mut s.child, 100 << 10);
    assert!(lent.is_full());
}

#[tokio::test]
async fn a_pipe_whose_parent_is_dead_has_a_reader_and_loses_nothing() {
    let mut s = setup();
    let (_real_reader, real) = io::pipe().expect("pipe");
    let lent = Lent::new(real.into(), s.capture.reader().expect("reader"));
    s.child.write_all(b"unread, ").expect("write");
    drop(s.capture);
    s.child
        .write_all(b"and written to nobody")
        .expect("the child itself is a reader");
    assert_eq!(lent.rest(), b"unread, and written to nobody");
    drop(lent);
    s.child.write_all(b"x").expect_err("now there is none");
}

/// One written by another hand.
#[test]
fn a_pipe_that_the_parent_left_blocking_is_read_without_waiting() {
    let (_real_reader, real) = io::pipe().expect("pipe");
    let (reader, mut writer) = io::pipe().expect("pipe");
    let pipe = reader.try_clone().expect("dup");
    let lent = Lent::new(real.into(), pipe.into());
    writer.write_all(b"unread").expect("write");
    let (done, rest) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(lent.rest()));
    let rest = rest.recv_timeout(Duration::from_secs(10));
    assert_eq!(rest.expect("it waits for more"), b"unread");
    let flags = rustix::fs::fcntl_getfl(&reader).expect("flags");
    assert!(
        !flags.contains(rustix::fs::OFlags::NONBLOCK),
        "it is the parent's"
    );
}

#[tokio::test]
async fn a_panic_stays_in_sight_of_its_backtrace() {
    let mut s = setup();
    let mut said = String::from("booting\n");
    for number in 1..=3 {
        said += &format!("thread 'main' ({number}) panicked at src/main.rs:1:1:\nwords {number}\n");
        for frame in 0..MAX_LINES {
            said += &format!("  {frame}: frame\n");
        }
    }
    s.child.write_all(said.as_bytes()).expect("write");
    drop(s.child);
    let captured = s.capture.finish();
    assert_eq!(captured.lines.len(), MAX_LINES);
    let kept = |number: u32| {
        let words = format!("words {number}");
        captured.lines.contains(&words)
    };
    // The first two.
    assert!(kept(1) && kept(2) && !kept(3), "{:?}", captured.lines);
    assert!(captured.lines[0].contains("(1) panicked at"));
    assert_eq!(captured.lines[MAX_LINES - 1], "  49: frame");
    assert_eq!(
        captured.dropped as usize,
        3 * (2 + MAX_LINES) + 1 - MAX_LINES
    );
}

#[tokio::test]
async fn a_child_that_writes_without_end_leaves_others_their_turn() {
    let Setup {
        mut capture,
        mut child,
        ..
    } = setup();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            // Without a reader it ends, too.
            while !stop.load(Ordering::Relaxed) && child.write_all(&[b'x'; 4096]).is_ok() {}
        }
    });
    let (turns, mut turn) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while turns.send(()).is_ok() {
            tokio::task::yield_now().await;
        }
    });
    for _ in 0..100 {
        tokio::select! {
            biased;
            never = capture.pump() => match never {},
            Some(()) = turn.recv() => {}
        }
    }
    stop.store(true, Ordering::Relaxed);
    drop(capture);
    writer.join().expect("the writer");
}

#[tokio::test]
async fn a_line_is_bounded_as_it_is_told() {
    let mut s = setup();
    for _ in 0..MAX_LINES {
        s.child
            .write_all(&[0x1b; 2 * MAX_LINE_BYTES])
            .expect("write");
        s.child.write_all(b"\n").expect("write");
    }
    drop(s.child);
    let captured = s.capture.finish();
    let told: usize = captured
        .lines
        .iter()
        .map(|line| serde_json::to_string(line).expect("JSON").len())
        .sum();
    assert!(told <= MAX_LINES * (MAX_LINE_BYTES + 32), "{told}");
    assert!(
        captured.lines[0].ends_with("bytes cut]"),
        "{}",
        captured.lines[0]
    );
}
