//! The frame codec of docs/protocol.md: bytes to frames and back, without I/O.
//!
//! A decoder never fails: bytes that are no valid header are skipped one by one until the next one that is.

use crc32fast::hash;

pub const MAGIC: [u8; 4] = *b"THAW";
/// Bytes in a header.
pub const HEADER: usize = 28;
/// Bytes a payload may have at most.
pub const MAX_PAYLOAD: usize = 65_536;
/// DATA: the last frame of this direction.
pub const FIN: u8 = 1;
/// REQUEST, RESPONSE, EVENT: the message goes on in the next frame of this type and stream.
pub const MORE: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Hello = 1,
    Request = 2,
    Response = 3,
    Event = 4,
    Data = 5,
    Credit = 6,
    Reset = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Response,
            4 => Self::Event,
            5 => Self::Data,
            6 => Self::Credit,
            7 => Self::Reset,
            _ => return None,
        })
    }

    fn flags(self) -> u8 {
        match self {
            Self::Data => FIN,
            Self::Request | Self::Response | Self::Event => MORE,
            Self::Hello | Self::Credit | Self::Reset => 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub nonce: u64,
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// The bytes of a frame. The caller keeps `payload` within [`MAX_PAYLOAD`].
pub fn encode(nonce: u64, kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let mut out = Vec::with_capacity(HEADER + payload.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&nonce.to_le_bytes());
    out.push(kind as u8);
    out.push(flags);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&stream.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    let checksum = hash(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

struct Header {
    nonce: u64,
    kind: Kind,
    flags: u8,
    stream: u32,
    length: usize,
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn parse_header(bytes: &[u8; HEADER]) -> Option<Header> {
    if bytes[..4] != MAGIC || hash(&bytes[..24]) != u32_at(bytes, 24) {
        return None;
    }
    let kind = Kind::from_byte(bytes[12])?;
    let flags = bytes[13];
    let length = u32_at(bytes, 20) as usize;
    if flags & !kind.flags() != 0 || bytes[14..16] != [0, 0] || length > MAX_PAYLOAD {
        return None;
    }
    let nonce = u64::from(u32_at(bytes, 4)) | u64::from(u32_at(bytes, 8)) << 32;
    Some(Header { nonce, kind, flags, stream: u32_at(bytes, 16), length })
}

/// Bytes in, frames out. Holds at most one frame and one read's worth of bytes.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    skipped: u64,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets a half-received frame: the other side is another one from here on.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.start = 0;
    }

    /// Bytes that belonged to no frame, since the beginning.
    #[cfg(test)]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.skipped += count as u64;
    }

    /// The next whole frame, or None until more bytes are pushed.
    pub fn next(&mut self) -> Option<Frame> {
        loop {
            let rest = &self.buffer[self.start..];
            let Some(at) = rest.iter().position(|byte| *byte == MAGIC[0]) else {
                self.skip(rest.len());
                return None;
            };
            if at > 0 {
                self.skip(at);
                continue;
            }
            let known = rest.len().min(MAGIC.len());
            if rest[..known] != MAGIC[..known] {
                self.skip(1);
                continue;
            }
            let bytes: &[u8; HEADER] = rest.first_chunk()?;
            let Some(header) = parse_header(bytes) else {
                self.skip(1);
                continue;
            };
            let payload = rest.get(HEADER..HEADER + header.length)?.to_vec();
            self.start += HEADER + header.length;
            return Some(Frame {
                nonce: header.nonce,
                kind: header.kind,
                flags: header.flags,
                stream: header.stream,
                payload,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn decode(chunks: &[Vec<u8>]) -> (Vec<Frame>, u64) {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            frames.extend(std::iter::from_fn(|| decoder.next()));
        }
        (frames, decoder.skipped())
    }

    fn expected(frame: &Value) -> Frame {
        let text = |name: &str| frame[name].as_str().unwrap();
        let kind = (1..=7).filter_map(Kind::from_byte).find(|kind| format!("{kind:?}").to_uppercase() == text("type"));
        Frame {
            nonce: u64::from_str_radix(text("nonce"), 16).unwrap(),
            kind: kind.unwrap(),
            flags: u8::try_from(frame["flags"].as_u64().unwrap()).unwrap(),
            stream: u32::try_from(frame["stream"].as_u64().unwrap()).unwrap(),
            payload: unhex(text("payload")),
        }
    }

    #[test]
    fn vectors() {
        let file: Value = serde_json::from_str(include_str!("../vectors/frames.json")).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let chunks: Vec<_> =
                vector["chunks"].as_array().unwrap().iter().map(|hex| unhex(hex.as_str().unwrap())).collect();
            let wanted: Vec<_> = vector["frames"].as_array().unwrap().iter().map(expected).collect();
            let (frames, skipped) = decode(&chunks);
            assert_eq!(frames, wanted, "{}", vector["name"]);
            assert_eq!(skipped, vector["skipped"].as_u64().unwrap(), "{}", vector["name"]);
        }
    }

    #[test]
    fn largest_payload() {
        let payload = vec![7; MAX_PAYLOAD];
        let (frames, skipped) = decode(&[encode(1, Kind::Data, 0, 9, &payload)]);
        assert_eq!((frames[0].payload.len(), skipped), (MAX_PAYLOAD, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let given: usize = chunks.iter().map(Vec::len).sum();
            prop_assert!(decode(&chunks).1 <= given as u64);
        }

        #[test]
        fn frames_survive_garbage_and_cuts(
            garbage in prop::collection::vec(any::<u8>(), 0..100),
            payload in prop::collection::vec(any::<u8>(), 0..300),
            nonce in 1_u64..,
            stream in any::<u32>(),
            cut in 0_usize..400,
        ) {
            let bytes = [garbage, encode(nonce, Kind::Data, 0, stream, &payload)].concat();
            let cut = cut.min(bytes.len());
            let (frames, _) = decode(&[bytes[..cut].to_vec(), bytes[cut..].to_vec()]);
            prop_assert_eq!(frames, [Frame { nonce, kind: Kind::Data, flags: 0, stream, payload }]);
        }
    }
}
