//! What `cargo xtask bench` can be asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::soak::{as_seconds_always, parse_duration};

/// Measure `hello` beside something simpler.
///
/// Without a command: all of them, each for a short time, and a table of what is to be reached and what was measured.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) measurement: Option<Measurement>,

    #[command(flatten)]
    pub(crate) all: AllArgs,
}

/// All measurements.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct AllArgs {
    /// As long as each one takes by itself: a quarter of an hour instead of four minutes.
    #[arg(long)]
    pub(crate) full: bool,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Measurement {
    Adoption(AdoptionArgs),
    Connections(ConnectionsArgs),
    Descriptors(DescriptorsArgs),
    Latency(LatencyArgs),
    Memory(MemoryArgs),
    Parent(ParentArgs),
    Reload(ReloadArgs),
    State(StateArgs),
    Throughput(ThroughputArgs),
    /// A's sending process.
    #[command(hide = true)]
    BareSender(BareArgs),
    /// A's clients.
    #[command(hide = true)]
    BareClients(BareClientsArgs),
    /// A's receiving process. Its stdin is the socket.
    #[command(hide = true)]
    BareReceiver(BareReceiverArgs),
}

/// Where `hello` comes from, and where the figures go.
#[derive(Clone, Debug, Default, Args, Serialize)]
pub(crate) struct CommonArgs {
    /// A binary to measure, instead of building one.
    #[arg(long, value_name = "PATH")]
    pub(crate) hello: Option<PathBuf>,

    /// A further argument for `hello serve`; may be repeated.
    #[arg(long = "serve-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) serve_args: Vec<String>,

    /// Where the JSON and the server's log go. Default: `target/bench`.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl CommonArgs {
    /// The arguments of `hello serve`: without a probation, which would only be waited for.
    pub(crate) fn serve_args(&self) -> Vec<String> {
        let is_given = self
            .serve_args
            .iter()
            .any(|arg| arg.starts_with("--probation"));
        let none = (!is_given).then(|| "--probation=0s".to_owned());
        none.into_iter().chain(self.serve_args.clone()).collect()
    }
}

/// Move N idle connections by a reload (B), and pass as many by a bare loop (A), in turns.
///
/// A: real TCP connections, as many to a message as `--batch` says, over a SOCK_SEQPACKET pair to another
/// process, which puts each into an epoll and acknowledges each message.
/// B: `hello` with as many keep-alive connections that have carried one request each; from its start of the drain to
/// its end, as the server measures it. Then all connections carry a request, until the last is answered.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ConnectionsArgs {
    /// Connections.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,

    /// How often A and B take turns.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    /// Descriptors to a message, in A. The kernel takes at most 253.
    #[arg(long, default_value_t = 253, value_parser = clap::value_parser!(u32).range(1..=253))]
    pub(crate) batch: u32,

    /// How long the connections are left alone before each reload. One that was just used is not idle yet: `hello` lets
    /// go of its buffers after two seconds
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds_always")]
    pub(crate) rest: Duration,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Pass N sockets from process to process by handoff's own channel (B), and by a bare loop (A), in turns.
///
/// A: `sendmsg` and `recvmsg` of `--batch` descriptors over a SOCK_SEQPACKET pair, an acknowledgement for each message, an
/// epoll at the other end. B: the same sockets with what a reload says of each connection, in its batches of 252, up to three
/// of them on their way.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct DescriptorsArgs {
    /// Sockets: real TCP connections.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,

    /// How often A and B take turns.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    /// Descriptors to a message, in A. The kernel takes at most 253.
    #[arg(long, default_value_t = 253, value_parser = clap::value_parser!(u32).range(1..=253))]
    pub(crate) batch: u32,

    /// Where the JSON goes. Default: `target/bench`.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Requests in windows with one reload (B) and without (A), in turns, client and server on a core each.
///
/// An open loop: latency counts from the time at which a request was to leave.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct LatencyArgs {
    /// Pairs of windows.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) windows: u32,

    /// The length of one window; the reload is in its middle.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds_always")]
    pub(crate) window: Duration,

    /// Requests a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,

    /// Keep-alive connections that carry them.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Processor time of moving a connection, of parent and child together, beside accepting one.
///
/// A reload with N idle connections, less one with none, through N.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct AdoptionArgs {
    /// Connections.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,

    /// How often.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    /// How long the connections are left alone before each reload: see `bench connections`.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds_always")]
    pub(crate) rest: Duration,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Anonymous memory for an idle keep-alive connection: `hello`, hyper alone, nginx and Go.
///
/// Each has answered one request on each connection. All processes of a server count.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct MemoryArgs {
    /// Connections.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,

    /// How often, each time with fresh processes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// How long the connections are left alone before they count as idle.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds_always")]
    pub(crate) rest: Duration,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// A reload of a process with much resident memory (B), and of one without (A), in turns.
///
/// From the start of `hello reload` to the first answer of the new generation, which has none of that memory in either case.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ParentArgs {
    /// The memory of B, each page of it written to: 64MiB, 1GiB.
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    pub(crate) resident: u64,

    /// How often A and B take turns.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// A reload with much state: its phases, and how long a client was not answered, beside as long a time without (A).
///
/// Two clients have a core of their own. One asks without pause, and counts from answer to answer; the other opens a
/// connection each millisecond, and counts from there to the answer. The server and its generations have the other core.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct StateArgs {
    /// How much state: 1KiB, 64MiB, 1GiB. Each with a server of its own.
    #[arg(long, value_delimiter = ',', default_values = ["1KiB", "1MiB", "64MiB", "256MiB", "1GiB"], value_parser = parse_size)]
    pub(crate) sizes: Vec<u64>,

    /// Reloads of each size.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Let the kernel decide who runs where.
    #[arg(long)]
    pub(crate) any_core: bool,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// A reload by phase (C), beside `hello --version` (A) and a first start (B), in turns.
///
/// A: starting and ending the binary. B: from the start of `hello serve` to its first answer. C: from the start of
/// `hello reload` to the first answer of the new generation, to within 0.2 ms and the time of one request.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ReloadArgs {
    /// How often A, B and C take turns.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Requests a second, and processor time of each: `hello` beside hyper alone, nginx and Go, in turns, client and server on
/// a core each; and `hello` with one reload a second beside `hello` without.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ThroughputArgs {
    /// How often all take turns.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// The length of one turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,

    /// Keep-alive connections, each with one request at a time.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What A's sending process is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct BareArgs {
    /// Connections to accept and to pass.
    #[arg(long)]
    pub(crate) count: u32,

    /// Descriptors to a message.
    #[arg(long)]
    pub(crate) batch: u32,

    /// By handoff's channel instead of the bare loop.
    #[arg(long)]
    pub(crate) by_channel: bool,
}

/// What A's receiving process is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct BareReceiverArgs {
    /// By handoff's channel instead of the bare loop.
    #[arg(long)]
    pub(crate) by_channel: bool,
}

/// What A's clients are told.
#[derive(Clone, Debug, Args)]
pub(crate) struct BareClientsArgs {
    /// The sender's address.
    #[arg(long)]
    pub(crate) server: SocketAddr,

    /// Connections to open.
    #[arg(long)]
    pub(crate) count: u32,
}

/// `64MiB`, as many bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write 512, 1KiB, 64MiB or 1GiB");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// The other way round, in the largest unit.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = |(shift, _): &(u32, &str)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        for wrong in ["", "GiB", "1 GiB", "1GB", "-1", "17179869184GiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(1536), "1536 B");
        assert_eq!(size(0), "0 B");
    }
}
