use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::*;

const ROLE: &str = "HANDOFF_TEST_ROLE";

fn channel() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("pair")
}

fn shell(script: &str) -> Program {
    let args = vec!["-c".into(), script.into()];
    Program::new("/bin/sh".into(), args, env::temp_dir())
}

/// The child, our end of its channel, and the end of its stderr.
fn start(program: &Program, extra: &[(&str, &str)]) -> (Spawned, OwnedFd, io::PipeReader) {
    let (ours, theirs) = channel();
    let (reader, writer) = io::pipe().expect("pipe");
    let own = |(name, value): &(&str, &str)| (name.into(), value.into());
    let extra: Vec<_> = extra.iter().map(own).collect();
    let spawned = program
        .spawn(theirs, writer.into(), &extra, &[])
        .expect("spawn");
    (spawned, ours, reader)
}

fn wait(spawned: &mut Spawned) -> ExitStatus {
    let mut polled = [PollFd::new(&spawned.pidfd, PollFlags::IN)];
    rustix::event::poll(&mut polled, None).expect("poll");
    spawned.try_wait().expect("wait").expect("has ended")
}

fn receive(channel: &OwnedFd) -> String {
    let mut buffer = [0; 4096];
    let (read, _) = rustix::net::recv(channel, &mut buffer, RecvFlags::empty()).expect("recv");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

fn executable(path: &Path) {
    fs::write(path, "#!/bin/sh\nexit 0\n").expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn find(argv0: &str, path: &str, cwd: &Path, exe: Option<&Path>) -> Option<PathBuf> {
    find_program(&Surroundings {
        argv0: OsStr::new(argv0),
        path_variable: Some(OsStr::new(path)),
        cwd,
        exe: exe.map(|path| (path.to_owned(), identity(path).unwrap_or_default())),
    })
}

#[test]
fn the_program_is_found_as_it_was_called() {
    let dir = tempfile::tempdir().expect("dir");
    let (one, two) = (dir.path().join("1"), dir.path().join("2"));
    fs::create_dir(&one).expect("mkdir");
    fs::create_dir(&two).expect("mkdir");
    executable(&two.join("hello"));
    fs::write(one.join("hello"), "not executable").expect("write");
    symlink(&two, dir.path().join("current")).expect("symlink");
    let current = dir.path().join("current");
    let program = two.join("hello");
    let exe = Some(program.as_path());
    // Symlinks and ".." stay, "." goes.
    assert_eq!(
        find("./hello", "", &current, exe),
        Some(current.join("hello"))
    );
    assert_eq!(
        find("../2/hello", "", &one, exe),
        Some(one.join("../2/hello"))
    );
    assert_eq!(
        find("current/hello", "", dir.path(), exe),
        Some(current.join("hello"))
    );
    // PATH: the first executable; a relative or empty entry is meant from the cwd.
    let path = format!("{}:{}", one.display(), current.display());
    assert_eq!(
        find("hello", &path, dir.path(), exe),
        Some(current.join("hello"))
    );
    assert_eq!(find("hello", "x:2", dir.path(), exe), Some(program.clone()));
    assert_eq!(
        find("hello", ":x", &current, exe),
        Some(current.join("hello"))
    );
}

#[test]
fn a_name_that_leads_elsewhere_is_not_believed() {
    let dir = tempfile::tempdir().expect("dir");
    let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
    executable(&ours);
    executable(&other);
    let path = dir.path().to_str().expect("UTF-8");
    let find = |argv0: &str, exe: &Path| find(argv0, path, dir.path(), Some(exe));
    // A bare name: only if it is this program, or this program is gone.
    assert_eq!(find("other", &ours), Some(ours.clone()));
    assert_eq!(find("-sh", &ours), Some(ours.clone()));
    assert_eq!(find("", &ours), Some(ours.clone()));
    let deleted = dir.path().join("other (deleted)");
    assert_eq!(find("other", &deleted), Some(other.clone()));
    // A path is a path: the deployment may just have replaced it.
    assert_eq!(find("./other", &ours), Some(other));
    assert_eq!(find("./gone", &ours), Some(ours));
    assert_eq!(find("./gone", &deleted), None);
}

#[test]
fn the_logical_directory_is_pwd_only_if_it_is_ours() {
    let dir = tempfile::tempdir().expect("dir");
    let here = env::current_dir().expect("cwd");
    let link = dir.path().join("link");
    symlink(&here, &link).expect("symlink");
    let cwd = |pwd: &Path| logical_cwd(Some(pwd.into())).expect("cwd");
    assert_eq!(cwd(&link), link);
    assert_eq!(cwd(dir.path()), here, "another directory");
    assert_eq!(cwd(&dir.path().join("gone")), here);
    assert_eq!(cwd(Path::new(".")), here, "relative");
    assert_eq!(cwd(&link.join("../link")), here, "dots");
    assert_eq!(logical_cwd(None).expect("cwd"), here);
}

#[test]
fn this_program_resolves_to_itself() {
    let program = Program::resolve().expect("resolve");
    assert_eq!(
        identity(program.path()),
        identity(Path::new("/proc/self/exe"))
    );
    assert_eq!(program.args().len(), env::args_os().count() - 1);
}

#[test]
fn a_child_has_what_it_was_promised() {
    let dir = tempfile::tempdir().expect("dir");
    let link = dir.path().join("current");
    symlink(dir.path(), &link).expect("symlink");
    let script = "echo \"$0|$1|$PWD|$EXTRA|$(ps -o pgid= -p $$ 2>/dev/null || echo)\" >&2; exit 3";
    let args = vec!["-c".into(), script.into(), "zero".into(), "one".into()];
    let program = Program::new("/bin/sh".into(), args, link.clone());
    let (mut spawned, _channel, mut stderr) = start(&program, &[("EXTRA", "x")]);
    let mut text = String::new();
    // Ends with the child: no copy of its stderr has stayed here.
    stderr.read_to_string(&mut text).expect("read");
    let expected = format!("zero|one|{}|x|", link.display());
    assert!(text.starts_with(&expected), "{text}");
    assert_eq!(describe_exit(wait(&mut spawned)), "exited with status 3");
    spawned.kill().expect("killing the dead is no error");
}

#[test]
fn a_child_leads_its_own_process_group() {
    let (spawned, _channel, _stderr) = start(&shell("exec cat"), &[]);
    let stat = fs::read_to_string(format!("/proc/{}/stat", spawned.pid())).expect("stat");
    let group = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(2));
    assert_eq!(
        group.and_then(|group| group.parse().ok()),
        Some(spawned.pid())
    );
}

#[test]
fn the_end_of_a_child_closes_the_channel() {
    let (mut spawned, channel, _stderr) = start(&shell("exit 0"), &[]);
    wait(&mut spawned);
    assert_eq!(receive(&channel), "");
}

#[test]
fn a_child_that_is_dropped_is_killed_and_reaped_even_if_frozen() {
    let (spawned, channel, _stderr) = start(&shell("exec cat"), &[]);
    let pid = spawned.pid();
    rustix::process::pidfd_send_signal(&spawned, rustix::process::Signal::STOP).expect("stop");
    drop(spawned);
    assert_eq!(receive(&channel), "");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "no zombie");
}

#[test]
fn a_disarmed_child_lives_on() {
    let (mut spawned, channel, _stderr) = start(&shell("exec cat"), &[]);
    spawned.disarm();
    let pidfd = spawned.pidfd.try_clone().expect("dup");
    drop(spawned);
    assert!(is_running(pidfd.as_fd()).expect("poll"));
    drop(channel); // the end of cat's input
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::event::poll(&mut polled, None).expect("poll");
    assert!(
        !is_running(pidfd.as_fd()).expect("poll"),
        "a zombie does not run"
    );
}

#[test]
fn an_end_is_told_in_words() {
    let (mut spawned, _channel, _stderr) = start(&shell("kill -ABRT $$"), &[]);
    let text = describe_exit(wait(&mut spawned));
    assert!(
        text.starts_with("was killed by signal 6 (SIGABRT)"),
        "{text}"
    );
    let status = ExitStatus::from_raw(9);
    assert_eq!(describe_exit(status), "was killed by signal 9 (SIGKILL)");
}

#[test]
fn what_cannot_be_executed_is_named_with_a_remedy() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("hello");
    let attempt = || {
        let program = Program::new(path.clone(), Vec::new(), dir.path().to_owned());
        let (_ours, theirs) = channel();
        let (_reader, writer) = io::pipe().expect("pipe");
        let spawned = program.spawn(theirs, writer.into(), &[], &[]);
        spawned.expect_err("cannot be executed").to_string()
    };
    let fail = |part: &str| {
        // A child that another test starts may hold a writable copy until its own exec.
        let errors = std::iter::repeat_with(attempt);
        let mut errors = errors.filter(|e| e.contains(part) || !e.contains("by a rename"));
        let error = errors.next().expect("endless");
        assert!(error.contains(part) && error.contains("hello"), "{error}");
    };
    fail("does not exist: deploy it");
    fs::write(&path, "").expect("write");
    fail("chmod +x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    fail("half a file");
    fs::write(&path, b"\x7fELF\x02\x01\x01").expect("write");
    fail("half a file");
    fs::write(&path, "#!/nonexistent/interpreter\n").expect("write");
    fail("interpreter or loader");
    let _writer = fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("open");
    fail("by a rename");
}

#[test]
fn a_deleted_directory_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let gone = dir.path().join("gone");
    let program = Program::new("/bin/true".into(), Vec::new(), gone.clone());
    let (_ours, theirs) = channel();
    let (_reader, writer) = io::pipe().expect("pipe");
    let error = program
        .spawn(theirs, writer.into(), &[], &[])
        .expect_err("gone")
        .to_string();
    assert!(error.contains(gone.to_str().expect("UTF-8")), "{error}");
    assert!(error.contains("create it again"), "{error}");
}

/// This test binary again, as a child that plays `role`.
fn play(role: &str, extra: &[(&str, &str)]) -> (Spawned, OwnedFd, io::PipeReader) {
    let args = ["--exact", "--nocapture", "process::tests::child"].map(OsString::from);
    let exe = env::current_exe().expect("exe");
    let program = Program::new(exe, args.to_vec(), env::temp_dir());
    let extra: Vec<_> = [(ROLE, role)].iter().chain(extra).copied().collect();
    start(&program, &extra)
}

/// Not a test: what the child of a test does, which [`play`] starts.
#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    let outcome = match role.as_str() {
        "join" => child_joins(),
        "stderr" => child_adopts_stderr(),
        "limit" => child_raises_its_limit(),
        _ => "unknown role".to_owned(),
    };
    // Past the test harness, so that nothing else is written.
    let sent = match take_channel() {
        Ok(Some(channel)) => rustix::net::send(channel, outcome.as_bytes(), SendFlags::empty()),
        _ => Ok(0),
    };
    std::process::exit(i32::from(sent.is_err()));
}

fn child_joins() -> String {
    let channel = take_channel().expect("take").expect("a channel");
    assert!(channel.as_raw_fd() >= 3);
    let flags = rustix::io::fcntl_getfd(&channel).expect("flags");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let mut stdin = Vec::new();
    io::stdin().read_to_end(&mut stdin).expect("read");
    assert!(stdin.is_empty(), "/dev/null");
    assert!(take_channel().expect("again").is_none());
    rustix::net::send(channel, b"joined", SendFlags::empty()).expect("send");
    String::new()
}

fn child_adopts_stderr() -> String {
    eprintln!("before");
    let path = env::var("REAL").expect("path");
    adopt_stderr(File::create(path).expect("create")).expect("adopt");
    eprintln!("after");
    "done".to_owned()
}

fn child_raises_its_limit() -> String {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let low = Rlimit {
        current: Some(100),
        maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, low).expect("lower");
    let maximum = maximum.unwrap_or(u64::MAX);
    assert_eq!(raise_nofile_limit().expect("raise"), (100, maximum));
    assert_eq!(raise_nofile_limit().expect("again"), (maximum, maximum));
    "done".to_owned()
}

#[test]
fn a_child_takes_its_channel_once() {
    let (mut spawned, channel, mut stderr) = play("join", &[]);
    let received = receive(&channel);
    let mut text = String::new();
    stderr.read_to_string(&mut text).expect("read");
    assert_eq!(received, "joined", "{text}");
    assert!(wait(&mut spawned).success());
}

#[test]
fn a_child_changes_to_the_real_stderr() {
    let dir = tempfile::tempdir().expect("dir");
    let real = dir.path().join("stderr");
    let path = real.to_str().expect("UTF-8");
    let (_spawned, channel, mut stderr) = play("stderr", &[("REAL", path)]);
    assert_eq!(receive(&channel), "done");
    let mut text = String::new();
    stderr.read_to_string(&mut text).expect("read");
    assert_eq!(text, "before\n");
    assert_eq!(fs::read_to_string(real).expect("read"), "after\n");
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let (_spawned, channel, mut stderr) = play("limit", &[]);
    let received = receive(&channel);
    let mut text = String::new();
    stderr.read_to_string(&mut text).expect("read");
    assert_eq!(received, "done", "{text}");
}

#[test]
fn a_process_without_a_channel_has_none() {
    assert!(take_channel().expect("take").is_none());
}

#[test]
fn a_parent_is_known_by_its_pidfd() {
    let (mut spawned, _channel, _stderr) = start(&shell("exec cat"), &[]);
    let pidfd = || spawned.pidfd.try_clone().expect("dup");
    let pid = spawned.pid();
    check_pidfd(&pidfd(), pid).expect("a pidfd");
    check_pidfd(&pidfd(), 1).expect_err("another process's");
    let file = tempfile::tempfile().expect("file");
    check_pidfd(&file.into(), pid).expect_err("no pidfd");
    let pidfd = pidfd();
    assert!(is_running(pidfd.as_fd()).expect("poll"));
    send_signal(pidfd.as_fd(), Signal::Term).expect("signal");
    wait(&mut spawned);
    assert!(!is_running(pidfd.as_fd()).expect("poll"));
    let error = send_signal(pidfd.as_fd(), Signal::Term).expect_err("reaped");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    // That it has ended since, and was reaped, is for whoever watches it.
    check_pidfd(&pidfd, pid).expect("a pidfd all the same");
    check_pidfd(&own_pidfd().expect("own"), std::process::id()).expect("own");
    let error = open_pidfd(u32::MAX).expect_err("no such process");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
