//! HTTP/1.1 with as little work as there can be. A server that closes after an answer gets a new connection.

use crate::Result;
use crate::load::WAIT_MAX;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub kind: &'static str,
    pub body: Vec<u8>,
}

impl Request {
    pub fn new(method: &'static str, path: &str, body: Option<&Value>) -> Request {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        Request { method, path: path.into(), kind: "application/json", body }
    }
}

pub struct Connection {
    /// None: the server has closed it.
    socket: Option<TcpStream>,
    authority: String,
    out: Vec<u8>,
    /// The last answer, whose head ends before `head`.
    answer: Vec<u8>,
    head: usize,
}

/// Where an answer ends.
enum End {
    At(usize),
    Chunks,
    Close,
}

impl Connection {
    pub fn open(authority: &str) -> Result<Connection> {
        let socket = Some(connect(authority)?);
        Ok(Connection { socket, authority: authority.into(), out: Vec::new(), answer: Vec::new(), head: 0 })
    }

    /// Errors: whatever the answer says that is not a success, or a connection that failed.
    pub fn call(&mut self, token: &str, request: &Request) -> Result<()> {
        let Request { method, path, kind, body } = request;
        self.out.clear();
        write!(
            self.out,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nx-auth-token: {token}\r\ncontent-type: {kind}\r\n\
             content-length: {}\r\n\r\n",
            self.authority,
            body.len()
        )?;
        self.out.extend_from_slice(body);
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect(&self.authority)?,
        };
        socket.write_all(&self.out)?;
        if self.read(&mut socket)? {
            self.socket = Some(socket);
        }
        if self.answer.get(9) != Some(&b'2') {
            return Err(format!("{method} {path}: {}", String::from_utf8_lossy(&self.answer)).into());
        }
        Ok(())
    }

    /// Whether the connection is good for another request.
    fn read(&mut self, socket: &mut TcpStream) -> Result<bool> {
        self.answer.clear();
        self.head = 0;
        let mut end = End::Close;
        let mut piece = [0; 64 << 10];
        loop {
            let n = socket.read(&mut piece)?;
            if n == 0 {
                let whole = self.head > 0 && matches!(end, End::Close);
                return if whole { Ok(false) } else { Err("the connection was closed".into()) };
            }
            self.answer.extend_from_slice(&piece[..n]);
            if self.head == 0 {
                let Some(at) = self.answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                self.head = at + 4;
                end = self.end()?;
            }
            let done = match end {
                End::At(end) => self.answer.len() >= end,
                End::Chunks => self.unchunk()?,
                End::Close => false,
            };
            if done {
                return Ok(self.header("connection") != Some("close"));
            }
        }
    }

    fn end(&mut self) -> Result<End> {
        if self.answer.get(9..12) == Some(b"204") {
            return Ok(End::At(self.head));
        }
        if self.header("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            return Ok(End::Chunks);
        }
        let Some(length) = self.header("content-length") else { return Ok(End::Close) };
        let end = self.head + length.parse::<usize>()?;
        self.answer.reserve(end.saturating_sub(self.answer.len()));
        Ok(End::At(end))
    }

    /// Takes the marks of chunks out of a body that is all there, or says that it is not.
    fn unchunk(&mut self) -> Result<bool> {
        let (mut rest, mut body) = (&self.answer[self.head..], Vec::new());
        loop {
            let Some(at) = rest.windows(2).position(|w| w == b"\r\n") else { return Ok(false) };
            let size = std::str::from_utf8(&rest[..at])?.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size.trim(), 16)?;
            let Some(chunk) = rest.get(at + 2..at + 2 + size + 2) else { return Ok(false) };
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
            rest = &rest[at + 2 + size + 2..];
        }
        self.answer.truncate(self.head);
        self.answer.extend(body);
        Ok(true)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.answer[..self.head]).ok()?;
        let (_, value) =
            head.lines().filter_map(|l| l.split_once(": ")).find(|(k, _)| k.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    pub fn body(&self) -> &[u8] {
        &self.answer[self.head..]
    }
}

fn connect(authority: &str) -> Result<TcpStream> {
    let socket = TcpStream::connect(authority)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(WAIT_MAX))?;
    Ok(socket)
}
