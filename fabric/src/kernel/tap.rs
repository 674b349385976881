//! Taps: the devices that guests hold the other end of.
//!
//! A tap is persistent, so it stays with its rules while a guest is restarted, and frames carry a `virtio_net_hdr`.

use super::netns;
use base::{Error, Result};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));

/// Opens the tap of this name inside of a namespace; makes it when it is not there.
pub fn open(namespace: impl AsFd + Send, name: &str) -> Result<OwnedFd> {
    netns::inside(namespace, || attach(name).map(OwnedFd::from))
}

/// Makes a tap that stays.
pub fn create(namespace: impl AsFd + Send, name: &str) -> Result<()> {
    netns::inside(namespace, || {
        let file = attach(name)?;
        // SAFETY: the descriptor is open and the argument is a plain number.
        unsafe { tun_set_persist(file.as_raw_fd(), 1) }.map_err(|e| failed(name, e))?;
        Ok(())
    })
}

fn attach(name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|e| failed(name, e))?;
    // SAFETY: an all-zero `ifreq` is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` lives through the call.
    unsafe { tun_set_iff(file.as_raw_fd(), &request) }.map_err(|e| failed(name, e))?;
    Ok(file)
}

fn failed(name: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unavailable(format!("the tap device '{name}' could not be opened")).because(cause)
}
