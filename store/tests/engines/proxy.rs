//! A wire to a server that can be cut: before a request, or after it and before its answer.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::spawn;

pub const WHOLE: u8 = 0;
/// The next request is lost with its connection.
pub const REQUEST: u8 = 1;
/// The next answer is lost with its connection.
pub const ANSWER: u8 = 2;

pub struct Proxy {
    pub port: u16,
    fault: Arc<AtomicU8>,
}

impl Proxy {
    pub fn to(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(AtomicU8::new(WHOLE));
        let ahead = fault.clone();
        // It ends with the process.
        spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let (from, to, fault) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), ahead.clone());
                spawn(move || copy(from, to, &fault, REQUEST));
                let fault = ahead.clone();
                spawn(move || copy(server, client, &fault, ANSWER));
            }
        });
        Proxy { port, fault }
    }

    pub fn fail_next(&self, fault: u8) {
        self.fault.store(fault, Ordering::SeqCst);
    }

    /// Whether what was to fail has failed.
    pub fn has_failed(&self) -> bool {
        self.fault.load(Ordering::SeqCst) == WHOLE
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, fault: &AtomicU8, mine: u8) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if fault.compare_exchange(mine, WHOLE, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            break;
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
