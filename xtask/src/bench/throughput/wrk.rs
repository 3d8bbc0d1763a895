//! The load: `wrk`, one thread, as many connections as asked for, each with one request after the other.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::super::args::ThroughputArgs;
use super::peers::Peer;
use super::{is_program, missing};

#[derive(Debug)]
pub(super) struct Wrk(PathBuf);

/// What one run of it saw.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shot {
    /// Requests a second.
    pub(super) rate: f64,
    pub(super) p99_ms: f64,
    /// Processor time of the server for each request, in microseconds.
    pub(super) cpu_us: f64,
    /// Socket errors, and answers other than 2xx.
    pub(super) errors: u64,
}

impl Wrk {
    pub(super) fn found() -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut programs = std::env::split_paths(&path).map(|dir| dir.join("wrk"));
        let found = programs.find(|program| is_program(program));
        found
            .map(Self)
            .ok_or_else(|| missing("the load generator `wrk`", "apt-get install wrk"))
    }

    pub(super) fn at(&self, peer: &Peer, args: &ThroughputArgs) -> Result<Shot> {
        let before = peer.cpu();
        let output = Command::new(&self.0)
            .args(["--latency", "-t1"])
            .arg(format!("-c{}", args.connections))
            .arg(format!("-d{}", args.seconds))
            .arg(format!("http://127.0.0.1:{}/hello", peer.port))
            .stdin(Stdio::null())
            .output()
            .context("failed to run wrk")?;
        let cpu = peer.cpu().saturating_sub(before);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "wrk: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let Said {
            requests,
            rate,
            p99_ms,
            errors,
        } = Said::of(&said).with_context(|| format!("wrk said: {said}"))?;
        ensure!(requests > 0, "no request was answered: {said}");
        Ok(Shot {
            rate,
            p99_ms,
            cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
            errors,
        })
    }
}

#[derive(Debug, PartialEq)]
struct Said {
    requests: u64,
    rate: f64,
    p99_ms: f64,
    errors: u64,
}

impl Said {
    fn of(text: &str) -> Option<Self> {
        let line = |start: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(start))?;
            Some(line.trim_start()[start.len()..].trim())
        };
        let requests = text.lines().find(|line| line.contains(" requests in "))?;
        let errors = line("Socket errors:").map_or(0, |line| {
            let numbers = line.split(|c: char| !c.is_ascii_digit());
            numbers
                .filter_map(|number| number.parse::<u64>().ok())
                .sum()
        });
        let wrong = line("Non-2xx or 3xx responses:").map_or(Some(0), |line| line.parse().ok())?;
        Some(Self {
            requests: requests.split_whitespace().next()?.parse().ok()?,
            rate: line("Requests/sec:")?.parse().ok()?,
            p99_ms: milliseconds(line("99%")?)?,
            errors: errors + wrong,
        })
    }
}

fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 1e-3)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else {
        (text.strip_suffix('s')?, 1e3)
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let text = "Running 2s test @ http://127.0.0.1:1/hello\n  1 threads and 32 connections\n  Latency Distribution\n     50%  250.00us\n     99%    1.05ms\n  153245 requests in 2.00s, 23.38MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  Non-2xx or 3xx responses: 2\nRequests/sec:  76588.73\nTransfer/sec:     11.69MB\n";
        let said = Said {
            requests: 153_245,
            rate: 76588.73,
            p99_ms: 1.05,
            errors: 6,
        };
        assert_eq!(Said::of(text), Some(said));
        assert_eq!(Said::of("wrk: connection refused"), None);
        assert_eq!(milliseconds("250.00us"), Some(0.25));
        assert_eq!(milliseconds("1.50s"), Some(1500.0));
    }
}
