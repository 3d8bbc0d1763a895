//! A complaint that would be made many times a second: at once, then at most every ten seconds, with how often it
//! was due since.

use std::time::Duration;

use tokio::time::Instant;

/// Between two lines in the log.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Rarely {
    said: Option<Instant>,
    times: u64,
}

impl Rarely {
    /// It is due once more: how many times since it was made last, if it is to be made now.
    pub(crate) fn again(&mut self) -> Option<u64> {
        let now = Instant::now();
        self.times += 1;
        if self.said.is_some_and(|said| now < said + PAUSE) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_time_and_then_with_a_count() {
        let mut rarely = Rarely::default();
        assert_eq!(rarely.again(), Some(1));
        assert_eq!(rarely.again(), None);
        assert_eq!(rarely.again(), None);
        tokio::time::advance(PAUSE).await;
        assert_eq!(rarely.again(), Some(3));
        assert_eq!(rarely.again(), None);
    }
}
