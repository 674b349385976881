//! A webhook's URL, as far as one is accepted: `http://HOST[:PORT]/PATH?QUERY` or the same with `https`; no user, no
//! fragment.

use base::{Error, Result};
use hyper::Uri;

/// Characters of a URL; a server's metadata has 255 at most.
const URL_MAX: usize = 2_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// As the `host` header has it.
    pub authority: String,
    pub path: String,
}

impl Url {
    /// Errors: `Invalid`, without the URL: it may have a secret in it.
    pub fn parse(text: &str) -> Result<Url> {
        let wrong = |what: &str| Error::invalid(format!("a webhook's URL {what}"));
        if text.len() > URL_MAX || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(wrong("is too long, or has blanks in it"));
        }
        let uri: Uri = text.parse().map_err(|e| wrong("cannot be read").because(e))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("begins with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names a host"))?;
        if authority.as_str().contains('@') || text.contains('#') {
            return Err(wrong("has neither user nor fragment"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_string();
        if host.is_empty() {
            return Err(wrong("names a host"));
        }
        // `Authority::port` is none for a number that is too large, too.
        let port = match authority.as_str().strip_prefix(authority.host()).and_then(|p| p.strip_prefix(':')) {
            Some(port) => port.parse().map_err(|e| wrong("has a wrong port").because(e))?,
            None if tls => 443,
            None => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
        Ok(Url { tls, host, port, authority: authority.to_string(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_and_what_is_not() {
        let check = |text: &str, expect: Option<(bool, &str, u16, &str)>| {
            let url = Url::parse(text).ok();
            let got = url.as_ref().map(|url| (url.tls, url.host.as_str(), url.port, url.path.as_str()));
            assert_eq!(got, expect, "{text}");
        };
        check("https://example.org", Some((true, "example.org", 443, "/")));
        check("http://example.org/a?b=c", Some((false, "example.org", 80, "/a?b=c")));
        check("http://example.org?b", Some((false, "example.org", 80, "/?b")));
        check("https://[2001:db8::1]:8443/x", Some((true, "2001:db8::1", 8443, "/x")));
        for text in [
            "",
            "example.org",
            "/x",
            "ftp://example.org",
            "file:///etc/passwd",
            "gopher://a/",
            "unix:/run/x",
            "https://user:word@example.org/",
            "https://good.example@127.0.0.1/",
            "https://example.org/#x",
            "http://",
            "http:///x",
            "http://a:99999/",
            "http://a b/",
            "http://a/\r\nx: y",
            "http://a/\tb",
        ] {
            check(text, None);
        }
        assert!(Url::parse(&format!("http://a/{}", "x".repeat(URL_MAX))).is_err());
    }
}
