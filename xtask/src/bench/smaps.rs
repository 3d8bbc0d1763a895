//! Memory of a serving process.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// At one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// Resident, as `VmRSS` has it.
    pub(crate) rss_kib: f64,
    /// Resident, and pages shared with others by their share: what one process more costs.
    pub(crate) pss_kib: f64,
    /// Resident, and of this process alone.
    pub(crate) private_kib: f64,
    /// Resident, and of no file: heap and stacks.
    pub(crate) anonymous_kib: f64,
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, it| Self {
            rss_kib: sum.rss_kib + it.rss_kib,
            pss_kib: sum.pss_kib + it.pss_kib,
            private_kib: sum.private_kib + it.private_kib,
            anonymous_kib: sum.anonymous_kib + it.anonymous_kib,
        })
    }
}

impl Memory {
    /// Of `pid`, from `/proc/<pid>/smaps_rollup`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))?;
        let value = |name: &str| -> Result<f64> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
                .and_then(|value| value.trim().parse().ok())
                .with_context(|| format!("`{path}` has no {name}"))
        };
        Ok(Self {
            rss_kib: value("Rss:")?,
            pss_kib: value("Pss:")?,
            private_kib: value("Private_Clean:")? + value("Private_Dirty:")?,
            anonymous_kib: value("Anonymous:")?,
        })
    }

    /// Bytes for each of `count` connections that the process has and `empty` had not.
    pub(crate) fn each(self, empty: Self, count: u32) -> PerConnection {
        let each = |with: f64, without: f64| (with - without) * 1024.0 / f64::from(count);
        PerConnection {
            rss_bytes: each(self.rss_kib, empty.rss_kib),
            pss_bytes: each(self.pss_kib, empty.pss_kib),
        }
    }
}

/// Memory for one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct PerConnection {
    pub(crate) rss_bytes: f64,
    pub(crate) pss_bytes: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_there_and_grows() {
        let before = Memory::of(std::process::id()).unwrap();
        let block = vec![1_u8; 32 << 20];
        let after = Memory::of(std::process::id()).unwrap();
        let each = after.each(before, 1 << 10);
        // 32 KiB for each of 1,024; other tests run in this process too.
        assert!(
            each.rss_bytes > 24_000.0 && each.pss_bytes > 24_000.0,
            "{each:?}"
        );
        drop(block);
        assert!(Memory::of(u32::MAX).is_err());
    }
}
