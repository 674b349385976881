//! Values that parse on entry: addresses of hardware, shared by network, node and fabric.

use crate::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A MAC address (EUI-48).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The interface identifier of SLAAC: `prefix` (a /64) joined with the modified EUI-64. Source: RFC 4291, appendix A.
    pub fn slaac(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let mut octets = prefix.octets();
        octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        octets.into()
    }

    pub fn link_local(self) -> Ipv6Addr {
        self.slaac(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for Mac {
    type Err = Error;

    /// Reads six pairs of hex digits between colons or dashes; a group address is refused.
    fn from_str(text: &str) -> Result<Mac, Error> {
        let bad = || Error::invalid(format!("'{}' is not a valid MAC address.", text.escape_default()));
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || octets[0] & 1 == 1 {
            return Err(bad());
        }
        Ok(Mac(octets))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = *b"00:00:00:00:00:00";
        for (octet, at) in self.0.iter().zip((0..).step_by(3)) {
            text[at] = DIGITS[usize::from(octet >> 4)];
            text[at + 1] = DIGITS[usize::from(octet & 15)];
        }
        s.serialize_str(std::str::from_utf8(&text).expect("digits and colons"))
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<&str>) {
        assert_eq!(text.parse::<Mac>().ok().map(|m| m.to_string()).as_deref(), expect, "{text}");
    }

    #[test]
    fn macs_parse() {
        check("FA:16:3e:00:00:01", Some("fa:16:3e:00:00:01"));
        check("fa-16-3e-00-00-01", Some("fa:16:3e:00:00:01"));
        check("01:00:5e:00:00:01", None);
        check("fa:16:3e:00:00", None);
        check("fa:16:3e:00:00:01:02", None);
        check("fa:16:3e:00:00:+1", None);
    }

    #[test]
    fn a_mac_is_serialised_as_it_is_displayed() {
        let mac = Mac([0xfa, 0x16, 0x3e, 0x09, 0xa0, 0xff]);
        assert_eq!(serde_json::to_string(&mac).unwrap(), format!("\"{mac}\""));
    }

    #[test]
    fn slaac_is_modified_eui64() {
        let mac: Mac = "fa:16:3e:01:02:03".parse().unwrap();
        assert_eq!(mac.slaac("2001:db8::".parse().unwrap()).to_string(), "2001:db8::f816:3eff:fe01:203");
    }
}
