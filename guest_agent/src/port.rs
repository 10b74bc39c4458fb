//! The channel to the host: nonblocking reads into the decoder, and a queue of frames written as the channel takes them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::frame::{Decoder, Frame};

/// Above this many queued bytes no stream is read: the queue then holds answers and events alone.
pub const QUEUE_BOUND: usize = 512 * 1024;

pub enum Heard {
    /// All that there was has been read.
    Drained,
    /// The other side is gone (a virtio-serial port may be opened again, a socket not).
    Closed,
}

pub struct Port {
    fd: OwnedFd,
    decoder: Decoder,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    offset: usize,
    scratch: Box<[u8]>,
}

impl Port {
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            decoder: Decoder::default(),
            queue: VecDeque::new(),
            queued: 0,
            offset: 0,
            scratch: vec![0; 32 * 1024].into_boxed_slice(),
        }
    }

    /// Reads once; call until `Drained`.
    pub fn read(&mut self) -> Option<Heard> {
        match rustix::io::read(&self.fd, &mut self.scratch[..]) {
            Ok(0) => Some(Heard::Closed),
            Ok(count) => {
                self.decoder.push(&self.scratch[..count]);
                None
            }
            Err(Errno::INTR) => None,
            Err(Errno::AGAIN) => Some(Heard::Drained),
            Err(_) => Some(Heard::Closed),
        }
    }

    pub fn next_frame(&mut self) -> Option<Frame> {
        self.decoder.next()
    }

    /// The host's side was closed: what it left half-written has no end.
    pub fn forget_half_frame(&mut self) {
        self.decoder.clear();
    }

    pub fn has_room(&self) -> bool {
        self.queued < QUEUE_BOUND
    }

    pub fn send(&mut self, frame: Vec<u8>) {
        self.queued += frame.len();
        self.queue.push_back(frame);
    }

    /// Drops what was not begun; a frame already begun is finished, so that the host's decoder stays in step.
    pub fn drop_queued(&mut self) {
        self.queue.truncate(usize::from(self.offset > 0));
        self.queued = self.queue.iter().map(Vec::len).sum::<usize>() - self.offset;
    }

    /// Writes as much as the channel takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(front) = self.queue.front() {
            match rustix::io::write(&self.fd, &front[self.offset..]) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(count) => {
                    self.offset += count;
                    self.queued -= count;
                    if self.offset == front.len() {
                        self.queue.pop_front();
                        self.offset = 0;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
