//! The socket of `NOTIFY_SOCKET`, from the side that speaks.
//!
//! Nobody ever waits for whoever should read: what the kernel does not take at once is queued, and written
//! by a task as soon as there is room. A socket that is not there, or that nobody reads, costs one line in the log.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::timeout,
};

use crate::registered::register;

/// What waits for a reader that is slow. One that has not read so much reads nothing.
const MAX_QUEUED: usize = 256;

/// One datagram.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) text: String,
    pub(crate) fds: Vec<OwnedFd>,
}

impl From<String> for Note {
    fn from(text: String) -> Self {
        Self { text, fds: vec![] }
    }
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Arc<AsyncFd<OwnedFd>>>,
    queue: VecDeque<Note>,
    /// A task writes what is queued.
    is_sending: bool,
    has_complained: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    address: SocketAddrUnix,
    name: String,
    state: Mutex<State>,
    emptied: Notify,
}

impl Outbox {
    /// For the socket of that name: a path, or `@` and an abstract name (sd_notify(3)).
    ///
    /// # Errors
    /// In words, if it can be neither.
    pub(super) fn new(name: &std::ffi::OsStr) -> Result<Arc<Self>, String> {
        let address = address(name)?;
        Ok(Arc::new(Self {
            address,
            name: name.to_string_lossy().into_owned(),
            state: Mutex::default(),
            emptied: Notify::new(),
        }))
    }

    /// Sends it, now or as soon as there is room. Must be called within a tokio runtime.
    pub(super) fn send(self: &Arc<Self>, note: impl Into<Note>) {
        let note = note.into();
        let mut state = self.state();
        if state.queue.len() >= MAX_QUEUED {
            return self.complain(&mut state, &"nobody reads it");
        }
        if state.queue.is_empty() && self.write(&mut state, &note) {
            return;
        }
        state.queue.push_back(note);
        if !std::mem::replace(&mut state.is_sending, true) {
            tokio::spawn(self.clone().pump());
        }
    }

    /// Waits until all that was said has been taken out of the socket by its reader, but no longer than `patience`.
    /// Says whether it has (sd_notify_barrier(3)).
    pub(super) async fn barrier(self: &Arc<Self>, patience: Duration) -> bool {
        let heard = timeout(patience, async {
            let (reader, writer) = io::pipe()?;
            self.send(Note {
                text: "BARRIER=1".to_owned(),
                fds: vec![writer.into()],
            });
            self.is_empty().await;
            // Its reader closes it: nobody else has the other end by then.
            let end = register(reader.into(), Interest::READABLE)?;
            end.readable().await?.retain_ready();
            io::Result::Ok(())
        });
        let problem = match heard.await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it has not answered for {patience:?}"),
        };
        self.complain(&mut self.state(), &problem);
        false
    }

    async fn is_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.state().queue.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Writes what is queued, as the reader makes room.
    async fn pump(self: Arc<Self>) {
        loop {
            let socket = {
                let mut state = self.state();
                while let Some(note) = state.queue.pop_front() {
                    if !self.write(&mut state, &note) {
                        state.queue.push_front(note);
                        break;
                    }
                }
                match state.socket.clone().filter(|_| !state.queue.is_empty()) {
                    Some(socket) => socket,
                    None => {
                        state.queue.clear();
                        state.is_sending = false;
                        break;
                    }
                }
            };
            if let Ok(mut ready) = socket.writable().await {
                // It was full: the next look must be at what changes from here on.
                ready.clear_ready();
            }
        }
        self.emptied.notify_waiters();
    }

    /// Whether there is nothing more to do about it: it was sent, or never will be.
    fn write(&self, state: &mut State, note: &Note) -> bool {
        // A service manager that was started anew has another socket behind the same name.
        for _ in 0..2 {
            let socket = match self.connected(state) {
                Ok(socket) => socket,
                Err(error) => {
                    self.complain(state, &error);
                    return true;
                }
            };
            match transmit(socket.get_ref().as_fd(), note) {
                Ok(()) => return true,
                Err(Errno::AGAIN | Errno::NOBUFS) => return false,
                Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE) => {
                    state.socket = None;
                }
                Err(error) => {
                    self.complain(state, &error);
                    return true;
                }
            }
        }
        self.complain(state, &Errno::CONNREFUSED);
        true
    }

    fn connected(&self, state: &mut State) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
        if let Some(socket) = &state.socket {
            return Ok(socket.clone());
        }
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&socket, &self.address)?;
        let socket = Arc::new(register(socket, Interest::WRITABLE)?);
        state.socket = Some(socket.clone());
        Ok(socket)
    }

    fn complain(&self, state: &mut State, problem: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut state.has_complained, true) {
            tracing::warn!(
                socket = self.name,
                problem = %problem,
                "cannot tell the service manager how this service is (NOTIFY_SOCKET); it serves all the same, and this is \
                 said once"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a value of `NOTIFY_SOCKET` means.
///
/// # Errors
/// In words, if nothing.
pub(crate) fn address(name: &std::ffi::OsStr) -> Result<SocketAddrUnix, String> {
    let bytes = name.as_bytes();
    let address = match bytes.split_first() {
        Some((b'@', abstract_name)) if !abstract_name.is_empty() => {
            SocketAddrUnix::new_abstract_name(abstract_name)
        }
        Some((b'/', _)) => SocketAddrUnix::new(bytes),
        _ => return Err("it is neither a path nor an abstract name (`@…`)".to_owned()),
    };
    address
        .map_err(|_| "it is longer than the address of a Unix socket may be (107 bytes)".to_owned())
}

/// Sends one datagram, or `EAGAIN`.
pub(crate) fn transmit(socket: BorrowedFd<'_>, note: &Note) -> Result<(), Errno> {
    let fds: Vec<BorrowedFd<'_>> = note.fds.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(&fds).size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let bytes = [IoSlice::new(note.text.as_bytes())];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(socket, &bytes, &mut control, flags) {
            Err(Errno::INTR) => {}
            sent => return sent.map(|_| ()),
        }
    }
}
