//! Whether the machine lets us have so many connections. If not, what is missing is said by name.

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a process beside its connections.
const SPARE: u64 = 256;
/// Connections from one address of 127.0.0.0/8: far fewer than there are ports, for the kernel looks for a
/// free one by trial, and 10,000 from one address took it 45 s.
pub(crate) const PER_ADDRESS: u32 = 1000;

/// The most that [`make_room`] can make room for without more rights; all others' open files are left out of account.
pub(crate) fn most() -> u32 {
    let own = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = number("/proc/sys/fs/file-max").unwrap_or(u64::MAX);
    // Both ends, and each twice while it moves.
    let most = own.min(files / 2).saturating_sub(2 * SPARE);
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// Makes room for `count` connections in each process: none holds both ends.
pub(crate) fn make_room(count: u32) -> Result<()> {
    let needed = u64::from(count) + SPARE;
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map_or(needed, |hard| hard.max(needed));
    // Root may raise the hard limit, too, unless its capabilities were taken away.
    let raised = Rlimit {
        current: Some(maximum),
        maximum: Some(maximum),
    };
    setrlimit(Resource::Nofile, raised).with_context(|| {
        format!(
            "{count} connections take {needed} descriptors in one process, and the hard limit of RLIMIT_NOFILE is {}: \
             raise it (`ulimit -Hn {needed}`, which takes CAP_SYS_RESOURCE)",
            limit.maximum.unwrap_or(u64::MAX)
        )
    })?;
    // Both ends of each are open files of the system, in whatever process.
    let files = number("/proc/sys/fs/file-max")?;
    ensure!(
        files > 2 * needed,
        "{count} connections take {} open files, and fs.file-max is {files}: raise it",
        2 * needed
    );
    let ports = ports()?;
    ensure!(
        ports > PER_ADDRESS,
        "net.ipv4.ip_local_port_range has {ports} ports, and {PER_ADDRESS} are used for each address: widen it"
    );
    Ok(())
}

fn number(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read `{path}`"))?;
    text.trim()
        .parse()
        .with_context(|| format!("`{path}` says {text:?}"))
}

fn ports() -> Result<u32> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(path).with_context(|| format!("failed to read `{path}`"))?;
    let bounds: Vec<u32> = text
        .split_whitespace()
        .filter_map(|bound| bound.parse().ok())
        .collect();
    match bounds[..] {
        [first, last] if first <= last => Ok(last - first + 1),
        _ => anyhow::bail!("`{path}` says {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        make_room(1).unwrap();
        let open_files = number("/proc/sys/fs/file-max").unwrap();
        if open_files > 1 << 40 {
            // No limit worth the name.
            return;
        }
        let err = format!("{:#}", make_room(u32::MAX).unwrap_err());
        assert!(
            err.contains("RLIMIT_NOFILE") || err.contains("fs.file-max"),
            "{err}"
        );
    }
}
