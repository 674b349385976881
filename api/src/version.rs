//! Microversions: what a client asks for in a header, and what it is told it got.

use base::{Error, Kind, Result};
use http::HeaderMap;
use std::fmt;
use std::str::FromStr;

/// A microversion such as 2.37.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

/// `v(2, 37)`: short, because views compare with it often.
pub const fn v(major: u16, minor: u16) -> Version {
    Version { major, minor }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Version> {
        parse(text).ok_or_else(|| Error::invalid("this is no version"))
    }
}

/// What a service negotiates.
#[derive(Clone, Copy, Debug)]
pub struct Microversions {
    /// The word in `OpenStack-API-Version: <word> 2.x`.
    pub word: &'static str,
    /// The header of before that, with only the number.
    pub legacy: Option<&'static str>,
    pub min: Version,
    pub max: Version,
}

pub const HEADER: &str = "openstack-api-version";

impl Microversions {
    /// The version that this request is answered in.
    ///
    /// Errors: `Invalid` when it cannot be read, `NotAcceptable` when it is out of range.
    /// Source: API-WG guideline "Microversion Specification".
    pub fn negotiate(&self, headers: &HeaderMap) -> Result<Version> {
        let Some(asked) = self.asked(headers) else { return Ok(self.min) };
        if asked == "latest" {
            return Ok(self.max);
        }
        let version = parse(&asked).ok_or_else(|| {
            Error::invalid(format!(
                "API Version String {} is of invalid format. Must be of format MajorNum.MinorNum.",
                asked.escape_default()
            ))
        })?;
        if version < self.min || version > self.max {
            return Err(Error::new(
                Kind::NotAcceptable,
                format!(
                    "Version {version} is not supported by the API. Minimum is {} and maximum is {}.",
                    self.min, self.max
                ),
            ));
        }
        Ok(version)
    }

    fn asked(&self, headers: &HeaderMap) -> Option<String> {
        let modern =
            headers.get_all(HEADER).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(','));
        for part in modern {
            let mut words = part.split_whitespace();
            if words.next() == Some(self.word) {
                return Some(words.next().unwrap_or("").to_ascii_lowercase());
            }
        }
        let legacy = headers.get(self.legacy?)?.to_str().ok()?;
        Some(legacy.trim().to_ascii_lowercase())
    }

    /// Repeats the version in the answer's headers, as clients check it.
    pub fn stamp(&self, version: Version, headers: &mut HeaderMap) {
        let put = |headers: &mut HeaderMap, name: &'static str, value: String| {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        };
        put(headers, HEADER, format!("{} {version}", self.word));
        let mut vary = "OpenStack-API-Version".to_string();
        if let Some(legacy) = self.legacy {
            put(headers, legacy, version.to_string());
            vary = format!("{vary}, {legacy}");
        }
        put(headers, "vary", vary);
    }
}

fn parse(text: &str) -> Option<Version> {
    let (major, minor) = text.split_once('.')?;
    let number = |s: &str| -> Option<u16> {
        let plain =
            !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
        plain.then(|| s.parse().ok()).flatten()
    };
    Some(v(number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPUTE: Microversions = Microversions {
        word: "compute",
        legacy: Some("x-openstack-nova-api-version"),
        min: v(2, 1),
        max: v(2, 104),
    };

    fn check(name: &'static str, value: &str, expect: Result<Version, Kind>) {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        assert_eq!(COMPUTE.negotiate(&headers).map_err(|e| e.kind()), expect, "{name}: {value}");
    }

    #[test]
    fn versions_are_negotiated() {
        check(HEADER, "compute 2.37", Ok(v(2, 37)));
        check(HEADER, "volume 3.1, compute 2.37", Ok(v(2, 37)));
        check(HEADER, "compute latest", Ok(v(2, 104)));
        check(HEADER, "volume 3.1", Ok(v(2, 1)));
        check(HEADER, "compute 2.105", Err(Kind::NotAcceptable));
        check(HEADER, "compute 1.9", Err(Kind::NotAcceptable));
        check(HEADER, "compute 2.01", Err(Kind::Invalid));
        check(HEADER, "compute two", Err(Kind::Invalid));
        check("x-openstack-nova-api-version", "2.9", Ok(v(2, 9)));
        check("accept", "2.9", Ok(v(2, 1)));
    }
}
