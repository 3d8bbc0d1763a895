//! Named listeners: inherited by name, or bound.
//!
//! The contract:
//! - **Names identify listeners, not addresses.** A listener on port 0 is the same listener in
//!   the next generation, whatever port it got.
//! - **Nothing inherited is disturbed before the commit.** An inherited socket is one open file
//!   description in two processes: it is never shut down, never made blocking, and its backlog
//!   is only raised ([`reconcile`]) until the caller owns it ([`Listener::settle`]).
//!   Closing our copy is always safe.
//! - **What cannot be bound beside the running generation is refused with the remedy**, before
//!   the first socket is bound.
//! - **A Unix socket's path is removed only while it still names the socket that was bound
//!   there** (device and inode, recorded at the bind and carried from generation to generation).
//!   The path of a living listener is thus never taken away, not even by its own parent.
//!
//! Every descriptor here is `CLOEXEC` and non-blocking.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

mod passed;

/// The backlog of a listener that asks for none.
///
/// mio's 128 overflows in a burst of connections, and an overflow costs a client one second
/// (the retry of its SYN). The kernel cuts this to `net.core.somaxconn`, whose own default is
/// 4096 (Linux 5.4): more would not be granted, less would give away what is.
pub const DEFAULT_BACKLOG: u32 = 4096;

/// The most listeners of one generation: all of them and the offer's own descriptors travel in
/// one message, which holds 253 (`SCM_MAX_FD`).
pub const MAX_LISTENERS: usize = 128;

/// The longest name of a listener, in bytes: it is shown in every status and log line.
pub const MAX_LISTENER_NAME: usize = 64;

/// The longest path of a Unix socket, in bytes: `sun_path` holds 108 with the final zero.
pub const MAX_UNIX_PATH: usize = 107;

/// How long to wait for another process that is binding in the same directory.
const DIRECTORY_LOCK_TRIES: u32 = 100;
const DIRECTORY_LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Where a listener listens.
///
/// Text form: `127.0.0.1:8321`, `[::1]:8321`, `unix:/run/x.sock`; on input also a path that
/// starts with `/`, `./` or `../`. Host names are not resolved: what they mean may change
/// between two generations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP address. Port 0 lets the kernel choose. `[::]` takes IPv4 too, whatever
    /// `net.ipv6.bindv6only` says; every other IPv6 address takes IPv6 only.
    Tcp(SocketAddr),
    /// A path in the file system. A relative one is made absolute when it is bound.
    Unix(PathBuf),
}

/// A text that is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address to listen on: {advice}")]
pub struct AddressError {
    text: String,
    advice: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |advice: String| AddressError {
            text: text.to_owned(),
            advice,
        };
        let bare_path = ["/", "./", "../"]
            .iter()
            .any(|start| text.starts_with(start));
        if let Some(path) = text.strip_prefix("unix:").or(bare_path.then_some(text)) {
            let path = PathBuf::from(path);
            unix_path_problem(&path).map_or(Ok(()), |problem| Err(error(problem)))?;
            return Ok(Self::Unix(path));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => Ok(Self::Tcp(address)),
            Err(_) => Err(error(tcp_advice(text))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What to write instead of `text`.
fn tcp_advice(text: &str) -> String {
    let port = |text: &str| text.parse::<u16>().is_ok();
    let number = text.strip_prefix(':').unwrap_or(text);
    if port(number) {
        return format!(
            "write the IP too: 127.0.0.1:{number}, or 0.0.0.0:{number} for every interface"
        );
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => return format!("the port is missing: {ip}:8321"),
        Ok(IpAddr::V6(ip)) => return format!("the port is missing: [{ip}]:8321"),
        Err(_) => {}
    }
    match text.rsplit_once(':') {
        Some((host, number)) if port(number) && host.contains(':') => {
            format!("an IPv6 address is written in brackets: [::1]:{number}")
        }
        Some((_, number)) if port(number) => {
            format!(
                "names are not resolved: write an IP, as in 127.0.0.1:{number} or [::1]:{number}"
            )
        }
        Some((_, number)) if number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty() => {
            "a port is at most 65535".to_owned()
        }
        _ => "write 127.0.0.1:8321, [::1]:8321 or unix:/run/hello.sock".to_owned(),
    }
}

/// Why `path` cannot be the path of a Unix socket.
fn unix_path_problem(path: &Path) -> Option<String> {
    let Some(text) = path.to_str() else {
        return Some("the path is not UTF-8".to_owned());
    };
    if text.is_empty() || text.ends_with('/') {
        return Some("the path of the socket is missing: unix:/run/hello.sock".to_owned());
    }
    if text.starts_with('@') || text.contains('\0') {
        return Some("abstract sockets are not supported: name a path".to_owned());
    }
    (text.len() > MAX_UNIX_PATH).then(|| {
        let length = text.len();
        format!("the path has {length} bytes, a Unix socket's at most {MAX_UNIX_PATH}: name a shorter one")
    })
}

/// A listener as the configuration wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Identifies the listener from generation to generation: 1 to [`MAX_LISTENER_NAME`] of
    /// `a-z`, `0-9`, `_`, `.`, `-`.
    pub name: String,
    /// Where.
    pub address: Address,
    /// How many connections the kernel keeps until they are accepted, cut to
    /// `net.core.somaxconn`.
    pub backlog: u32,
    /// Permissions of a Unix socket's path, set before the first client can connect.
    /// `None`: as the umask has it. Not for TCP.
    pub mode: Option<u32>,
}

impl Spec {
    /// A listener with the [`DEFAULT_BACKLOG`].
    pub fn new(name: impl Into<String>, address: Address) -> Self {
        Self {
            name: name.into(),
            address,
            backlog: DEFAULT_BACKLOG,
            mode: None,
        }
    }

    /// What is wrong with it, if anything; its address made absolute otherwise.
    pub(crate) fn checked(&self) -> Result<Self, BindError> {
        if !name_is_valid(&self.name) {
            return Err(BindError::Name {
                name: self.name.clone(),
            });
        }
        let invalid = |problem: String| BindError::Invalid {
            target: Target::of(self),
            problem,
        };
        let address = match &self.address {
            Address::Unix(path) if path.is_relative() && !path.as_os_str().is_empty() => {
                let path = std::path::absolute(path)
                    .map_err(|error| invalid(format!("the working directory is gone ({error})")))?;
                Address::Unix(path)
            }
            address => address.clone(),
        };
        let problem = match &address {
            _ if self.backlog == 0 || i32::try_from(self.backlog).is_err() => Some(format!(
                "a backlog of {} is not possible: at least 1",
                self.backlog
            )),
            Address::Unix(path) => unix_path_problem(path),
            Address::Tcp(_) if self.mode.is_some() => {
                Some("only a Unix socket has permissions".to_owned())
            }
            Address::Tcp(SocketAddr::V6(v6)) => v6
                .ip()
                .to_ipv4_mapped()
                .map(|v4| format!("an IPv4 address is written as such: {v4}:{}", v6.port())),
            Address::Tcp(SocketAddr::V4(_)) => None,
        };
        match problem {
            Some(problem) => Err(invalid(problem)),
            None => Ok(Self {
                address,
                ..self.clone()
            }),
        }
    }
}

fn name_is_valid(name: &str) -> bool {
    let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
    (1..=MAX_LISTENER_NAME).contains(&name.len()) && name.bytes().all(allowed)
}

/// Which listener an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Address,
}

impl Target {
    fn of(spec: &Spec) -> Box<Self> {
        Self::new(&spec.name, &spec.address)
    }

    fn new(name: &str, address: &Address) -> Box<Self> {
        Box::new(Self {
            name: name.to_owned(),
            address: address.clone(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listener `{}` on {}", self.name, self.address)
    }
}

/// Why the listeners could not be had. Nothing inherited was changed, nothing bound is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The name breaks the rule.
    #[error(
        "`{name}` cannot name a listener: use 1 to {MAX_LISTENER_NAME} of a-z, 0-9, `_`, `.`, `-`"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two listeners of the configuration have one name.
    #[error("two listeners are named `{name}`: rename one of them")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More than [`MAX_LISTENERS`].
    #[error("{count} listeners: at most {MAX_LISTENERS} are possible")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The address, backlog or mode is impossible or not permitted.
    #[error("{target}: {problem}")]
    Invalid {
        /// Which.
        target: Box<Target>,
        /// Why, and what to do.
        problem: String,
    },
    /// Two listeners of the configuration want the same.
    #[error("{target} overlaps {other}: remove one of them")]
    Overlap {
        /// The later one.
        target: Box<Target>,
        /// The earlier one.
        other: Box<Target>,
    },
    /// The running generation holds the address under another name, or one that overlaps it.
    #[error(
        "{target} cannot be bound beside the running generation's {other}: {remedy}, or stop and start"
    )]
    Beside {
        /// The one to bind.
        target: Box<Target>,
        /// The running one.
        other: Box<Target>,
        /// What to do.
        remedy: String,
    },
    /// Another process listens there.
    #[error(
        "{target}: in use by another process: stop that one ({finder} names it), or choose another address"
    )]
    InUse {
        /// Which.
        target: Box<Target>,
        /// The command that names the process.
        finder: String,
    },
    /// Anything else.
    #[error("{target}: cannot {step}")]
    Io {
        /// Which.
        target: Box<Target>,
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl BindError {
    /// The name of the listener that it is about, if it is about one.
    #[must_use]
    pub fn listener(&self) -> Option<&str> {
        match self {
            Self::Name { name } | Self::Duplicate { name } => Some(name),
            Self::TooMany { .. } => None,
            Self::Invalid { target, .. }
            | Self::Overlap { target, .. }
            | Self::Beside { target, .. }
            | Self::InUse { target, .. }
            | Self::Io { target, .. } => Some(&target.name),
        }
    }
}

/// What kind of socket a listener is. New kinds are appended: it is part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `AF_INET` or `AF_INET6`, `SOCK_STREAM`, listening.
    Tcp,
    /// `AF_UNIX`, `SOCK_STREAM`, listening, bound to a path.
    Unix,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "a TCP listener",
            Self::Unix => "a Unix listener",
        })
    }
}

/// A file by identity. An inode is not used again while a socket bound to it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl FileId {
    /// The file at `path`, itself rather than what a symlink points to.
    ///
    /// # Errors
    /// Those of lstat(2).
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self {
            dev: file.dev(),
            ino: file.ino(),
        })
    }
}

/// A listener in the offer's manifest. Its descriptor travels beside it, in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// The address it really has, as [`Address`] prints it.
    pub address: String,
    /// Its backlog, as it was asked for.
    pub backlog: u32,
    /// The file that the bind made for a Unix socket.
    pub file: Option<FileId>,
}

/// Why a received descriptor is not the listener that was announced. It is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The announced name breaks the rule.
    #[error("an offered listener has the invalid name `{name}`")]
    Name {
        /// The name.
        name: String,
    },
    /// Not a socket, or another kind of socket.
    #[error("the descriptor of listener `{name}` is not {expected}")]
    Kind {
        /// The listener's name.
        name: String,
        /// What was announced.
        expected: Kind,
    },
    /// The right kind, but not listening.
    #[error("the socket of listener `{name}` does not listen")]
    NotListening {
        /// The listener's name.
        name: String,
    },
    /// Bound to another address.
    #[error("listener `{name}` was announced on {expected}, its socket is on {found}")]
    Address {
        /// The listener's name.
        name: String,
        /// As announced.
        expected: String,
        /// As the kernel says.
        found: String,
    },
    /// A system call failed.
    #[error("cannot examine the socket of listener `{name}`")]
    Io {
        /// The listener's name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// [`Listener::into_tcp`] of a Unix listener, or the reverse.
#[derive(Debug, thiserror::Error)]
#[error("listener `{name}` is {found}, not {wanted}")]
pub struct KindError {
    name: String,
    found: Kind,
    wanted: Kind,
}

/// A listening socket. Dropping it closes this copy and nothing else: neither the copies of
/// other processes nor the path of a Unix socket ([`Listener::unlink`]).
#[derive(Debug)]
pub struct Listener {
    name: String,
    kind: Kind,
    fd: OwnedFd,
    address: Address,
    backlog: u32,
    file: Option<FileId>,
}

impl Listener {
    /// Binds and listens.
    ///
    /// A Unix socket that nobody listens on any more (its server was killed) is replaced.
    /// May wait, at most a second, for a process that binds in the same directory: blocking.
    ///
    /// # Errors
    /// [`BindError`], and then nothing is left behind.
    pub fn bind(spec: &Spec) -> Result<Self, BindError> {
        let spec = spec.checked()?;
        let (socket, file) = match &spec.address {
            Address::Tcp(address) => (bind_tcp(&spec, *address)?, None),
            Address::Unix(path) => bind_unix(&spec, path).map(|(socket, id)| (socket, Some(id)))?,
        };
        let (kind, address) = match &spec.address {
            Address::Unix(_) => (Kind::Unix, spec.address.clone()),
            Address::Tcp(asked) => {
                // Port 0 has become a real one.
                let actual = socket
                    .local_addr()
                    .map_err(|e| io_error(&spec, "read its address", e))?;
                (
                    Kind::Tcp,
                    Address::Tcp(actual.as_socket().unwrap_or(*asked)),
                )
            }
        };
        let (name, backlog) = (spec.name, spec.backlog);
        Ok(Self {
            name,
            kind,
            fd: socket.into(),
            address,
            backlog,
            file,
        })
    }

    /// Takes a received descriptor for what `described` says it is.
    ///
    /// # Errors
    /// [`CheckError`] if it is anything else.
    pub fn check(fd: OwnedFd, described: &Described) -> Result<Self, CheckError> {
        let name = described.name.clone();
        if !name_is_valid(&name) {
            return Err(CheckError::Name { name });
        }
        let kind = described.kind;
        if kind_of(fd.as_fd()) != Some(kind) {
            return Err(CheckError::Kind {
                name,
                expected: kind,
            });
        }
        let io = |source: io::Error| CheckError::Io {
            name: name.clone(),
            source,
        };
        if !sockopt::socket_acceptconn(&fd).map_err(|e| io(e.into()))? {
            return Err(CheckError::NotListening { name });
        }
        let found = address_of(fd.as_fd()).map_err(io)?;
        let address = match found {
            Some(address) if address.to_string() == described.address => address,
            found => {
                let found = found.map_or_else(|| "no path".to_owned(), |found| found.to_string());
                return Err(CheckError::Address {
                    name,
                    expected: described.address.clone(),
                    found,
                });
            }
        };
        make_nonblocking(fd.as_fd()).map_err(io)?;
        Ok(Self {
            name,
            kind,
            fd,
            address,
            backlog: described.backlog,
            file: described.file,
        })
    }

    /// Its entry in the manifest.
    #[must_use]
    pub fn describe(&self) -> Described {
        Described {
            name: self.name.clone(),
            kind: self.kind,
            address: self.address.to_string(),
            backlog: self.backlog,
            file: self.file,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The address that it really has: port 0 has become a real one.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its backlog, as it was asked for.
    #[must_use]
    pub fn backlog(&self) -> u32 {
        self.backlog
    }

    /// A second descriptor of the same socket, to accept on one and pass the other on.
    ///
    /// epoll reports a closed descriptor as long as a duplicate lives: deregister first.
    ///
    /// # Errors
    /// Those of fcntl(2), `EMFILE` above all.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            kind: self.kind,
            fd: self.fd.try_clone()?,
            address: self.address.clone(),
            backlog: self.backlog,
            file: self.file,
        })
    }

    /// Applies the configured backlog, also where it is a smaller one. For after the commit:
    /// until then the socket is the parent's, whose backlog must not shrink.
    ///
    /// # Errors
    /// Those of listen(2).
    pub fn settle(&self) -> io::Result<()> {
        SockRef::from(&self.fd).listen(clamp(self.backlog))
    }

    /// Removes the path of a Unix socket if it is still this socket's; says whether it did.
    /// To be called before this copy is closed: as long as it is open its inode is not reused.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&self) -> io::Result<bool> {
        match (&self.address, self.file) {
            (Address::Unix(path), Some(file)) => unlink_if_ours(path, file),
            _ => Ok(false),
        }
    }

    /// The socket, for `tokio::net::TcpListener::from_std`. It is non-blocking.
    ///
    /// # Errors
    /// [`KindError`] if it is a Unix listener.
    pub fn into_tcp(self) -> Result<std::net::TcpListener, KindError> {
        self.into_kind(Kind::Tcp).map(Into::into)
    }

    /// The socket, for `tokio::net::UnixListener::from_std`. It is non-blocking.
    ///
    /// # Errors
    /// [`KindError`] if it is a TCP listener.
    pub fn into_unix(self) -> Result<std::os::unix::net::UnixListener, KindError> {
        self.into_kind(Kind::Unix).map(Into::into)
    }

    fn into_kind(self, wanted: Kind) -> Result<OwnedFd, KindError> {
        if self.kind == wanted {
            Ok(self.fd)
        } else {
            Err(KindError {
                name: self.name,
                found: self.kind,
                wanted,
            })
        }
    }

    /// Whether the configuration means this very socket.
    pub(crate) fn satisfies(&self, spec: &Spec) -> bool {
        match (&spec.address, &self.address) {
            (Address::Tcp(wanted), Address::Tcp(actual)) => {
                let mut wanted = *wanted;
                if wanted.port() == 0 {
                    wanted.set_port(actual.port());
                }
                wanted == *actual
            }
            // A path that somebody removed or replaced leads no client here any more:
            // the reload that binds it again heals that.
            (Address::Unix(wanted), Address::Unix(actual)) => {
                wanted == actual && self.is_reachable()
            }
            _ => false,
        }
    }

    /// Whether a Unix socket's path still leads to it.
    fn is_reachable(&self) -> bool {
        match (&self.address, self.file) {
            (Address::Unix(path), Some(file)) => FileId::of(path).is_ok_and(|found| found == file),
            _ => true,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the new configuration makes of the inherited listeners.
#[derive(Debug)]
pub struct Reconciled {
    /// One for each spec, in that order.
    pub listeners: Vec<Listener>,
    /// Names of those that are the parent's sockets.
    pub kept: Vec<String>,
    /// Names of those that were bound now. A name whose address has changed is here, and its
    /// old socket under `removed`.
    pub added: Vec<String>,
    /// Inherited, and not wanted any more. Accepted from until `Confirm`, then closed.
    pub removed: Vec<Listener>,
}

/// Looks at a configuration by itself, and binds nothing: names, number, addresses, and whether two want the same. What else
/// may stand in the way of a bind is found by binding.
///
/// # Errors
/// The first [`BindError`].
pub fn check(specs: &[Spec]) -> Result<(), BindError> {
    checked(specs).map(drop)
}

fn checked(specs: &[Spec]) -> Result<Vec<Spec>, BindError> {
    let specs = specs
        .iter()
        .map(Spec::checked)
        .collect::<Result<Vec<_>, _>>()?;
    check_specs(&specs)?;
    Ok(specs)
}

/// Matches the configuration with what was inherited, by name, and binds the rest.
///
/// A kept listener whose backlog has grown gets the larger one now; a smaller one waits for
/// [`Listener::settle`]. Blocking, like [`Listener::bind`].
///
/// # Errors
/// The first [`BindError`]. All checks come before the first bind; what was bound is closed
/// and its path removed; inherited sockets are as they were.
pub fn reconcile(specs: &[Spec], mut inherited: Vec<Listener>) -> Result<Reconciled, BindError> {
    let specs = checked(specs)?;
    let is_kept = |spec: &Spec, old: &Listener| old.name == spec.name && old.satisfies(spec);
    for spec in &specs {
        if !inherited.iter().any(|old| is_kept(spec, old)) {
            check_beside(spec, &inherited)?;
        }
    }
    let (mut listeners, mut kept, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for spec in &specs {
        if let Some(index) = inherited.iter().position(|old| is_kept(spec, old)) {
            listeners.push(inherited.remove(index));
            kept.push(spec.name.clone());
            continue;
        }
        match Listener::bind(spec) {
            Ok(listener) => listeners.push(listener),
            Err(error) => {
                unlink_all(&listeners, &added);
                return Err(error);
            }
        }
        added.push(spec.name.clone());
    }
    // Last, so that a failure above has changed nothing.
    for (listener, spec) in listeners.iter_mut().zip(&specs) {
        let grows = spec.backlog > listener.backlog;
        listener.backlog = spec.backlog;
        if grows && let Err(error) = listener.settle() {
            tracing::warn!(listener = spec.name, %error, "cannot raise the backlog");
        }
    }
    Ok(Reconciled {
        listeners,
        kept,
        added,
        removed: inherited,
    })
}

/// Removes the paths of those `listeners` that were bound just now.
fn unlink_all(listeners: &[Listener], added: &[String]) {
    for listener in listeners
        .iter()
        .filter(|listener| added.contains(&listener.name))
    {
        if let Err(error) = listener.unlink() {
            tracing::warn!(listener = listener.name, %error, "cannot remove the socket's path");
        }
    }
}

/// Removes `path` only if it is still the file `id`; says whether it did.
///
/// # Errors
/// Those of unlink(2), but for a path that is gone already.
pub fn unlink_if_ours(path: &Path, id: FileId) -> io::Result<bool> {
    match FileId::of(path) {
        Ok(found) if found == id => fs::remove_file(path).map(|()| true),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The configuration by itself: number, names, addresses.
fn check_specs(specs: &[Spec]) -> Result<(), BindError> {
    if specs.len() > MAX_LISTENERS {
        return Err(BindError::TooMany { count: specs.len() });
    }
    for (index, spec) in specs.iter().enumerate() {
        for other in &specs[..index] {
            if other.name == spec.name {
                return Err(BindError::Duplicate {
                    name: spec.name.clone(),
                });
            }
            if overlap(&spec.address, &other.address) {
                return Err(BindError::Overlap {
                    target: Target::of(spec),
                    other: Target::of(other),
                });
            }
        }
    }
    Ok(())
}

/// Whether `spec` can be bound while the running generation has what it has.
fn check_beside(spec: &Spec, inherited: &[Listener]) -> Result<(), BindError> {
    let in_the_way = |old: &&Listener| overlap(&spec.address, &old.address) && old.is_reachable();
    let Some(old) = inherited.iter().find(in_the_way) else {
        return Ok(());
    };
    let other = Target::new(&old.name, &old.address);
    let remedy = if spec.address == old.address {
        format!("keep the name `{}`", old.name)
    } else {
        "use another port, or keep the address".to_owned()
    };
    Err(BindError::Beside {
        target: Target::of(spec),
        other,
        remedy,
    })
}

/// Whether two sockets cannot listen on both. Port 0 never collides.
fn overlap(a: &Address, b: &Address) -> bool {
    let (a, b) = match (a, b) {
        (Address::Unix(a), Address::Unix(b)) => return a == b,
        (Address::Tcp(a), Address::Tcp(b)) => (a, b),
        _ => return false,
    };
    if a.port() != b.port() || a.port() == 0 {
        return false;
    }
    match (a, b) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => {
            a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified()
        }
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            let same = a.ip() == b.ip() && a.scope_id() == b.scope_id();
            same || a.ip().is_unspecified() || b.ip().is_unspecified()
        }
        // `[::]` takes IPv4 too.
        (SocketAddr::V6(v6), SocketAddr::V4(_)) | (SocketAddr::V4(_), SocketAddr::V6(v6)) => {
            v6.ip().is_unspecified()
        }
    }
}

fn bind_tcp(spec: &Spec, address: SocketAddr) -> Result<Socket, BindError> {
    let step = |step| move |error| io_error(spec, step, error);
    let socket = new_socket(spec, Domain::for_address(address))?;
    // Else connections of a predecessor in TIME_WAIT keep the port.
    socket
        .set_reuse_address(true)
        .map_err(step("set SO_REUSEADDR"))?;
    if let SocketAddr::V6(v6) = address {
        let only_v6 = !v6.ip().is_unspecified();
        socket
            .set_only_v6(only_v6)
            .map_err(step("set IPV6_V6ONLY"))?;
    }
    socket.bind(&address.into()).map_err(step("bind"))?;
    socket.listen(clamp(spec.backlog)).map_err(step("listen"))?;
    Ok(socket)
}

/// Bind, permissions, listen: in this order nobody connects before the permissions are right.
fn bind_unix(spec: &Spec, path: &Path) -> Result<(Socket, FileId), BindError> {
    let step = |step| move |error| io_error(spec, step, error);
    // Between bind and listen a socket looks stale: without the lock, two servers that start
    // at once might each unlink the other's.
    let _lock = lock_directory(path).map_err(step("open the directory of the path"))?;
    clear_stale(spec, path)?;
    let socket = new_socket(spec, Domain::UNIX)?;
    let address = SockAddr::unix(path).map_err(step("use the path"))?;
    socket.bind(&address).map_err(step("bind"))?;
    let file = FileId::of(path).map_err(step("find what was just bound"))?;
    let ready = match spec.mode {
        Some(mode) => fs::set_permissions(path, Permissions::from_mode(mode)),
        None => Ok(()),
    };
    let ready = ready.map_err(step("set the permissions"));
    let ready = ready.and_then(|()| socket.listen(clamp(spec.backlog)).map_err(step("listen")));
    if let Err(error) = ready {
        // What is wrong is said by `error`; a path left behind would be replaced next time.
        let _ = unlink_if_ours(path, file);
        return Err(error);
    }
    Ok((socket, file))
}

/// CLOEXEC from the first moment, non-blocking before anybody else has a copy.
fn new_socket(spec: &Spec, domain: Domain) -> Result<Socket, BindError> {
    let socket =
        Socket::new(domain, Type::STREAM, None).map_err(|e| io_error(spec, "make a socket", e))?;
    socket
        .set_nonblocking(true)
        .map_err(|e| io_error(spec, "make the socket non-blocking", e))?;
    Ok(socket)
}

/// Holds off other processes that bind in the same directory, until it is dropped.
/// `None` if it cannot be had: binding works without, only less surely.
fn lock_directory(path: &Path) -> io::Result<Option<fs::File>> {
    let directory = match fs::File::open(path.parent().unwrap_or(Path::new("/"))) {
        Ok(directory) => directory,
        // Writable, but not readable.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(error),
    };
    for _ in 0..DIRECTORY_LOCK_TRIES {
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Some(directory));
        }
        // Not a wait for ours, who holds it for microseconds, but for strangers
        // (systemd-tmpfiles locks the directories it cleans).
        std::thread::sleep(DIRECTORY_LOCK_PAUSE);
    }
    Ok(None)
}

/// Removes a socket that nobody listens on; refuses whatever else is there.
fn clear_stale(spec: &Spec, path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(spec, "look at the path", error)),
    };
    if !found.file_type().is_socket() {
        let problem = "something else is at that path: remove it, or choose another".to_owned();
        return Err(BindError::Invalid {
            target: Target::of(spec),
            problem,
        });
    }
    let probe = new_socket(spec, Domain::UNIX)?;
    let address = SockAddr::unix(path).map_err(|e| io_error(spec, "use the path", e))?;
    // Non-blocking: a full backlog is EAGAIN, which is somebody too.
    match probe.connect(&address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let id = FileId {
                dev: found.dev(),
                ino: found.ino(),
            };
            unlink_if_ours(path, id).map_err(|e| io_error(spec, "remove the stale socket", e))?;
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(io_error(spec, "ask who listens there", error))
        }
        _ => Err(io_error(spec, "bind", io::ErrorKind::AddrInUse.into())),
    }
}

/// `error` in words that say what to do.
fn io_error(spec: &Spec, step: &'static str, source: io::Error) -> BindError {
    let target = Target::of(spec);
    let problem = match (source.kind(), &spec.address) {
        (io::ErrorKind::AddrInUse, address) => {
            let finder = match address {
                Address::Tcp(address) => format!("`ss -ltnp sport = :{}`", address.port()),
                Address::Unix(path) => format!("`ss -lxp src {}`", path.display()),
            };
            return BindError::InUse { target, finder };
        }
        (io::ErrorKind::PermissionDenied, Address::Tcp(_)) => {
            "permission denied: ports below 1024 need CAP_NET_BIND_SERVICE, or choose one above"
        }
        (io::ErrorKind::PermissionDenied, Address::Unix(_)) => {
            "permission denied: the directory, or the socket in it, is not this user's"
        }
        (io::ErrorKind::NotFound, Address::Unix(_)) => "its directory does not exist: create it",
        (io::ErrorKind::AddrNotAvailable, _) => "no interface of this machine has that address",
        _ => {
            return BindError::Io {
                target,
                step,
                source,
            };
        }
    };
    BindError::Invalid {
        target,
        problem: problem.to_owned(),
    }
}

/// Which kind of socket `fd` is, listening or not; `None` for everything else.
fn kind_of(fd: BorrowedFd<'_>) -> Option<Kind> {
    let family = sockopt::socket_domain(fd).ok()?;
    if sockopt::socket_type(fd).ok()? != SocketType::STREAM {
        return None;
    }
    match family {
        AddressFamily::INET | AddressFamily::INET6 => Some(Kind::Tcp),
        AddressFamily::UNIX => Some(Kind::Unix),
        _ => None,
    }
}

/// Where `fd` is bound; `None` for a Unix socket without a path.
fn address_of(fd: BorrowedFd<'_>) -> io::Result<Option<Address>> {
    let address = SockRef::from(&fd).local_addr()?;
    let tcp = address.as_socket().map(Address::Tcp);
    Ok(tcp.or_else(|| {
        address
            .as_pathname()
            .map(|path| Address::Unix(path.to_owned()))
    }))
}

/// The flag belongs to the open file description, which the parent shares: set, never cleared.
fn make_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    if !flags.contains(rustix::fs::OFlags::NONBLOCK) {
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    Ok(())
}

fn clamp(backlog: u32) -> i32 {
    i32::try_from(backlog).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
