//! As much of netlink as the agent needs: messages with attributes, an acknowledgement for each, dumps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::fault::{Doing, Fault, Outcome, words};

pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const REPLACE: u16 = 0x100;
pub const CREATE: u16 = 0x400;
pub const DUMP: u16 = 0x300;
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message being written: header, fixed part, attributes.
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The attributes of a message, after its fixed part.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)?;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// No protocol is rtnetlink.
    pub fn open(protocol: Option<Protocol>) -> Outcome<Self> {
        let what = || "open netlink".to_owned();
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol).doing(what)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).doing(what)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// Sends a request and collects what is answered until the acknowledgement or the end of the dump. The kernel answers
    /// before send returns, so nothing here waits.
    pub fn ask(&mut self, message: Message) -> std::io::Result<Vec<(u16, Vec<u8>)>> {
        self.sequence += 1;
        let sent = message.finish(self.sequence);
        rustix::net::send(&self.socket, &sent, SendFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            let (count, _) = rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
            let mut rest = &self.buffer[..count];
            while let Some(length) = u32_at(rest, 0).map(|length| length as usize).filter(|length| *length >= HEADER) {
                let (Some(kind), Some(sequence)) = (u16_at(rest, 4), u32_at(rest, 8)) else { break };
                let body = rest.get(HEADER..length).unwrap_or_default();
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    DONE => return Ok(answers),
                    ERROR => {
                        let code = u32_at(body, 0).map_or(0, |code| code.cast_signed());
                        if code == 0 {
                            return Ok(answers);
                        }
                        return Err(std::io::Error::from_raw_os_error(-code));
                    }
                    _ => answers.push((kind, body.to_vec())),
                }
            }
        }
    }

    /// As [`Self::ask`], for one request that is acknowledged; `tolerated` is an error number that counts as success.
    pub fn tell(&mut self, message: Message, tolerated: i32, what: impl FnOnce() -> String) -> Outcome<()> {
        match self.ask(message) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(tolerated) => Ok(()),
            Err(error) => Err(Fault::internal(format!("{}: {}", what(), words(&error)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let message = Message::new(16, ACK, &[0; 4]).attribute(3, b"eth0\0").attribute(4, &[1, 2, 3, 4]);
        let bytes = message.finish(9);
        assert_eq!(bytes.len(), 16 + 4 + 12 + 8);
        let read: Vec<_> = attributes(&bytes[20..]).collect();
        assert_eq!(read, [(3, &b"eth0\0"[..]), (4, &[1, 2, 3, 4][..])]);
    }

    #[test]
    fn broken_attributes_end_the_walk() {
        assert_eq!(attributes(&[255, 0, 1, 0, 1]).count(), 0);
        assert_eq!(attributes(&[1]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
