//! A service manager that only listens: the other end of `NOTIFY_SOCKET`, as systemd has it.

use std::{
    io::IoSliceMut,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::net::UnixDatagram,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, setsockopt, sockopt};
use tempfile::TempDir;

use super::{Hello, LONG, Start};

/// One datagram.
#[derive(Debug)]
pub struct Note {
    /// Who sent it, by the kernel's word.
    pub from: u32,
    pub text: String,
    fds: Vec<OwnedFd>,
}

impl Note {
    pub fn says(&self, line: &str) -> bool {
        self.text.lines().any(|said| said == line)
    }

    pub fn value(&self, variable: &str) -> Option<String> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(variable)?.strip_prefix('='))
            .map(str::to_owned)
    }

    /// Where the sockets that came with it listen.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        let address = |fd: &OwnedFd| {
            let listener = TcpListener::from(fd.try_clone().expect("dup"));
            listener.local_addr().expect("an address")
        };
        self.fds.iter().map(address).collect()
    }
}

/// See the module.
pub struct Manager {
    dir: TempDir,
    socket: UnixDatagram,
    heard: Vec<Note>,
}

impl Manager {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("bind");
        setsockopt(&socket, sockopt::PassCred, &true).expect("SO_PASSCRED");
        socket.set_read_timeout(Some(LONG)).expect("timeout");
        Self {
            dir,
            socket,
            heard: Vec::new(),
        }
    }

    pub fn name(&self) -> String {
        let path = self.dir.path().join("notify");
        path.to_str().expect("a path").to_owned()
    }

    /// Starts a service under it.
    pub fn start(&self, start: Start) -> Hello {
        start.env("NOTIFY_SOCKET", &self.name()).start()
    }

    /// What is said until then: the last one is what was waited for. A barrier falls as soon as it is heard.
    pub fn until(&mut self, mut is_last: impl FnMut(&Note) -> bool) -> Vec<Note> {
        let mut said = Vec::new();
        loop {
            let mut note = self.receive().expect("a notification");
            if note.says("BARRIER=1") {
                note.fds.clear();
            }
            let last = is_last(&note);
            self.heard.push(Note {
                from: note.from,
                text: note.text.clone(),
                fds: vec![],
            });
            said.push(note);
            if last {
                return said;
            }
        }
    }

    /// Hears what has been said.
    pub fn take(&mut self) {
        self.socket.set_nonblocking(true).expect("nonblocking");
        while let Some(note) = self.receive() {
            self.heard.push(note);
        }
        self.socket.set_nonblocking(false).expect("blocking");
    }

    /// All that was heard, without descriptors.
    pub fn heard(&self) -> &[Note] {
        &self.heard
    }

    #[allow(unsafe_code, reason = "nix gives received descriptors as numbers")]
    fn receive(&self) -> Option<Note> {
        let mut bytes = [0; 4096];
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials, [i32; 16]);
        let received = recvmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .ok()?;
        let (mut from, mut fds) = (0, Vec::new());
        for message in received.cmsgs().expect("control messages") {
            match message {
                ControlMessageOwned::ScmCredentials(c) => from = c.pid().cast_unsigned(),
                ControlMessageOwned::ScmRights(received) => {
                    // SAFETY: the kernel has just installed them for this process.
                    fds.extend(
                        received
                            .into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
                _ => {}
            }
        }
        let length = received.bytes;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        Some(Note { from, text, fds })
    }
}
