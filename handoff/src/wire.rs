//! What parent and child say to each other, byte by byte.
//!
//! A message is a 24-byte [header](HEADER_LEN) and a body, in one SOCK_SEQPACKET
//! record, with its descriptors in the same record's `SCM_RIGHTS`. The header and the
//! bodies of `Hello`, `Refuse`, `Abort` and `Stop` are laid out by hand and frozen for all
//! versions: they carry the negotiation, and the words in which it fails. All other
//! bodies are of the negotiated version and encoded by `codec`.
//!
//! ```text
//! offset  0     4        6       8          16         20        22
//!         magic version  kind    number     body len   fds       zero
//!         u32   u16      u16     u64        u32        u16       u16      (little-endian)
//! ```
//!
//! `number` counts the messages of one direction from 1: a gap is a lost message, and
//! ends the conversation.

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, CodecError},
    control::message::{ConnectionCounts, Generation},
    listeners::Described,
    state::{Deltas, Manifest},
};

/// The protocol versions that this build speaks.
pub(crate) const VERSIONS: RangeInclusive<u16> = 1..=1;

/// The longest message, header included, in bytes.
///
/// A Unix datagram must fit into `SO_SNDBUF` with the kernel's bookkeeping; the default of
/// 212,992 bytes takes 212,960. 128 KiB leaves room on systems that lowered it somewhat.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;

/// Payloads up to this size travel inside the message, larger ones in a sealed memfd.
pub(crate) const MAX_INLINE: usize = 64 * 1024;

/// `SCM_MAX_FD` of the kernel: one descriptor more is EINVAL.
pub(crate) const MAX_FDS: usize = 253;

/// The length of the header in bytes.
pub(crate) const HEADER_LEN: usize = 24;

/// The longest reason and build id, in bytes; longer text is cut.
const MAX_TEXT: usize = 4096;

const MAGIC: u32 = u32::from_le_bytes(*b"HOFF");

/// The version that frozen messages carry.
pub(crate) const FROZEN: u16 = 0;

/// First words of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The oldest version it speaks.
    pub oldest: u16,
    /// The newest version it speaks.
    pub newest: u16,
    /// Its pid, as it sees it.
    pub pid: u32,
    /// What it calls its build.
    pub build: String,
}

impl Hello {
    /// The newest version that both sides speak.
    #[must_use]
    pub(crate) fn choose(&self, ours: &RangeInclusive<u16>) -> Option<u16> {
        let newest = self.newest.min(*ours.end());
        (newest >= self.oldest && newest >= *ours.start()).then_some(newest)
    }
}

/// The most older generations that may drain at once. Each is a process with its memory, and the status line of
/// one more would help nobody: a reload has to wait for the oldest then.
pub(crate) const MAX_DRAINING: usize = 8;

/// How many connections of a draining generation are named: enough to see what keeps it.
pub(crate) const MAX_WAITING_NAMED: usize = 5;

/// An older generation that still drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Older {
    /// Which.
    pub(crate) process: Generation,
    /// How many connections it still serves.
    pub(crate) waiting_for: u64,
    /// The first of what is under way there, by peer and request.
    pub(crate) named: Vec<String>,
}

/// What the parent gives a child before it boots. Descriptors, in this order: one for each
/// listener; the lock and the control listener if there is a pidfile; the real stderr; the
/// reading end of the pipe that is the child's stderr; the parent's pidfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// This reload's id.
    pub reload: u64,
    /// The parent.
    pub parent: Generation,
    /// In the order of their descriptors.
    pub listeners: Vec<Described>,
    /// The pidfile that both processes must agree on, as bytes; `None` if there is none,
    /// and then neither lock nor control listener is passed.
    pub pidfile: Option<Vec<u8>>,
    /// Who still drains into the parent, the youngest first.
    pub(crate) older: Vec<Older>,
    /// How long the parent waits for `Ready`, in milliseconds. The child's own deadlines
    /// exceed it.
    pub ready_timeout_ms: u64,
    /// How long the parent drains before it cuts, in milliseconds. So long has a revoked child, too.
    pub drain_timeout_ms: u64,
    /// How long the child is on probation, in milliseconds.
    pub probation_ms: u64,
    /// What became of the reload before this one, as `status` says it (JSON): whoever still wants to know will ask the
    /// child, which has the control socket.
    pub last_reload: Option<Vec<u8>>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commit {
    /// What changed since the snapshot.
    pub(crate) changes: Changes,
    /// How many connections the parent has: the child counts them among its own until they have come.
    pub(crate) waiting_for: u64,
    /// Who still drains into the parent, the youngest first.
    pub(crate) older: Vec<Older>,
}

/// What the child will do with the listeners, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepared {
    /// Listeners of the offer that it serves.
    pub kept: Vec<String>,
    /// Listeners that it bound.
    pub added: Vec<String>,
    /// Listeners of the offer that it does not want.
    pub removed: Vec<String>,
}

/// Changes of the state: inside the message, or in its one descriptor, a sealed memfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Changes {
    /// They are here.
    Inline(Deltas),
    /// They are in the descriptor: [`Deltas`] in the same encoding, of this length.
    Sealed {
        /// In bytes.
        length: u64,
    },
}

/// Which of the two kinds of watch message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Health {
    /// Parent to child: are you well?
    Ask {
        /// Repeated in the answer.
        number: u64,
        /// How many connections the parent has now: the child counts them among its own.
        waiting_for: u64,
    },
    /// Child to parent.
    Answer {
        /// The number of the question.
        number: u64,
        /// `None` when well.
        ill: Option<String>,
    },
}

/// How an operator ends a probation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decision {
    /// Now, and well.
    Confirm,
    /// The parent serves again.
    Rollback,
}

/// One connection of a batch; its descriptor is at the same place in the message, after the
/// memfd if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionEntry {
    /// What is spoken on it, e.g. `http/1.1`: the child adopts only kinds that it knows.
    pub kind: String,
    /// The listener that accepted it, by name.
    pub listener: String,
    /// The client's address as the parent knew it; `None` for a Unix socket without a name.
    pub peer: Option<String>,
    /// Bytes that were read and not yet consumed, outermost layer first: the length of
    /// each, in the batch's bytes.
    pub layers: Vec<u32>,
    /// Timers that run on this connection: name and time spent, in milliseconds.
    pub timers: Vec<(String, u64)>,
    /// The application's own data: the length, in the batch's bytes, after the layers.
    pub data: u32,
}

/// A batch of connections at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// Ascending from 1, without a gap; `Rest` and `Conn` are counted together.
    pub number: u64,
    /// In the order of their descriptors.
    pub connections: Vec<ConnectionEntry>,
    /// All leftover bytes and application data, one after the other; `None` when they are in the
    /// sealed memfd that is the message's first descriptor.
    pub bytes: Option<Vec<u8>>,
    /// How many there are.
    pub bytes_len: u64,
}

/// "I own these", except for those refused by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchAck {
    /// The batch.
    pub number: u64,
    /// Position in the batch, and why.
    pub refused: Vec<(u32, String)>,
}

/// State that changed after the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// Ascending from 1, without a gap; `Rest` and `Conn` are counted together.
    pub number: u64,
    /// What changed.
    pub changes: Changes,
}

/// The channel of an older generation that still drains. Descriptors: the channel, and that process's pidfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inherited {
    /// Counted together with `Rest` and `Conn`.
    pub number: u64,
    /// Who is at the other end.
    pub from: Generation,
    /// The reload in which it was replaced.
    pub reload: u64,
    /// The version spoken on it.
    pub version: u16,
    /// The number of the last message sent on it.
    pub sent: u64,
    /// The number of the last message received on it.
    pub received: u64,
    /// The number of the last `Rest`, `Conn` or `Channel` received on it.
    pub items: u64,
    /// How many connections it still serves, as last heard.
    pub waiting_for: u64,
    /// How long ago that was, in milliseconds.
    pub silent_for_ms: u64,
}

/// "I am at its end now", or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InheritedAck {
    /// Of the `Channel`.
    pub number: u64,
    /// `None` when taken; else the sender goes on as before.
    pub refused: Option<String>,
}

/// All that is ever said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Message {
    /// Child: first words.
    Hello(Hello),
    /// Either: this cannot go on, in words. The old generation serves on.
    Refuse(String),
    /// Parent: the reload is over, in words.
    Abort(String),
    /// Either: an operator stops the succession, in words.
    Stop(String),
    /// Parent: the listeners.
    Offer(Offer),
    /// Child: configured, bound, warmed up.
    Prepared(Prepared),
    /// Parent: the state, in a sealed memfd.
    State(Manifest),
    /// Child: restored, and healthy.
    Ready,
    /// Parent: the decision.
    Commit(Commit),
    /// Child: it accepts.
    Accepting,
    /// Both: the watch during probation.
    Health(Health),
    /// Parent: the child is final. The time from the request to `Accepting`, in microseconds.
    Confirm {
        /// See above.
        serving_us: u64,
    },
    /// Parent: the child is not, in words.
    Revoke(String),
    /// State that changed since.
    Rest(Rest),
    /// "I have absorbed it."
    RestAck {
        /// Of the `Rest`.
        number: u64,
    },
    /// Connections.
    Conn(Batch),
    /// "I own them."
    ConnAck(BatchAck),
    /// An older generation's channel.
    Channel(Inherited),
    /// "I have it."
    ChannelAck(InheritedAck),
    /// The parent lives and waits for this many connections.
    Draining {
        /// How many.
        waiting_for: u64,
        /// The first of what is under way there, by peer and request.
        named: Vec<String>,
        /// Who still drains into the parent, the youngest first.
        older: Vec<Older>,
    },
    /// A revoked child: what only one generation may have and do is the parent's again.
    Yielded,
    /// Child: an operator, who can reach only the child in probation, wants it to end.
    Decide(Decision),
    /// The parent, or a revoked child, has finished.
    Bye(ConnectionCounts),
    /// To an older generation, by whoever got its channel: from here on it is this process that takes
    /// what it passes on. One descriptor: the sender's pidfd.
    Successor(Generation),
}

/// A record that is not a message, or not one of the version that was agreed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WireError {
    /// It has no header of ours.
    #[error("not a message of this protocol ({0} bytes)")]
    NotOurs(usize),
    /// Its version is not the negotiated one.
    #[error("a message of protocol version {got}, where {agreed} was agreed on")]
    Version {
        /// In the header.
        got: u16,
        /// What was negotiated.
        agreed: u16,
    },
    /// It is frozen, and has the version of another one.
    #[error("a message with version {0} in its header, where a frozen one has 0")]
    NotFrozen(u16),
    /// No message has this number.
    #[error("unknown message kind {0}")]
    Kind(u16),
    /// Its body is not what its kind says.
    #[error("malformed {kind}: {cause}")]
    Body {
        /// The kind's name.
        kind: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// It would be longer than [`MAX_MESSAGE`].
    #[error("{kind} of {length} bytes is longer than a message may be ({MAX_MESSAGE})")]
    TooLong {
        /// The kind's name.
        kind: &'static str,
        /// In bytes.
        length: usize,
    },
}

/// The part of a header that the channel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u16,
    pub(crate) kind: u16,
    pub(crate) number: u64,
    pub(crate) body_len: u32,
    pub(crate) fds: u16,
}

impl Header {
    fn write(self, out: &mut [u8]) {
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6..8].copy_from_slice(&self.kind.to_le_bytes());
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..20].copy_from_slice(&self.body_len.to_le_bytes());
        out[20..22].copy_from_slice(&self.fds.to_le_bytes());
        out[22..24].copy_from_slice(&[0, 0]);
    }

    fn read(record: &[u8]) -> Result<Self, WireError> {
        let not_ours = || WireError::NotOurs(record.len());
        let (head, body) = record
            .split_first_chunk::<HEADER_LEN>()
            .ok_or_else(not_ours)?;
        let u16_at = |i: usize| u16::from_le_bytes([head[i], head[i + 1]]);
        let u32_at =
            |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let header = Self {
            version: u16_at(4),
            kind: u16_at(6),
            number: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            body_len: u32_at(16),
            fds: u16_at(20),
        };
        if u32_at(0) != MAGIC || u16_at(22) != 0 || body.len() != header.body_len as usize {
            return Err(not_ours());
        }
        Ok(header)
    }
}

macro_rules! kinds {
    ($($name:ident = $number:literal, $label:literal, $pattern:pat,)*) => {
        $(const $name: u16 = $number;)*
        impl Message {
            /// The number in the header, and the name in errors and logs.
            fn number_and_name(&self) -> (u16, &'static str) {
                match self { $($pattern => ($name, $label),)* }
            }
        }
        pub(crate) fn name_of(kind: u16) -> Option<&'static str> {
            match kind { $($number => Some($label),)* _ => None }
        }
    };
}

kinds! {
    HELLO = 1, "Hello", Message::Hello(_),
    REFUSE = 2, "Refuse", Message::Refuse(_),
    ABORT = 3, "Abort", Message::Abort(_),
    STOP = 4, "Stop", Message::Stop(_),
    OFFER = 5, "Offer", Message::Offer(_),
    PREPARED = 6, "Prepared", Message::Prepared(_),
    STATE = 7, "State", Message::State(_),
    READY = 8, "Ready", Message::Ready,
    COMMIT = 9, "Commit", Message::Commit(_),
    ACCEPTING = 10, "Accepting", Message::Accepting,
    HEALTH = 11, "Health", Message::Health(_),
    CONFIRM = 12, "Confirm", Message::Confirm { .. },
    REVOKE = 13, "Revoke", Message::Revoke(_),
    REST = 14, "Rest", Message::Rest(_),
    REST_ACK = 15, "RestAck", Message::RestAck { .. },
    CONN = 16, "Conn", Message::Conn(_),
    CONN_ACK = 17, "ConnAck", Message::ConnAck(_),
    CHANNEL = 18, "Channel", Message::Channel(_),
    CHANNEL_ACK = 19, "ChannelAck", Message::ChannelAck(_),
    DRAINING = 20, "Draining", Message::Draining { .. },
    BYE = 21, "Bye", Message::Bye(_),
    SUCCESSOR = 22, "Successor", Message::Successor(_),
    YIELDED = 23, "Yielded", Message::Yielded,
    DECIDE = 24, "Decide", Message::Decide(_),
}

fn is_frozen(kind: u16) -> bool {
    matches!(kind, HELLO | REFUSE | ABORT | STOP)
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.number_and_name().1)
    }
}

/// Lays out a message: header and body.
pub(crate) fn encode(
    message: &Message,
    version: u16,
    number: u64,
    fds: usize,
) -> Result<Vec<u8>, WireError> {
    let (kind, name) = message.number_and_name();
    let mut record = vec![0; HEADER_LEN];
    encode_body(message, &mut record).map_err(|e| WireError::Body {
        kind: name,
        cause: e.to_string(),
    })?;
    if record.len() > MAX_MESSAGE {
        return Err(WireError::TooLong {
            kind: name,
            length: record.len(),
        });
    }
    let too_many = |_| WireError::Body {
        kind: name,
        cause: format!("{fds} descriptors"),
    };
    let header = Header {
        version: if is_frozen(kind) { FROZEN } else { version },
        kind,
        number,
        body_len: u32::try_from(record.len() - HEADER_LEN).unwrap_or(u32::MAX),
        fds: u16::try_from(fds).map_err(too_many)?,
    };
    header.write(&mut record);
    Ok(record)
}

fn encode_body(message: &Message, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match message {
        Message::Hello(hello) => {
            out.extend(hello.oldest.to_le_bytes());
            out.extend(hello.newest.to_le_bytes());
            out.extend(hello.pid.to_le_bytes());
            put_text(&hello.build, out);
            Ok(())
        }
        Message::Refuse(reason) | Message::Abort(reason) | Message::Stop(reason) => {
            put_text(reason, out);
            Ok(())
        }
        Message::Revoke(reason) => codec::encode_into(&cut(reason), out),
        Message::Offer(x) => codec::encode_into(x, out),
        Message::Prepared(x) => codec::encode_into(x, out),
        Message::State(x) => codec::encode_into(x, out),
        Message::Commit(x) => codec::encode_into(x, out),
        Message::Health(x) => codec::encode_into(x, out),
        Message::Confirm { serving_us } => codec::encode_into(serving_us, out),
        Message::Rest(x) => codec::encode_into(x, out),
        Message::RestAck { number } => codec::encode_into(number, out),
        Message::Conn(x) => codec::encode_into(x, out),
        Message::ConnAck(x) => codec::encode_into(x, out),
        Message::Channel(x) => codec::encode_into(x, out),
        Message::Draining {
            waiting_for,
            named,
            older,
        } => codec::encode_into(&(waiting_for, named, older), out),
        Message::ChannelAck(x) => codec::encode_into(x, out),
        Message::Bye(x) => codec::encode_into(x, out),
        Message::Successor(x) => codec::encode_into(x, out),
        Message::Decide(x) => codec::encode_into(x, out),
        Message::Ready | Message::Accepting | Message::Yielded => Ok(()),
    }
}

/// Reads a message of the `agreed` version, or of any that this build speaks; frozen ones are read always.
pub(crate) fn decode(record: &[u8], agreed: Option<u16>) -> Result<(Header, Message), WireError> {
    let header = Header::read(record)?;
    let kind = name_of(header.kind).ok_or(WireError::Kind(header.kind))?;
    let is_frozen = is_frozen(header.kind);
    if is_frozen && header.version != FROZEN {
        return Err(WireError::NotFrozen(header.version));
    }
    let is_right = match agreed {
        _ if is_frozen => true,
        Some(agreed) => header.version == agreed,
        None => VERSIONS.contains(&header.version),
    };
    if !is_right {
        let agreed = agreed.unwrap_or(*VERSIONS.end());
        return Err(WireError::Version {
            got: header.version,
            agreed,
        });
    }
    match decode_body(header.kind, &record[HEADER_LEN..]) {
        Ok(message) => Ok((header, message)),
        Err(cause) => Err(WireError::Body { kind, cause }),
    }
}

fn decode_body(kind: u16, body: &[u8]) -> Result<Message, String> {
    fn coded<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
        codec::decode(body).map_err(|e| e.to_string())
    }
    let empty = |message| {
        if body.is_empty() {
            Ok(message)
        } else {
            Err("a body where none belongs".to_owned())
        }
    };
    Ok(match kind {
        HELLO => Message::Hello(get_hello(body)?),
        REFUSE => Message::Refuse(get_text(body)?),
        ABORT => Message::Abort(get_text(body)?),
        STOP => Message::Stop(get_text(body)?),
        OFFER => Message::Offer(coded(body)?),
        PREPARED => Message::Prepared(coded(body)?),
        STATE => Message::State(coded(body)?),
        READY => empty(Message::Ready)?,
        COMMIT => Message::Commit(coded(body)?),
        ACCEPTING => empty(Message::Accepting)?,
        HEALTH => Message::Health(coded(body)?),
        CONFIRM => Message::Confirm {
            serving_us: coded(body)?,
        },
        REVOKE => Message::Revoke(coded(body)?),
        REST => Message::Rest(coded(body)?),
        REST_ACK => Message::RestAck {
            number: coded(body)?,
        },
        CONN => Message::Conn(coded(body)?),
        CONN_ACK => Message::ConnAck(coded(body)?),
        CHANNEL => Message::Channel(coded(body)?),
        CHANNEL_ACK => Message::ChannelAck(coded(body)?),
        DRAINING => {
            let (waiting_for, named, older) = coded(body)?;
            Message::Draining {
                waiting_for,
                named,
                older,
            }
        }
        BYE => Message::Bye(coded(body)?),
        SUCCESSOR => Message::Successor(coded(body)?),
        YIELDED => empty(Message::Yielded)?,
        DECIDE => Message::Decide(coded(body)?),
        other => return Err(format!("unknown kind {other}")),
    })
}

/// At most [`MAX_TEXT`] bytes of `text`, on a character boundary.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// Text at the end of a frozen body: `u16` length, UTF-8.
fn put_text(text: &str, out: &mut Vec<u8>) {
    let text = cut(text);
    out.extend(u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
    out.extend(text.as_bytes());
}

fn get_text(body: &[u8]) -> Result<String, String> {
    let (length, text) = body
        .split_first_chunk::<2>()
        .ok_or("text without a length")?;
    if usize::from(u16::from_le_bytes(*length)) != text.len() || text.len() > MAX_TEXT {
        return Err(format!("text of {} bytes with a wrong length", text.len()));
    }
    // The other side's words are shown to a person, whatever they are.
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn get_hello(body: &[u8]) -> Result<Hello, String> {
    let (fixed, text) = body.split_first_chunk::<8>().ok_or("too short")?;
    let hello = Hello {
        oldest: u16::from_le_bytes([fixed[0], fixed[1]]),
        newest: u16::from_le_bytes([fixed[2], fixed[3]]),
        pid: u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        build: get_text(text)?,
    };
    if hello.oldest > hello.newest {
        return Err(format!(
            "protocol versions {}..={}",
            hello.oldest, hello.newest
        ));
    }
    Ok(hello)
}

#[cfg(test)]
mod golden;
