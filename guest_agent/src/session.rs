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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::frame::{Decoder, Kind};

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn vectors() {
        let file: Value = serde_json::from_str(include_str!("../vectors/messages.json")).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let mut session = Session::new(u64::from_str_radix(vector["nonce"].as_str().unwrap(), 16).unwrap());
            let mut decoder = Decoder::default();
            decoder.push(&unhex(vector["input"].as_str().unwrap()));
            let mut heard = Vec::new();
            while let Some(frame) = decoder.next() {
                let stream = frame.stream;
                if frame.nonce != session.nonce {
                    continue;
                }
                if let Heard::Message(message) = session.assemble(frame) {
                    let text = String::from_utf8(message).unwrap();
                    heard.push(json!({"type": "REQUEST", "stream": stream, "payload": text}));
                }
            }
            assert_eq!(Value::from(heard), vector["messages"], "{}", vector["name"]);
        }
    }

    fn part(stream: u32, size: usize, more: bool) -> Frame {
        let flags = if more { MORE } else { 0 };
        Frame { nonce: 1, kind: Kind::Request, flags, stream, payload: vec![b' '; size] }
    }

    #[test]
    fn too_long_is_said_once_and_the_rest_dropped() {
        let mut session = Session::new(1);
        let mut heard: Vec<Heard> = (0..70).map(|_| session.assemble(part(7, 65_536, true))).collect();
        heard.push(session.assemble(part(7, 1, false)));
        assert_eq!(heard.iter().filter(|heard| **heard == Heard::TooLong).count(), 1);
        assert!(!heard.iter().any(|heard| matches!(heard, Heard::Message(_))));
        assert_eq!(session.assemble(part(7, 2, false)), Heard::Message(b"  ".to_vec()));
    }

    #[test]
    fn depth_counts_outside_strings() {
        assert!(!too_deep(&[&[b'['; 64][..], &[b']'; 64]].concat()));
        assert!(too_deep(&[b'['; 65]));
        assert!(!too_deep(br#""\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[""#));
    }
}
