//! Guests of frames: what they say is written into their taps by hand.

use super::*;
use std::net::Ipv4Addr;
use std::time::Instant;

pub const EVERYONE: Mac = Mac([0xff; 6]);
/// Length of `virtio_net_hdr`.
const HEADER: usize = 10;

/// A guest of frames.
pub struct Raw {
    tap: File,
    pub mac: Mac,
}

impl Raw {
    pub fn new(w: &mut World, port: &Port) -> Raw {
        let mut raw = Raw { tap: File::from(w.fabric().open_tap(port.id).unwrap()), mac: port.mac };
        raw.wait(port);
        raw
    }

    /// A bridge takes frames of a port some time after its carrier: until the metadata address answers.
    fn wait(&mut self, port: &Port) {
        let std::net::IpAddr::V4(own) = port.fixed[0].address else { return };
        let question = arp(1, self.mac, own, [169, 254, 169, 254].into());
        let answered = |raw: &mut Raw| {
            raw.send(EVERYONE, 0x0806, &question);
            raw.receive(Duration::from_millis(100), |frame| frame[12..14] == [8, 6] && frame[21] == 2)
                .is_some()
        };
        assert!((0..50).any(|_| answered(self)), "the metadata address answers ARP");
    }

    pub fn send(&mut self, to: Mac, kind: u16, body: &[u8]) {
        self.send_as(self.mac, to, kind, body);
    }

    pub fn send_as(&mut self, from: Mac, to: Mac, kind: u16, body: &[u8]) {
        let mut frame = vec![0; HEADER];
        frame.extend(to.0);
        frame.extend(from.0);
        frame.extend(kind.to_be_bytes());
        frame.extend(body);
        self.tap.write_all(&frame).unwrap();
    }

    /// The next frame that `is` what is waited for, within `wait`.
    pub fn receive(&mut self, wait: Duration, is: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let end = Instant::now() + wait;
        let mut buffer = [0; 4096];
        loop {
            let left = end.checked_duration_since(Instant::now())?;
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.tap), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left.as_millis() as i32).unwrap();
            if poll(&mut fds, timeout).unwrap() == 0 {
                return None;
            }
            let length = self.tap.read(&mut buffer).unwrap();
            let frame = &buffer[HEADER..length];
            if is(frame) {
                return Some(frame.to_vec());
            }
        }
    }
}

pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend((28 + body.len() as u16).to_be_bytes());
    out.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    out.extend(from.0.octets());
    out.extend(to.0.octets());
    let sum: u32 = out.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]) as u32).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(from.1.to_be_bytes());
    out.extend(to.1.to_be_bytes());
    out.extend((8 + body.len() as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(body);
    out
}

pub fn arp(operation: u8, mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut out = vec![0, 1, 8, 0, 6, 4, 0, operation];
    out.extend(mac.0);
    out.extend(own.octets());
    out.extend([0; 6]);
    out.extend(target.octets());
    out
}

/// Whether `b` gets a frame that `a` sends, with a known good one behind it.
pub fn passes(a: &mut Raw, b: &mut Raw, send: impl FnOnce(&mut Raw), marker: &[u8]) -> bool {
    send(a);
    b.receive(Duration::from_millis(400), |frame| frame.windows(marker.len()).any(|part| part == marker))
        .is_some()
}
