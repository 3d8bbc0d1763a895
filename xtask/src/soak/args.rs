//! What `cargo xtask soak` can be asked for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, Serializer};

use super::profile::PeerArgs;

/// How long a soak lasts if neither its length nor its number of reloads is given.
pub(crate) const DEFAULT_DURATION: Duration = Duration::from_secs(60);
/// Nobody means to start a soak that outlives a week; a typo does.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reload `hello` again and again under load, and count what its clients lose.
///
/// Two builds of `hello` replace each other on disk, and after each replacement
/// `hello reload` runs. Meanwhile a client that never retries sends requests at
/// fixed times: 70 % on kept-alive connections, 12 % on a new connection each,
/// 6 % slow, 6 % uploads, 6 % streams; and messages in WebSocket sessions. Latency counts from
/// the time at which a request was to leave, so a server that stalls cannot hide it.
///
/// Without `--duration` and `--reloads` the soak lasts 60 s. With both, it ends at
/// whichever comes first. Exit code 0: nothing was lost and every check passed;
/// 1: something was, and the last lines say what; 130: interrupted.
#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct SoakArgs {
    /// Stop reloading after this long (`500ms`, `60s`, `2m`, `1h`).
    #[arg(long, value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds")]
    pub(crate) duration: Option<Duration>,

    /// Stop after this many reloads.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) reloads: Option<u64>,

    /// From the start of one reload to the start of the next. A reload that takes longer
    /// is followed by the next at once; `0s` reloads back to back.
    #[arg(long, default_value = "500ms", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds_always")]
    pub(crate) every: Duration,

    /// Requests per second, in all.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,

    /// Keep-alive connections opened at the start. When all are busy at the time of a request,
    /// one more is opened rather than letting the request wait.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,

    /// Connections that mostly rest. After each reload all of them must be open and silent. They share
    /// one address, which has some 28,000 ports.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    pub(crate) idle: u32,

    /// Idle connections that carry a request after each reload, each in its turn.
    #[arg(long, default_value_t = 20)]
    pub(crate) idle_sample: u32,

    /// WebSocket sessions at `/ws`, which the server is to carry through all reloads.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) websockets: u32,

    /// Messages per second, in all sessions together.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) websocket_rate: u32,

    /// How long each child is on probation (`hello serve --probation`). By default it is not: a soak is there to
    /// move connections, and they do not move before a probation is over.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds_always")]
    pub(crate) probation: Duration,

    /// Distance of the client, in milliseconds of round trip: what it sends arrives half of it
    /// later, and it sees everything half of it late. Loopback alone hides the keep-alive race.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub(crate) client_delay_ms: u64,

    /// The same seed gives the same sequence of requests, and with `--chaos` of events.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Instead of reloads alone: reloads, failing builds, kills, freezes, signals, stops, and lack of descriptors, at
    /// random, one after the other, for `--duration`. See docs/soak.md.
    #[arg(long, conflicts_with_all = ["reloads", "binaries", "serve_args", "client_delay_ms", "profile"])]
    #[serde(skip)]
    pub(crate) chaos: bool,

    /// Kills a process behind the judge's back, who must notice.
    #[arg(long, requires = "chaos", hide = true)]
    #[serde(skip)]
    pub(crate) sabotage: bool,

    /// Two binaries to alternate between, instead of building them.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) binaries: Vec<PathBuf>,

    /// A further argument for `hello serve`; may be repeated.
    #[arg(long = "serve-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) serve_args: Vec<String>,

    #[command(flatten)]
    pub(crate) peer: PeerArgs,

    /// Where `report.html`, `soak.csv`, `soak.json`, `losses.log` and `server.log` go. Default: `target/soak-report`.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl SoakArgs {
    /// Checks what clap cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(
            self.binaries.is_empty() || self.binaries.len() == 2,
            "--binaries takes two paths, A,B: {} given",
            self.binaries.len()
        );
        self.peer.validate()
    }

    /// How long to go on reloading at most. `None`: until the reloads are done, each of which is bounded.
    pub(crate) fn limit(&self) -> Option<Duration> {
        match (self.duration, self.reloads) {
            (None, None) => Some(DEFAULT_DURATION),
            (duration, _) => duration,
        }
    }

    /// Connections that the client keeps open all the time.
    pub(crate) fn kept_connections(&self) -> u64 {
        [self.connections, self.idle, self.websockets]
            .into_iter()
            .map(u64::from)
            .sum()
    }

    /// The arguments of `hello serve`: what the load needs, then what the user wants.
    pub(crate) fn serve_args(&self) -> Vec<String> {
        // New connections and extra ones come on top; a connection may rest from its first turn to its last.
        let needed = [
            (
                "--max-connections",
                (self.kept_connections() * 2 + 5000).to_string(),
            ),
            ("--idle-timeout", format!("{}s", MAX_DURATION.as_secs())),
            ("--header-timeout", format!("{}s", MAX_DURATION.as_secs())),
            ("--probation", format!("{}ms", self.probation.as_millis())),
        ];
        let given = |name: &str| {
            let given = |arg: &String| arg.split('=').next() == Some(name);
            self.serve_args.iter().any(given)
        };
        needed
            .into_iter()
            .filter(|(name, _)| !given(name))
            .map(|(name, value)| format!("{name}={value}"))
            .chain(self.serve_args.clone())
            .collect()
    }

    /// The delay of each direction.
    pub(crate) fn one_way(&self) -> Duration {
        Duration::from_millis(self.client_delay_ms) / 2
    }
}

/// `500ms`, `1.5s`, `2m`, `1h`: a number and its unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .context("a unit is missing: ms, s, m or h")?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .parse()
        .with_context(|| format!("`{number}` is not a number"))?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => bail!("`{unit}` is not a unit: take ms, s, m or h"),
    };
    ensure!(seconds <= MAX_DURATION.as_secs_f64(), "longer than a week");
    Ok(Duration::from_secs_f64(seconds))
}

#[allow(clippy::ref_option, reason = "the signature is serde's")]
fn as_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|d| d.as_secs_f64()).serialize(serializer)
}

/// For the JSON: a duration in seconds.
pub(crate) fn as_seconds_always<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        soak: SoakArgs,
    }

    fn parse(args: &[&str]) -> Result<SoakArgs, clap::Error> {
        use clap::Parser;
        Cli::try_parse_from([&["soak"], args].concat()).map(|cli| cli.soak)
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_duration("1h").unwrap(), Duration::from_secs(3600));
        for wrong in ["", "5", "s", "5d", "-5s", "1..5s", "1000h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn without_a_bound_it_lasts_the_default_time() {
        assert_eq!(parse(&[]).unwrap().limit(), Some(DEFAULT_DURATION));
        assert_eq!(parse(&["--reloads", "3"]).unwrap().limit(), None);
        assert_eq!(
            parse(&["--reloads", "3", "--duration", "1s"])
                .unwrap()
                .limit(),
            Some(Duration::from_secs(1))
        );
    }

    #[test]
    fn the_server_is_told_what_the_load_needs_unless_the_user_has() {
        let args = parse(&["--idle", "10000"]).unwrap().serve_args();
        assert_eq!(args[0], "--max-connections=25140");
        let args = [
            "--serve-arg",
            "--idle-timeout=1s",
            "--serve-arg",
            "--max-connections=9",
        ];
        let args = parse(&args).unwrap().serve_args();
        assert_eq!(
            args[1..],
            [
                "--probation=0ms",
                "--idle-timeout=1s",
                "--max-connections=9"
            ]
        );
        let args = parse(&["--probation", "1.5s"]).unwrap().serve_args();
        assert!(args.contains(&"--probation=1500ms".to_owned()));
    }

    #[test]
    fn two_binaries_or_none() {
        assert!(parse(&["--binaries", "a,b"]).unwrap().validate().is_ok());
        assert!(parse(&["--binaries", "a"]).unwrap().validate().is_err());
        assert!(parse(&["--rate", "0"]).is_err());
        assert_eq!(
            parse(&["--client-delay-ms", "20"]).unwrap().one_way(),
            Duration::from_millis(10)
        );
    }
}
