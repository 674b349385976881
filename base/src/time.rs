//! Time as the log stamps it: microseconds since 1970, UTC, never going back.

use ::time::OffsetDateTime;
use ::time::format_description::BorrowedFormatItem;
use ::time::macros::format_description;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Microseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

const SECONDS: &[BorrowedFormatItem] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
#[cfg(test)]
const MICROS: &[BorrowedFormatItem] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]");
const HTTP: &[BorrowedFormatItem] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

const DAY: i64 = 24 * 3_600;

impl Timestamp {
    /// The wall clock. Verbs take `tx.now()` instead: this is for the edges of the process.
    pub fn wall() -> Timestamp {
        Timestamp((OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000) as i64)
    }

    pub const fn from_secs(secs: i64) -> Timestamp {
        Timestamp(secs * 1_000_000)
    }

    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub const fn plus_secs(self, secs: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(secs.saturating_mul(1_000_000)))
    }

    /// Whole seconds only, as tokens carry them.
    pub const fn floor(self) -> Timestamp {
        Timestamp::from_secs(self.secs())
    }

    fn render(self, items: &[BorrowedFormatItem]) -> String {
        OffsetDateTime::from_unix_timestamp_nanos(self.0 as i128 * 1000)
            .ok()
            .and_then(|t| t.format(items).ok())
            .unwrap_or_else(|| "9999-12-31T23:59:59".into())
    }

    /// `2026-01-01T00:00:00Z` (Nova, Neutron, Glance).
    pub fn zulu(self) -> String {
        self.seconds(*b"0000-00-00T00:00:00Z").unwrap_or_else(|| self.render(SECONDS) + "Z")
    }

    /// Year to second in place of the zeroes, for the years of four digits. By hand: each item of a list has two.
    ///
    /// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn seconds(self, mut text: [u8; 20]) -> Option<String> {
        let (days, clock) = (self.secs().div_euclid(DAY), self.secs().rem_euclid(DAY));
        let since = days + 719_468;
        let (era, of_era) = (since.div_euclid(146_097), since.rem_euclid(146_097));
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let march = (5 * of_year + 2) / 153;
        let (day, month) =
            (of_year - (153 * march + 2) / 5 + 1, if march < 10 { march + 3 } else { march - 9 });
        let year = year + era * 400 + i64::from(month <= 2);
        if !(0..=9_999).contains(&year) {
            return None;
        }
        let parts = [year / 100, year % 100, month, day, clock / 3_600, clock / 60 % 60, clock % 60];
        for (part, at) in parts.into_iter().zip([0, 2, 5, 8, 11, 14, 17]) {
            text[at] = b'0' + (part / 10) as u8;
            text[at + 1] = b'0' + (part % 10) as u8;
        }
        String::from_utf8(text.into()).ok()
    }

    /// `2026-01-01T00:00:00.000000` (Nova's launched_at and the like, Cinder).
    pub fn micros(self) -> String {
        let mut text = self.zulu();
        text.pop();
        let _ = write!(text, ".{:06}", self.0.rem_euclid(1_000_000));
        text
    }

    /// `2026-01-01T00:00:00.000000Z` (Keystone).
    pub fn micros_zulu(self) -> String {
        self.micros() + "Z"
    }

    /// `Thu, 01 Jan 2026 00:00:00 GMT` (HTTP headers).
    pub fn http(self) -> String {
        self.render(HTTP)
    }

    /// Reads ISO 8601 with or without fraction and zone (`Z` or `+hh:mm`; none means UTC), `T` or a blank between.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let mut text = text.trim().replacen(' ', "T", 1);
        if !text.contains('T') {
            text.push_str("T00:00:00");
        }
        let clock = text.split_once('T').map_or("", |(_, c)| c);
        if !clock.contains(['Z', 'z', '+', '-']) {
            text.push('Z');
        }
        let at =
            OffsetDateTime::parse(&text, &::time::format_description::well_known::Iso8601::DEFAULT).ok()?;
        i64::try_from(at.unix_timestamp_nanos() / 1000).ok().map(Timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<&str>) {
        assert_eq!(Timestamp::parse(text).map(Timestamp::micros_zulu).as_deref(), expect, "{text}");
    }

    #[test]
    fn reads_the_forms_that_clients_send() {
        check("2026-01-02T03:04:05Z", Some("2026-01-02T03:04:05.000000Z"));
        check("2026-01-02T03:04:05.678901", Some("2026-01-02T03:04:05.678901Z"));
        check("2026-01-02 03:04:05", Some("2026-01-02T03:04:05.000000Z"));
        check("2026-01-02T05:04:05+02:00", Some("2026-01-02T03:04:05.000000Z"));
        check("2026-01-02", Some("2026-01-02T00:00:00.000000Z"));
        check("yesterday", None);
    }

    #[test]
    fn zulu_is_what_the_library_writes() {
        let day = 24 * 3600;
        let dates =
            (-720_000..3_000_000).step_by(97).map(|n| Timestamp(n * day * 1_000_000 + n * 7_919_001_003));
        for at in dates.chain([Timestamp(i64::MIN), Timestamp(i64::MAX), Timestamp(-1)]) {
            assert_eq!(at.zulu(), at.render(SECONDS) + "Z", "{}", at.0);
            if !at.zulu().starts_with("9999-12-31T23:59:59") {
                assert_eq!(at.micros(), at.render(MICROS), "{}", at.0);
            }
        }
    }

    #[test]
    fn http_dates_have_their_weekday() {
        assert_eq!(Timestamp::from_secs(0).http(), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
