//! One session with the host: its nonce, half-received messages, requests under way.

use std::collections::{HashMap, HashSet};

use crate::frame::{Frame, MORE};

/// Bytes a message over several frames may have.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Requests under way at once.
pub const MAX_REQUESTS: usize = 256;
/// Bytes that all half-received messages may hold together.
const MAX_PARTIAL: usize = 16 << 20;
/// Levels of JSON arrays and objects.
const MAX_DEPTH: usize = 64;

#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Incomplete,
    Message(Vec<u8>),
    /// Too long: answered once, the rest of the message is dropped.
    TooLong,
}

#[derive(Default)]
pub struct Session {
    pub nonce: u64,
    pub under_way: HashSet<u32>,
    partial: HashMap<u32, Vec<u8>>,
    dropping: HashSet<u32>,
}

impl Session {
    pub fn new(nonce: u64) -> Self {
        Self { nonce, ..Self::default() }
    }

    /// Joins the frames of a request.
    pub fn assemble(&mut self, frame: Frame) -> Heard {
        let more = frame.flags & MORE != 0;
        if self.dropping.contains(&frame.stream) {
            if !more {
                self.dropping.remove(&frame.stream);
            }
            return Heard::Incomplete;
        }
        if !more && !self.partial.contains_key(&frame.stream) {
            return Heard::Message(frame.payload);
        }
        let held: usize = self.partial.values().map(Vec::len).sum();
        let message = self.partial.entry(frame.stream).or_default();
        if message.len() + frame.payload.len() > MAX_MESSAGE || held + frame.payload.len() > MAX_PARTIAL {
            self.partial.remove(&frame.stream);
            if more {
                self.dropping.insert(frame.stream);
            }
            return Heard::TooLong;
        }
        message.extend_from_slice(&frame.payload);
        if more {
            return Heard::Incomplete;
        }
        self.partial.remove(&frame.stream).map_or(Heard::Incomplete, Heard::Message)
    }
}

/// True when arrays and objects nest deeper than the protocol allows.
pub fn too_deep(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}
