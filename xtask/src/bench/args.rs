//! What `cargo xtask bench` can be asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::soak::{as_seconds_always, parse_duration};

/// Measure `hello` beside something simpler.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) measurement: Measurement,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Measurement {
    Connections(ConnectionsArgs),
    Latency(LatencyArgs),
    Reload(ReloadArgs),
    Throughput(ThroughputArgs),
    /// A's sending process.
    #[command(hide = true)]
    BareSender(BareArgs),
    /// A's clients.
    #[command(hide = true)]
    BareClients(BareClientsArgs),
    /// A's receiving process. Its stdin is the socket.
    #[command(hide = true)]
    BareReceiver,
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
