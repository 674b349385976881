//! A client's connection that is kept for many requests, and tells when it breaks: nothing is tried again.

use std::io::{Error, ErrorKind, Read, Result, Write};

pub struct Kept<S>(pub S);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The connection is not to be used again.
    pub close: bool,
    pub body: String,
}

impl<S: Read + Write> Kept<S> {
    pub fn ask(&mut self, method: &str, path: &str, token: &str, body: &str) -> Result<Answer> {
        let length =
            if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        write!(
            self.0,
            "{method} {path} HTTP/1.1\r\nhost: cloud.example\r\nx-auth-token: {token}\r\n\
             content-type: application/json\r\n{length}\r\n{body}"
        )?;
        self.answer()
    }

    pub fn answer(&mut self) -> Result<Answer> {
        let mut answer = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
                let length = header("content-length: ").map_or(0, |n| n.parse().unwrap());
                if body.len() >= length {
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    return Ok(Answer {
                        status,
                        close: header("connection: ") == Some("close"),
                        body: body.into(),
                    });
                }
            }
            let mut some = [0; 16 << 10];
            match self.0.read(&mut some)? {
                0 => {
                    return Err(Error::new(
                        ErrorKind::UnexpectedEof,
                        format!("closed after {} bytes", answer.len()),
                    ));
                }
                n => answer.extend_from_slice(&some[..n]),
            }
        }
    }
}
