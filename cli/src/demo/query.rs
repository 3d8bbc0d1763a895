//! Numbers in a query: all that the demo takes.

use http::Uri;

use super::Problem;

pub(super) struct Query(String);

impl Query {
    pub(super) fn of(uri: &Uri) -> Self {
        Self(uri.query().unwrap_or_default().to_owned())
    }

    /// The number called `name`, or `default` if there is none.
    pub(super) fn number(&self, name: &str, default: u64, max: u64) -> Result<u64, Problem> {
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        let Some((_, text)) = pairs.into_iter().find(|(key, _)| *key == name) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(number) if number <= max => Ok(number),
            _ => Err(Problem::Request(format!(
                "`{name}` is a number from 0 to {max}, as in ?{name}={default}"
            ))),
        }
    }
}
