//! The streams of a session: pipes and terminals on one side, DATA frames under credit on the other.
//!
//! A stream has one direction. Output is read only when credit is left and the channel's queue has room; input is
//! written as the pipe takes it, and credit given back for what was written.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::frame::{FIN, Kind, MAX_PAYLOAD, encode};
use crate::port::Port;
use crate::source::Source;

/// Bytes of credit each direction begins with.
pub const INITIAL_CREDIT: u32 = 262_144;
const MAX_CREDIT: u32 = i32::MAX as u32;
/// Credit is given back in steps of this size, or when the buffer is empty.
const CREDIT_STEP: u32 = 32 * 1024;

/// What is at the guest's end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Pipe,
    /// Has no end of file: it is told by the character that means it (VEOF, Ctrl-D).
    Terminal,
    Socket,
}

struct Output {
    fd: OwnedFd,
    end: End,
    credit: u32,
    watched: bool,
}

struct Input {
    fd: OwnedFd,
    buffer: VecDeque<u8>,
    /// Bytes the host may still send.
    allowance: u32,
    /// Bytes written to the pipe for which no credit was given back yet.
    owed: u32,
    ended: bool,
    /// The pipe is full: its next room is watched for.
    blocked: bool,
    end: End,
}

#[derive(Default)]
pub struct Streams {
    outputs: HashMap<u32, Output>,
    /// Outputs that wait for credit or room in the channel, and are not watched meanwhile.
    waiting: BTreeSet<u32>,
    inputs: HashMap<u32, Input>,
    /// Outputs of ended sessions: read and dropped, so that their writers neither block nor die of SIGPIPE.
    orphans: HashMap<u32, OwnedFd>,
    next_orphan: u32,
}

fn watch(poll: &OwnedFd, fd: &OwnedFd, source: Source, flags: EventFlags) {
    // A descriptor that cannot be watched would be a bug of ours; its stream stays silent and ends with its process.
    let _ = epoll::add(poll, fd, EventData::new_u64(source.token()), flags);
}

fn change(poll: &OwnedFd, fd: &OwnedFd, source: Source, flags: EventFlags) {
    let _ = epoll::modify(poll, fd, EventData::new_u64(source.token()), flags);
}

impl Streams {
    pub fn knows(&self, id: u32) -> bool {
        self.outputs.contains_key(&id) || self.inputs.contains_key(&id)
    }

    pub fn add_output(&mut self, poll: &OwnedFd, id: u32, fd: OwnedFd, end: End) {
        watch(poll, &fd, Source::Output(id), EventFlags::IN);
        self.outputs.insert(id, Output { fd, end, credit: INITIAL_CREDIT, watched: true });
    }

    pub fn add_input(&mut self, poll: &OwnedFd, id: u32, fd: OwnedFd, end: End) {
        let allowance = INITIAL_CREDIT;
        let buffer = VecDeque::new();
        // No events: errors are reported all the same, and tell that the reader is gone.
        watch(poll, &fd, Source::Input(id), EventFlags::empty());
        self.inputs.insert(id, Input { fd, buffer, allowance, owed: 0, ended: false, blocked: false, end });
    }

    /// The session ended: outputs are drained from now on, inputs end.
    pub fn abandon(&mut self, poll: &OwnedFd) {
        let inputs: Vec<u32> = self.inputs.keys().copied().collect();
        for id in inputs {
            self.reset(poll, id);
        }
        self.waiting.clear();
        for (_, output) in self.outputs.drain() {
            if output.watched {
                let _ = epoll::delete(poll, &output.fd);
            }
            // A connection is the host's own: without it there is nobody to keep it for.
            if output.end == End::Socket {
                continue;
            }
            self.next_orphan = self.next_orphan.wrapping_add(1);
            watch(poll, &output.fd, Source::Orphan(self.next_orphan), EventFlags::IN);
            self.orphans.insert(self.next_orphan, output.fd);
        }
    }

    pub fn drain_orphan(&mut self, poll: &OwnedFd, id: u32, scratch: &mut [u8]) {
        let Some(fd) = self.orphans.get(&id) else { return };
        match rustix::io::read(fd, scratch) {
            Ok(count) if count > 0 => {}
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                let _ = epoll::delete(poll, fd);
                self.orphans.remove(&id);
            }
        }
    }

    /// Moves bytes from a pipe to the channel, as far as credit and room go.
    pub fn pump(&mut self, poll: &OwnedFd, port: &mut Port, nonce: u64, id: u32, scratch: &mut [u8]) {
        let Some(output) = self.outputs.get_mut(&id) else { return };
        if output.credit == 0 || !port.has_room() {
            if output.watched {
                // Not a change of its events: a hang-up is reported whatever was asked for, and would spin.
                let _ = epoll::delete(poll, &output.fd);
                output.watched = false;
                self.waiting.insert(id);
            }
            return;
        }
        let most = (output.credit as usize).min(MAX_PAYLOAD).min(scratch.len());
        match rustix::io::read(&output.fd, &mut scratch[..most]) {
            Ok(count) if count > 0 => {
                output.credit -= u32::try_from(count).unwrap_or(output.credit);
                port.send(encode(nonce, Kind::Data, 0, id, &scratch[..count]));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The peer broke the connection off.
            Err(_) if output.end == End::Socket => {
                port.send(encode(nonce, Kind::Reset, 0, id, &[]));
                self.reset(poll, id);
            }
            // 0 from a pipe, EIO from a terminal: the last writer has closed it.
            _ => {
                port.send(encode(nonce, Kind::Data, FIN, id, &[]));
                self.reset(poll, id);
            }
        }
    }

    /// Watches again the outputs that waited for credit or room.
    pub fn resume(&mut self, poll: &OwnedFd, port: &Port) {
        if self.waiting.is_empty() || !port.has_room() {
            return;
        }
        let outputs = &mut self.outputs;
        self.waiting.retain(|id| match outputs.get_mut(id) {
            Some(output) if output.credit == 0 => true,
            Some(output) => {
                watch(poll, &output.fd, Source::Output(*id), EventFlags::IN);
                output.watched = true;
                false
            }
            None => false,
        });
    }

    pub fn credit(&mut self, id: u32, more: u32) {
        if let Some(output) = self.outputs.get_mut(&id) {
            output.credit = output.credit.saturating_add(more).min(MAX_CREDIT);
        }
    }

    /// Forgets a stream. A terminal's descriptors are duplicates of one file, which epoll goes on watching after one
    /// of them is closed: so it is told first.
    pub fn reset(&mut self, poll: &OwnedFd, id: u32) {
        if let Some(output) = self.outputs.remove(&id)
            && output.watched
        {
            let _ = epoll::delete(poll, &output.fd);
        }
        if let Some(input) = self.inputs.remove(&id) {
            let _ = epoll::delete(poll, &input.fd);
        }
    }

    /// Takes DATA from the host; false when it broke the rules and the stream was reset.
    pub fn accept(&mut self, poll: &OwnedFd, id: u32, payload: &[u8], fin: bool) -> bool {
        let Some(input) = self.inputs.get_mut(&id) else {
            return payload.is_empty() && fin;
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if input.ended || length > input.allowance || (length == 0 && !fin) {
            self.reset(poll, id);
            return false;
        }
        input.allowance -= length;
        input.buffer.extend(payload);
        input.ended = fin;
        if fin && input.end == End::Terminal {
            input.buffer.push_back(4);
        }
        true
    }

    /// The reader of an input is gone: the host learns that nothing more is wanted.
    pub fn input_gone(&mut self, poll: &OwnedFd, port: &mut Port, nonce: u64, id: u32) {
        if self.inputs.contains_key(&id) {
            port.send(encode(nonce, Kind::Reset, 0, id, &[]));
            self.reset(poll, id);
        }
    }

    /// Writes buffered input to its pipe, and gives credit back.
    pub fn drain_input(&mut self, poll: &OwnedFd, port: &mut Port, nonce: u64, id: u32) {
        let Some(input) = self.inputs.get_mut(&id) else { return };
        while !input.buffer.is_empty() {
            let (front, _) = input.buffer.as_slices();
            match rustix::io::write(&input.fd, front) {
                Ok(count) => {
                    input.buffer.drain(..count);
                    input.owed += u32::try_from(count).unwrap_or(0);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !input.blocked {
                        change(poll, &input.fd, Source::Input(id), EventFlags::OUT);
                        input.blocked = true;
                    }
                    break;
                }
                Err(_) => {
                    self.input_gone(poll, port, nonce, id);
                    return;
                }
            }
        }
        let empty = input.buffer.is_empty();
        if input.ended {
            if empty {
                if input.end == End::Socket {
                    // The other direction has a descriptor of its own, which keeps the connection open.
                    let _ = rustix::net::shutdown(&input.fd, rustix::net::Shutdown::Write);
                }
                // The host learns that all was taken, and forgets the stream too.
                port.send(encode(nonce, Kind::Reset, 0, id, &[]));
                self.reset(poll, id);
            }
            return;
        }
        if input.owed >= CREDIT_STEP || (empty && input.owed > 0) {
            input.allowance += input.owed;
            port.send(encode(nonce, Kind::Credit, 0, id, &input.owed.to_le_bytes()));
            input.owed = 0;
        }
        if empty && input.blocked {
            change(poll, &input.fd, Source::Input(id), EventFlags::empty());
            input.blocked = false;
        }
    }
}
