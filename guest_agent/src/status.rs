//! What the agent and a child that is not yet its program say to each other, over a SEQPACKET socket that closes on exec:
//! `P<pid>` another process goes on in the child's place, `R` ready (with the terminal's master, and uid, gid and groups of
//! an init), `E<code>\n<message>` failed, `H<exit code>\n<name>` a hook has ended, `S` go on; the end of the stream is the exec.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

use crate::container::user::{Identity, MAX_GROUPS};
use crate::fault::{Code, Doing, Fault, Outcome};

/// Bytes of a message's text.
const MAX: usize = 8192;
/// Bytes of a message: an init's user and groups are the longest.
const LONGEST: usize = 1 + 4 * (2 + MAX_GROUPS);

#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    Failed(Fault),
    Executed,
    Nothing,
}

pub enum Heard {
    Replaced(u32),
    Ready(Option<OwnedFd>, Option<Identity>),
    Hook(String, i32),
    Other(Report),
}

/// The agent's end (nonblocking) and the child's.
pub fn pair() -> Outcome<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .doing(|| "make a status socket".to_owned())?;
    rustix::io::ioctl_fionbio(&ours, true).doing(|| "make a status socket".to_owned())?;
    Ok((ours, theirs))
}

pub fn hear(socket: &OwnedFd) -> Heard {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    );
    let count = match received {
        Ok(message) => message.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Heard::Other(Report::Nothing),
        Err(_) => 0,
    };
    match bytes[..count].first() {
        None => Heard::Other(Report::Executed),
        Some(b'R') => {
            let fds = ancillary.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            Heard::Ready(fds.last(), identity(&bytes[1..count]))
        }
        Some(b'P') => match std::str::from_utf8(&bytes[1..count]).ok().and_then(|text| text.parse().ok()) {
            Some(pid) => Heard::Replaced(pid),
            None => Heard::Other(Report::Failed(Fault::internal("a process names no pid"))),
        },
        Some(b'H') => {
            let text = String::from_utf8_lossy(&bytes[1..count]);
            let (code, name) = text.split_once('\n').unwrap_or_default();
            Heard::Hook(name.to_owned(), code.parse().unwrap_or(255))
        }
        Some(_) => {
            let text = String::from_utf8_lossy(&bytes[1..count]);
            let (code, message) = text.split_once('\n').unwrap_or(("INTERNAL", &text));
            Heard::Other(Report::Failed(Fault::new(Code::from_name(code), message)))
        }
    }
}

fn identity(bytes: &[u8]) -> Option<Identity> {
    let mut numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    let (uid, gid) = (numbers.next()?, numbers.next()?);
    Some(Identity { uid, gid, groups: numbers.collect(), home: String::new() })
}

pub fn say_ready(socket: BorrowedFd<'_>, master: Option<&OwnedFd>, user: Option<&Identity>) -> Outcome<()> {
    let numbers = user.into_iter().flat_map(|user| [user.uid, user.gid].into_iter().chain(user.groups.iter().copied()));
    let text: Vec<u8> = std::iter::once(b'R').chain(numbers.flat_map(u32::to_le_bytes)).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = master.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
        .doing(|| "report to the agent".to_owned())
}

/// Says who the caller is; /proc is still the agent's.
pub fn say_replaced(socket: BorrowedFd<'_>) -> Outcome<()> {
    let pid = std::fs::read_link("/proc/self").doing(|| "read /proc/self".to_owned())?;
    let text = format!("P{}", pid.display());
    rustix::net::send(socket, text.as_bytes(), SendFlags::NOSIGNAL).map(drop).doing(|| "report to the agent".to_owned())
}

pub fn say_hook(socket: BorrowedFd<'_>, name: &str, code: i32) -> Outcome<()> {
    let text = format!("H{code}\n{name}");
    rustix::net::send(socket, text.as_bytes(), SendFlags::NOSIGNAL).map(drop).doing(|| "report to the agent".to_owned())
}

pub fn say_failed(socket: BorrowedFd<'_>, fault: &Fault) {
    let mut text = format!("E{}\n{}", fault.code.name(), fault.message);
    let mut end = text.len().min(MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    // When the agent is gone nobody is left to tell.
    let _ = rustix::net::send(socket, text.as_bytes(), SendFlags::NOSIGNAL);
}

pub fn say_start(socket: &OwnedFd) -> Outcome<()> {
    rustix::net::send(socket, b"S", SendFlags::NOSIGNAL).map(drop).doing(|| "release init".to_owned())
}

/// Blocks until the agent says `S`; false when it closed the socket instead.
pub fn wait_for_start(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    loop {
        match rustix::io::read(socket, &mut byte) {
            Ok(count) => return count == 1,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
