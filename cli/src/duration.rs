//! Durations on the command line: `10s`, `500ms`, `1m30s`.

use std::time::Duration;

const GRAMMAR: &str =
    "write a number with its unit, such as 500ms, 10s, 1.5s or 1m30s (units: ms, s, m, h)";

/// Longer ones are slips of the keyboard, and would overflow a clock.
const MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A duration; `0s` is one, and so is `0`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(GRAMMAR.to_owned());
    }
    if rest == "0" {
        return Ok(total); // of whatever unit
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = split(after, |c| !c.is_ascii_digit() && c != '.');
        total = total
            .checked_add(part(number, unit.trim())?)
            .ok_or("too long")?;
        rest = after;
    }
    if total > MAX {
        return Err("at most 720h (30 days) are possible".to_owned());
    }
    Ok(total)
}

/// A duration in which something has to happen.
pub(crate) fn parse_nonzero(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("nothing can be done in no time; use 1s or more".to_owned()),
        duration => Ok(duration),
    }
}

fn split(text: &str, inside: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !inside(c)).unwrap_or(text.len()))
}

fn part(number: &str, unit: &str) -> Result<Duration, String> {
    if number.is_empty() {
        return Err(format!("`{unit}` is not a number; {GRAMMAR}"));
    }
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" => {
            return Err(format!(
                "the unit is missing: is it {number}s or {number}ms?"
            ));
        }
        unit => return Err(format!("`{unit}` is not a unit; {GRAMMAR}")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{number}` is not a number; {GRAMMAR}"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("10s", ms(10_000)),
            ("500ms", ms(500)),
            ("1m30s", ms(90_000)),
            ("1h 2m", ms(3_720_000)),
            ("1.5s", ms(1500)),
            ("0s", ms(0)),
            ("0", ms(0)),
            (" 2 s", ms(2000)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        for (text, expected) in [
            ("", "such as 500ms"),
            ("10", "is it 10s or 10ms?"),
            ("1m30", "is it 30s or 30ms?"),
            ("10x", "`x` is not a unit"),
            ("-1s", "`-` is not a number"),
            ("s", "`s` is not a number"),
            ("1..2s", "`1..2` is not a number"),
            ("999h", "at most 720h"),
            ("99999999999999999999999999h", "too long"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse_nonzero("0ms").unwrap_err().contains("use 1s"));
    }
}
