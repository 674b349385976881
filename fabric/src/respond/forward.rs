//! Questions that are not ours to know go to the node's own name servers, as they came.
//!
//! Limits: `SERVERS_MAX` servers are asked, one after the other, each for `ANSWER_MAX`.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const SERVERS_MAX: usize = 3;
const ANSWER_MAX: Duration = Duration::from_secs(2);
const PACKET_MAX: usize = 65_535;

/// The file that names the servers. Read at each question: what it says now is right.
#[derive(Clone, Debug)]
pub struct Servers(pub PathBuf);

impl Servers {
    fn list(&self) -> Vec<SocketAddr> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let servers = text.lines().filter_map(|line| server(line.trim()));
        servers.take(SERVERS_MAX).collect()
    }

    /// The first answer of a server; none when nobody answers.
    pub async fn ask(&self, question: &[u8], udp: bool) -> Option<Vec<u8>> {
        for server in self.list() {
            let answer =
                async { if udp { ask_udp(server, question).await } else { ask_tcp(server, question).await } };
            if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_MAX, answer).await {
                return Some(answer);
            }
        }
        None
    }
}

impl Default for Servers {
    fn default() -> Servers {
        Servers(Path::new("/etc/resolv.conf").into())
    }
}

/// `nameserver ADDRESS`; here also `ADDRESS:PORT`, for servers beside the usual one.
fn server(line: &str) -> Option<SocketAddr> {
    let address = line.strip_prefix("nameserver")?.trim();
    let plain = address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, super::dns::PORT));
    plain.or_else(|_| address.parse()).ok()
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any: SocketAddr =
        if server.is_ipv4() { ([0; 4], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    // Connected: packets of others are not seen. The port is the kernel's random one.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; PACKET_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer[..2] == question[..2] && answer[2] & 0x80 != 0 {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, question).await?;
    read(&mut stream).await
}

/// One message of a TCP connection: its length in two bytes, then itself. Source: RFC 1035 section 4.2.2.
pub async fn read(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub async fn write(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| Error::from(ErrorKind::InvalidData))?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolv_conf_has_them() {
        let check = |line: &str, expect: Option<&str>| {
            assert_eq!(server(line), expect.map(|text| text.parse().unwrap()), "{line}");
        };
        check("nameserver 9.9.9.9", Some("9.9.9.9:53"));
        check("nameserver\t2620:fe::fe", Some("[2620:fe::fe]:53"));
        check("nameserver 127.0.0.1:5353", Some("127.0.0.1:5353"));
        check("search example.org", None);
        check("# nameserver 9.9.9.9", None);
    }
}
