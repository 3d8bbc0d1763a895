//! The servers, each in a directory and on a port of its own.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::super::args::CommonArgs;
use crate::faults::{processes_in, signal, wait_for};
use crate::soak::{Place, Profile};

/// A server that runs. Dropping it kills all that runs in its directory.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    child: Child,
}

/// All that can be had here, `hello` first; who is missing is named.
pub(crate) fn start(place: &Place, bare: &Path, args: &CommonArgs) -> Result<Vec<Peer>> {
    let hello = format!(
        r#"exec "{}" serve --listen "127.0.0.1:$PORT" --pidfile "$DIR/pid" {}"#,
        place.hello().display(),
        args.serve_args().join(" ")
    );
    let bare = format!(r#"exec "{}" "127.0.0.1:$PORT""#, bare.display());
    let mut peers = vec![
        Peer::start(place, "hello", &hello, None)?,
        Peer::start(place, "bare", &bare, None)?,
    ];
    for name in ["nginx", "go"] {
        let profile = Profile::named(name)?;
        match profile.missing() {
            Some(why) => eprintln!("{why}"),
            None => peers.push(Peer::start(place, name, "", Some(profile))?),
        }
    }
    Ok(peers)
}

impl Peer {
    fn start(
        place: &Place,
        name: &'static str,
        command: &str,
        profile: Option<&Profile>,
    ) -> Result<Self> {
        let dir = place.path().canonicalize()?.join(format!("peer-{name}"));
        fs::create_dir(&dir)?;
        // Whoever else takes the port in between makes this an error.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let command = match profile {
            Some(profile) => profile.prepare(&dir, port)?.start,
            None => command.to_owned(),
        };
        let child = Command::new("/bin/sh")
            .args(["-c", &command])
            .env("DIR", &dir)
            .env("PORT", port.to_string())
            .env("HELLO_ALLOW_WRITABLE_BINARY", "true")
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("log"))?)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let peer = Self {
            name,
            dir,
            port,
            child,
        };
        let answers = || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok());
        wait_for("the server listens", answers).with_context(|| {
            let log = fs::read_to_string(peer.dir.join("log")).unwrap_or_default();
            format!("{name}: {log}")
        })?;
        Ok(peer)
    }

    /// Processor time of all of its processes, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        let ticks: u64 = processes_in(&self.dir).into_iter().filter_map(ticks).sum();
        // In ticks of USER_HZ, which is 100 on Linux (proc_pid_stat(5)).
        Duration::from_millis(ticks * 10)
    }
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

impl Drop for Peer {
    fn drop(&mut self) {
        for _ in 0..200 {
            let pids = processes_in(&self.dir);
            if pids.is_empty() {
                break;
            }
            pids.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            let _ = self.child.try_wait();
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.wait();
    }
}
