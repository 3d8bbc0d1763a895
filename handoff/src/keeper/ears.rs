//! The keeper's own `NOTIFY_SOCKET`, and the one that it was given.

use std::{
    env, fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SocketAddrUnix, SocketFlags, SocketType, sockopt,
    },
    process::Pid,
};

use super::say;
use crate::{
    listeners::MAX_UNIX_PATH,
    notify::{
        SOCKET_VARIABLE,
        socket::{self, Note},
    },
    wire::MAX_FDS,
};

/// Longer than anything that is said; systemd reads no more either.
const MAX_NOTE: usize = 4096;

/// What a process said.
pub(super) struct Heard {
    /// By the kernel's word.
    pub(super) from: Pid,
    pub(super) text: String,
    pub(super) fds: Vec<OwnedFd>,
}

/// See the module.
pub(super) struct Ears {
    socket: OwnedFd,
    directory: PathBuf,
    name: PathBuf,
    outer: Option<OwnedFd>,
}

impl Ears {
    /// In a directory of its own: an abstract name could be had by every container that shares this network, and by
    /// processes that have no number here.
    pub(super) fn open() -> io::Result<Self> {
        let directory = private_directory()?;
        let name = directory.join("notify");
        let socket = datagram()?;
        let ears = Self {
            socket,
            directory,
            name,
            outer: outer(),
        };
        sockopt::set_socket_passcred(&ears.socket, true)?;
        rustix::net::bind(&ears.socket, &SocketAddrUnix::new(&ears.name)?)?;
        Ok(ears)
    }

    /// The value of `NOTIFY_SOCKET` for the service.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// What was said next, if anything. A barrier falls here.
    pub(super) fn next(&self) -> Option<Heard> {
        loop {
            let heard = match self.receive() {
                Ok(heard) => heard,
                Err(rustix::io::Errno::AGAIN) => return None,
                // Without a sender: whoever it was broke the rules.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::NOMSG) => continue,
                Err(error) => {
                    say(format_args!("cannot hear: {error}"));
                    return None;
                }
            };
            // All that came before it has been heard. Its descriptor is closed here, which is the answer.
            if heard.text.trim_end() != "BARRIER=1" {
                return Some(heard);
            }
        }
    }

    fn receive(&self) -> rustix::io::Result<Heard> {
        let mut bytes = vec![0; MAX_NOTE];
        let space = rustix::cmsg_space!(ScmCredentials(1), ScmRights(MAX_FDS));
        let mut space = vec![MaybeUninit::uninit(); space];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        let (mut from, mut fds) = (None, Vec::new());
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => from = Some(credentials.pid),
                RecvAncillaryMessage::ScmRights(received) => fds.extend(received),
                _ => {}
            }
        }
        bytes.truncate(received.bytes);
        let is_whole = !received.flags.contains(ReturnFlags::TRUNC);
        let text = String::from_utf8(bytes).ok().filter(|_| is_whole);
        Ok(Heard {
            from: from.ok_or(rustix::io::Errno::NOMSG)?,
            // Nobody speaks in vain but whoever breaks the rules.
            text: text.unwrap_or_default(),
            fds,
        })
    }

    /// Tells the outer service manager, if there is one. To that one, this process is the main one.
    pub(super) fn pass_on(&self, text: &str, fds: Vec<OwnedFd>) {
        let Some(outer) = &self.outer else { return };
        let kept = text.lines().filter(|line| !line.starts_with("MAINPID="));
        let text = kept.collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            return;
        }
        // One that is full, or gone, hears of the next turn: nobody here waits for it.
        let _ = socket::transmit(outer.as_fd(), &Note { text, fds });
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.name);
        let _ = fs::remove_dir(&self.directory);
    }
}

impl AsFd for Ears {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Made where this user may write.
fn private_directory() -> io::Result<PathBuf> {
    let chance = RandomState::new().build_hasher().finish();
    let name = format!("handoff-keeper-{}-{chance:016x}", std::process::id());
    let mut refused = io::ErrorKind::NotFound.into();
    let own = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let shared = ["/run", "/tmp", "/dev/shm"].map(PathBuf::from);
    for place in own.into_iter().chain([env::temp_dir()]).chain(shared) {
        let directory = place.join(&name);
        // Longer, with what is in it, it would be no address.
        if !place.is_absolute() || directory.as_os_str().len() > MAX_UNIX_PATH - "/notify".len() {
            continue;
        }
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn datagram() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

fn outer() -> Option<OwnedFd> {
    let name = env::var_os(SOCKET_VARIABLE)?;
    let connect = || {
        let address = socket::address(&name)?;
        let connected = datagram().and_then(|socket| {
            rustix::net::connect(&socket, &address)?;
            Ok(socket)
        });
        connected.map_err(|e| e.to_string())
    };
    match connect() {
        Ok(socket) => Some(socket),
        Err(problem) => {
            say(format_args!(
                "NOTIFY_SOCKET, {}, is of no use: {problem}",
                name.display()
            ));
            None
        }
    }
}
