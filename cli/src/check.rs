//! `hello serve --check`: what would be served, and with what, without serving.

use std::fmt::Write;
use std::path::Path;

use anyhow::anyhow;
use handoff::listeners::{Address, Spec};

use crate::args::Serve;
use crate::config::Place;
use crate::exit::{Exit, Failure};
use crate::parse::{Chosen, Source};
use crate::{output, serve};

/// From this port on anybody may listen: the kernel's default, where it does not say.
const FIRST_FREE_PORT: u16 = 1024;

/// capabilities(7).
const CAP_NET_BIND_SERVICE: u32 = 10;

pub(crate) fn run(args: &Serve) -> Result<Exit, Failure> {
    let failed = |failure: Failure| Exit::Failed.because(failure.error);
    let specs = serve::listeners(args).map_err(failed)?;
    let pidfile = args.which.paths().map_err(failed)?.pidfile;
    let problems: Vec<String> = specs
        .iter()
        .filter_map(|spec| problem(spec).map(|problem| at(args, spec, &problem)))
        .collect();
    if !problems.is_empty() {
        return Err(Exit::Failed.because(anyhow!(problems.join("\n"))));
    }
    output::result(report(args, &specs, &pidfile))?;
    Ok(Exit::Done)
}

fn at(args: &Serve, spec: &Spec, problem: &str) -> String {
    let Spec { name, address, .. } = spec;
    let problem = format!("listener `{name}` on {address}: {problem}");
    let file = args.file.as_ref();
    let found = file.and_then(|file| Some((file.path(), file.place_of_listener(name)?)));
    match found {
        Some((path, Place { line, column })) => {
            format!("{}:{line}:{column}: {problem}", path.display())
        }
        None => problem,
    }
}

/// What would stand in the way of a bind, as far as it can be seen without one.
fn problem(spec: &Spec) -> Option<String> {
    match &spec.address {
        Address::Tcp(address) => {
            let first = first_free_port();
            let port = address.port();
            let is_reserved = port != 0 && port < first;
            (is_reserved && !may_bind_all()).then(|| {
                format!(
                    "port {port} needs root or CAP_NET_BIND_SERVICE, which this user has not \
                     (AmbientCapabilities= of systemd gives it), or choose one from {first} on"
                )
            })
        }
        Address::Unix(path) => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            (!directory.is_dir()).then(|| {
                let directory = directory.display();
                format!("the directory {directory} does not exist: create it")
            })
        }
    }
}

fn first_free_port() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let port = text.ok().and_then(|text| text.trim().parse().ok());
    port.unwrap_or(FIRST_FREE_PORT)
}

fn may_bind_all() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << CAP_NET_BIND_SERVICE) != 0)
}

fn report(args: &Serve, specs: &[Spec], pidfile: &Path) -> String {
    let mut text = match &args.file {
        Some(file) => format!("{} is well", file.path().display()),
        None => "there is no configuration file, and nothing is wrong".to_owned(),
    };
    text.push_str("\nlisteners");
    let width = specs.iter().map(|spec| spec.name.len()).max().unwrap_or(0);
    for spec in specs {
        let Spec {
            name,
            address,
            backlog,
            mode,
        } = spec;
        let _ = write!(text, "\n  {name:width$}  {address}  backlog {backlog}");
        if let Some(mode) = mode {
            let _ = write!(text, "  mode {mode:04o}");
        }
    }
    text.push_str("\noptions");
    // The listeners are above.
    let options: Vec<&Chosen> = args.options.iter().filter(|o| o.name != "listen").collect();
    let width = options.iter().map(|o| o.name.len()).max().unwrap_or(0);
    for option in options {
        let Chosen {
            name,
            value,
            source,
            variable,
        } = option;
        // Without one it is found.
        let found = pidfile.display().to_string();
        let value = if name == "pidfile" { &found } else { value };
        let _ = write!(text, "\n  {name:width$}  {value}");
        match source {
            Source::Default => {}
            Source::File(Place { line, .. }) => {
                let _ = write!(text, "  (line {line})");
            }
            Source::Environment => {
                let _ = write!(text, "  ({})", variable.as_deref().unwrap_or("environment"));
            }
            Source::CommandLine => text.push_str("  (command line)"),
        }
    }
    text
}
