//! Numbers with their units, and the sentence that matters.

use super::model::Run;

/// `1032388` as `1,032,388`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 reload`, `2 reloads`.
pub(super) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number))
}

/// Milliseconds, with three digits that mean something: `0.37 ms`, `12.2 ms`, `1.25 s`.
pub(super) fn time(ms: f64) -> String {
    match ms {
        ms if ms >= 9_995.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 999.5 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 99.95 => format!("{ms:.0} ms"),
        ms if ms >= 9.995 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// A tick of a time axis: as [`time`], without digits that a tick does not need.
pub(super) fn tick(ms: f64) -> String {
    let (number, unit) = if ms >= 1e3 {
        (ms / 1e3, "s")
    } else {
        (ms, "ms")
    };
    format!("{} {unit}", (number * 1e3).round() / 1e3)
}

/// Seconds since the start, for an axis.
pub(super) fn clock(seconds: f64) -> String {
    let minutes = seconds / 60.0;
    if seconds >= 600.0 {
        format!("{} min", (minutes * 10.0).round() / 10.0)
    } else {
        format!("{} s", (seconds * 100.0).round() / 100.0)
    }
}

/// Resident memory.
pub(super) fn memory(mib: f64) -> String {
    match mib {
        mib if mib >= 10.0 * 1024.0 => format!("{:.1} GiB", mib / 1024.0),
        mib if mib >= 100.0 => format!("{mib:.0} MiB"),
        mib => format!("{mib:.1} MiB"),
    }
}

/// The sentence that matters.
pub(super) fn verdict(run: &Run) -> String {
    let totals = run.load.totals;
    let failed = run.reloads.iter().filter(|reload| reload.failure.is_some());
    let mut parts = vec![counted(run.reloads.len() as u64, "reload")];
    let failed = failed.count() as u64;
    if failed > 0 {
        parts.push(format!("{} of them failed", count(failed)));
    }
    parts.push(format!(
        "{} of {} requests lost",
        count(totals.lost),
        count(totals.ended)
    ));
    parts.push(format!("{} closed", counted(totals.closed, "connection")));
    if totals.forced_reconnects > 0 {
        let sessions = counted(totals.forced_reconnects, "WebSocket session");
        parts.push(format!("{sessions} broken"));
    }
    if run.ending.is_some() {
        parts.push(counter(run));
    }
    parts.join(", ")
}

/// Whether the server counted what the clients received.
pub(super) fn counter(run: &Run) -> String {
    let Some(ending) = run.ending else {
        return "counter unknown".into();
    };
    match ending.server_requests {
        None => "counter unknown".into(),
        Some(requests) if requests == ending.answers => "counter exact".into(),
        Some(requests) => format!(
            "counter off by {}",
            count(requests.abs_diff(ending.answers))
        ),
    }
}

/// Seconds since 1970 as a date and a time of day, UTC.
pub(super) fn date(unix_time: f64) -> String {
    let seconds = unix_time as i64;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{GOOD, LOST, run};
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_032_388), "1,032,388");
        assert_eq!(counted(1, "reload"), "1 reload");
        assert_eq!(time(0.372), "0.37 ms");
        assert_eq!(time(12.247), "12.2 ms");
        assert_eq!(time(999.7), "1.00 s");
        assert_eq!(tick(0.01), "0.01 ms");
        assert_eq!(tick(10_000.0), "10 s");
        assert_eq!(memory(7.508), "7.5 MiB");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0.0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_399.0), "2000-02-28 23:59 UTC");
        assert_eq!(date(951_782_400.0), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_582_882.8), "2026-11-25 05:01 UTC");
    }

    #[test]
    fn the_sentence_says_what_was_lost() {
        let good = verdict(&run(GOOD));
        assert!(
            good.contains(" 0 of ") && good.ends_with("0 connections closed, counter exact"),
            "{good}"
        );
        let lost = verdict(&run(LOST));
        assert!(
            lost.contains("requests lost") && !lost.contains(" 0 of "),
            "{lost}"
        );
    }
}
