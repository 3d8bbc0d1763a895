//! The command line. Its texts are the manual: they teach by example.

use std::time::Duration;

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum};
use handoff::listeners::Address;

use crate::config::Config;
use crate::duration::{parse, parse_nonzero};
use crate::exit;
use crate::listen::Listen;
use crate::locate::Which;
use crate::parse::Chosen;

/// An HTTP server that is replaced by its next build while it serves, and no client notices
///
/// `hello serve` runs it. After you have built a new version, or changed its configuration,
/// `hello reload` starts that beside the running one, and hands over the listening sockets, the
/// established connections and the state. If the new version does not come up, the old one serves
/// on, and you are told why.
#[derive(Debug, Parser)]
#[command(
    name = "hello",
    version = env!("HELLO_VERSION"),
    after_help = exit::HELP,
    after_long_help = AFTER_HELP,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  hello serve                            serve http://127.0.0.1:8321/hello
  hello reload                           replace it by what is on disk now
  hello status                           who serves, since when, and the last reload
  hello rollback                         take the last reload back, while it is on probation
  hello stop                             finish the requests under way, then end

Exit codes:
  0  done (serve: it was stopped, or another generation has taken over)
  1  failed; a reload that fails leaves the old generation serving
  2  the command line is not understood
  3  no server is running
  4  the outcome is not known: timed out, or the server went away
  5  no reload is on probation: there is nothing to confirm or to roll back";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the server, in the foreground
    Serve(Box<Serve>),
    /// Replace the running server by what is on disk now
    Reload(Reload),
    /// Take the last reload back while it is on probation: the old process serves again
    Rollback(Decide),
    /// End the probation of the last reload now, and well
    Confirm(Decide),
    /// End the running server, after the requests under way
    Stop(Stop),
    /// Show who serves, since when, and how the last reload ended
    Status(Status),
    /// Show what happens to reloads, as it happens
    Events(Events),
}

/// Run the server, in the foreground
///
/// It serves until SIGTERM or SIGINT (a second one ends it at once), or until `hello stop`. SIGUSR2
/// and SIGHUP reload it, as `hello reload` does: a child with the same arguments, run from the same
/// path, takes over. A path such as `current/hello` through a symlink is followed anew each time.
#[derive(Debug, Arguments)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct Serve {
    /// Where to listen; may be repeated
    ///
    /// An address is `127.0.0.1:8321`, `[::1]:8321` or `unix:/run/hello.sock`; port 0 lets the
    /// kernel choose. The name tells a listener from others when the next generation takes over;
    /// without one they are `http`, `http-2`, … in their order.
    #[arg(
        long,
        value_name = "[NAME=]ADDRESS",
        default_value = "127.0.0.1:8321",
        env = "HELLO_LISTEN",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) listen: Vec<Listen>,

    /// Answer /metrics (Prometheus), /livez and /readyz on this address; the listener's name is `admin`
    ///
    /// Whoever can connect can read it.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "HELLO_ADMIN",
        hide_env_values = true
    )]
    pub(crate) admin: Option<Address>,

    #[command(flatten)]
    pub(crate) which: Which,

    /// Read the configuration, say what would be served, and exit: 0 if it is well, 1 if not
    ///
    /// Nothing is bound, and a server that runs is not asked.
    #[arg(long)]
    pub(crate) check: bool,

    /// The configuration file, as it was read.
    #[arg(skip)]
    pub(crate) file: Option<Config>,

    /// All options, as they came to be.
    #[arg(skip)]
    pub(crate) options: Vec<Chosen>,

    /// How long a child may take until it is ready to serve; after that the reload has failed
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        env = "HELLO_READY_TIMEOUT",
        hide_env_values = true,
        value_parser = parse_nonzero
    )]
    pub(crate) ready_timeout: Duration,

    /// How long requests under way may take when this process is replaced or stopped; after that
    /// they are cut, and named
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10s",
        env = "HELLO_DRAIN_TIMEOUT",
        hide_env_values = true,
        value_parser = parse
    )]
    pub(crate) drain_timeout: Duration,

    /// How long a child is watched once it accepts; 0 turns that off
    ///
    /// Until then the reload can be taken back: by `hello rollback`, or by itself if the child dies, does not
    /// answer, or fails its --probe. The value of the running process counts, not the child's.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "1s",
        env = "HELLO_PROBATION",
        hide_env_values = true,
        value_parser = parse
    )]
    pub(crate) probation: Duration,

    /// What a child does if this process dies before it was told to take over [default: promote; under systemd, or with
    /// --keep-pid: exit]
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        env = "HELLO_ORPHAN",
        hide_env_values = true
    )]
    pub(crate) orphan: Option<Orphan>,

    /// Stay as the first process, and let the generations come and go below it; as pid 1 this is always so
    ///
    /// For whoever takes the end of the first process for the end of the service: a container, runit, supervisord,
    /// a shell. Signals are passed on to the generation that serves, and the exit code is that of the last one.
    #[arg(long, env = "HELLO_KEEP_PID", hide_env_values = true)]
    pub(crate) keep_pid: bool,

    /// As root, reload even if somebody else may write the binary, or a directory on the way to it
    ///
    /// Without it root refuses: whoever may write the binary is root at the next reload.
    #[arg(long, env = "HELLO_ALLOW_WRITABLE_BINARY", hide_env_values = true)]
    pub(crate) allow_writable_binary: bool,

    /// How long a client may take to send the head of a request
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        env = "HELLO_HEADER_TIMEOUT",
        hide_env_values = true,
        value_parser = parse_nonzero
    )]
    pub(crate) header_timeout: Duration,

    /// How long a connection may rest between two requests
    #[arg(
        long,
        value_name = "TIME",
        default_value = "75s",
        env = "HELLO_IDLE_TIMEOUT",
        hide_env_values = true,
        value_parser = parse_nonzero
    )]
    pub(crate) idle_timeout: Duration,

    /// Connections at once; more wait in the backlog
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_000,
        env = "HELLO_MAX_CONNECTIONS",
        hide_env_values = true,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) max_connections: u32,

    /// Connections that the kernel keeps for us until we accept them (at most net.core.somaxconn)
    #[arg(
        long,
        value_name = "N",
        default_value_t = handoff::listeners::DEFAULT_BACKLOG,
        env = "HELLO_BACKLOG",
        hide_env_values = true,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX))
    )]
    pub(crate) backlog: u32,

    /// What a child must answer with success, asked by itself, before it may take over and during --probation
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/healthz",
        env = "HELLO_PROBE",
        hide_env_values = true,
        value_parser = probe
    )]
    pub(crate) probe: String,

    /// How log lines, on stderr, are written
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t = LogFormat::Text,
        env = "HELLO_LOG_FORMAT",
        hide_env_values = true
    )]
    pub(crate) log_format: LogFormat,

    /// Which of them: a level (error, warn, info, debug, trace), or levels by module such as
    /// `info,handoff=debug`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "HELLO_LOG",
        hide_env_values = true
    )]
    pub(crate) log_filter: crate::log::Filter,
}

const SERVE_HELP: &str = "\
Examples:
  hello serve --listen 0.0.0.0:80 --admin 127.0.0.1:8322
  hello serve --listen unix:/run/hello.sock --pidfile /run/hello.pid
  hello serve --log-format json 2>>hello.log
  hello serve --config hello.toml --check
  kill -USR2 $(cat hello.pid)            reload without the `hello` command

Durations are written 500ms, 10s, 1m30s.

Exit codes:
  0  it was stopped, or another generation has taken over
  1  it could not start
  2  the command line is not understood";

/// What a child does whose parent has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Orphan {
    /// Take over: nobody else does
    Promote,
    /// End: a service manager starts the service anew
    Exit,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Replace the running server by what is on disk now
///
/// The running process starts the program from the path that it was started from, and gives it the
/// listening sockets and the state. It serves all the while, until the new process has proved that it
/// can; and it stays ready to take over again while the new one serves on probation (see `hello serve --help`). What the
/// new process writes to stderr until it serves is shown; and its last lines, if it fails later.
///
/// On success one line says how long it took, once the old process has finished what it had begun.
/// On failure the reason is shown, and the old process serves on.
#[derive(Debug, Arguments)]
#[command(after_help = RELOAD_HELP)]
pub(crate) struct Reload {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Start the new version until it is ready, send it away, and say what would change
    ///
    /// The running process is not touched: it serves on whatever comes. The new version does all that it does before a
    /// reload is decided: it reads its configuration, binds what is new, restores the state, and answers its --probe.
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) dry_run: bool,

    /// Return as soon as the new generation serves; do not wait for the old one's end
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print each event as one JSON object a line, and nothing else (see docs/protocol.md)
    #[arg(long)]
    pub(crate) json: bool,

    /// How long to wait for the outcome (the probation not counted), and then again for the old generation's end
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_nonzero)]
    pub(crate) timeout: Duration,
}

const RELOAD_HELP: &str = "\
Examples:
  hello reload
  hello reload --dry-run                 would it work? Nothing changes
  hello reload --no-wait                 do not wait for requests under way in the old process
  hello reload --json | jq .event        for a deploy script

Exit codes:
  0  the new generation serves; --dry-run: it would have
  1  failed, or refused: the old generation serves on
  2  the command line is not understood
  3  no server is running
  4  the outcome is not known (timed out, or the server went away): `hello status` tells";

/// `hello rollback` and `hello confirm`: how a probation ends by hand
///
/// A reload is on probation from the moment at which the new generation accepts, for as long as the old one's
/// `hello serve --probation` says. The old one can serve again until then: `rollback` gives it the connections and the
/// state back, and no client notices. `confirm` does not wait for the end of the probation.
#[derive(Debug, Arguments)]
#[command(after_help = DECIDE_HELP)]
pub(crate) struct Decide {
    #[command(flatten)]
    pub(crate) which: Which,

    /// How long to wait for the outcome: more than the server's --drain-timeout
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_nonzero)]
    pub(crate) timeout: Duration,
}

const DECIDE_HELP: &str = "\
Examples:
  hello serve --probation 10m            long enough to look at the new version
  hello rollback                         it is no good: the old one serves again
  hello confirm                          it is good: the old one may go

Exit codes:
  0  it is done
  1  it was refused, or the reload has ended the other way meanwhile
  2  the command line is not understood
  3  no server is running
  4  the outcome is not known (timed out, or the server went away): `hello status` tells
  5  no reload is on probation";

/// End the running server, after the requests under way
///
/// Returns when the process has gone. A reload that is under way is ended with it, and nothing comes
/// back to life.
#[derive(Debug, Arguments)]
#[command(after_help = STOP_HELP)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) which: Which,

    /// How long to wait for the process's end: more than the server's --drain-timeout
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_nonzero)]
    pub(crate) timeout: Duration,
}

const STOP_HELP: &str = "\
Exit codes:
  0  it has ended
  1  it could not be told to
  2  the command line is not understood
  3  no server is running
  4  timed out: it was told to end, and has not yet";

/// Show who serves, since when, and how the last reload ended
#[derive(Debug, Arguments)]
#[command(after_help = STATUS_HELP)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Print it as one JSON object (see docs/protocol.md)
    #[arg(long)]
    pub(crate) json: bool,

    /// Go on showing it, until the server is stopped
    ///
    /// On a terminal it is redrawn; otherwise there is one line for each change of process, phase, listeners, reload or draining
    /// generations. With --json that line is the whole status.
    #[arg(long)]
    pub(crate) watch: bool,
}

const STATUS_HELP: &str = "\
Examples:
  hello status --json | jq .generation
  hello status --watch

Exit codes:
  0  a server runs, and this is its status
  1  it runs, but cannot be asked
  2  the command line is not understood
  3  no server is running
  4  it did not answer within 5 s: is it frozen?";

/// Show what happens to reloads, as it happens
///
/// Goes on from generation to generation, until the server is stopped.
#[derive(Debug, Arguments)]
#[command(after_help = EVENTS_HELP)]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) which: Which,

    /// Print each event as one JSON object a line (see docs/protocol.md)
    #[arg(long)]
    pub(crate) json: bool,
}

const EVENTS_HELP: &str = "\
Examples:
  hello events
  hello events --json | jq 'select(.event == \"reloaded\")'

Exit codes:
  0  the server was stopped, and has gone
  1  it runs, but cannot be asked
  2  the command line is not understood
  3  no server is running
  4  the server went away, and was not told to";

fn probe(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err("a path starts with `/`, such as /healthz".to_owned());
    }
    let path: http::uri::PathAndQuery = text
        .parse()
        .map_err(|error| format!("{error}; write a path such as /healthz"))?;
    Ok(path.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn serve(args: &[&str]) -> Result<Serve, clap::Error> {
        let words = ["hello", "serve"].iter().chain(args);
        match Args::try_parse_from(words)?.verb {
            Verb::Serve(serve) => Ok(*serve),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_mistake_in_it() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let args = serve(&[]).unwrap();
        assert_eq!(args.listen, ["127.0.0.1:8321".parse::<Listen>().unwrap()]);
        assert_eq!(args.ready_timeout, Duration::from_secs(30));
        assert_eq!(args.drain_timeout, Duration::from_secs(10));
        assert_eq!(args.probation, Duration::from_secs(1));
        assert_eq!(args.probe, "/healthz");
        assert_eq!(args.log_format, LogFormat::Text);
    }

    #[test]
    fn listeners_may_be_repeated() {
        let args = serve(&["--listen", "127.0.0.1:1", "--listen", "b=unix:/x,[::1]:2"]);
        assert_eq!(args.unwrap().listen.len(), 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        for (args, expected) in [
            (["--listen", "8321"], "127.0.0.1:8321"),
            (["--drain-timeout", "10"], "is it 10s or 10ms?"),
            (["--ready-timeout", "0s"], "use 1s or more"),
            (["--probe", "healthz"], "a path starts with `/`"),
            (["--backlog", "0"], "1..=2147483647"),
            (["--log-format", "xml"], "[possible values: text, json]"),
            (["--log-filter", "handoff=loud"], "info,handoff=debug"),
        ] {
            let error = serve(&args).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn the_version_tells_two_builds_apart() {
        let error = Args::try_parse_from(["hello", "--version"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DisplayVersion);
        let (version, greeting) = (env!("CARGO_PKG_VERSION"), env!("HELLO_GREETING"));
        assert_eq!(error.to_string(), format!("hello {version} ({greeting})\n"));
    }

    #[test]
    fn the_help_names_every_exit_code() {
        assert!(AFTER_HELP.ends_with(exit::HELP));
        let help = Args::command().render_long_help().to_string();
        for code in 0..=5 {
            assert!(help.contains(&format!("\n  {code}  ")), "{code}");
        }
    }
}
