//! What the fuzz targets (`fuzz/`) call: the parsers, each with the checks that follow it.

use crate::container::caps::Sets;
use crate::container::namespaces::Own;
use crate::container::seccomp::Filter;
use crate::container::spec::User;
use crate::container::{device_filter, mounts, user};
use crate::frame::{Decoder, HEADER, MAGIC, encode};
use crate::request::{Request, parse};
use crate::session::{Heard, MAX_MESSAGE, Session};

/// Makes what begins like a frame one: a fuzzer does not guess checksums.
fn repair(bytes: &mut [u8]) {
    for at in 0..bytes.len().saturating_sub(HEADER - 1) {
        if bytes[at..].starts_with(&MAGIC) {
            let checksum = crc32fast::hash(&bytes[at..at + HEADER - 4]);
            bytes[at + HEADER - 4..at + HEADER].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

/// The first byte says how many bytes come at once, its highest bit that checksums are repaired. However the bytes are
/// cut, the frames are the same, and each is what encoding it again gives.
pub fn frames(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if how & 0x80 != 0 {
        repair(&mut bytes);
    }
    let mut whole = Decoder::default();
    whole.push(&bytes);
    let frames: Vec<_> = std::iter::from_fn(|| whole.next()).collect();
    let (mut decoder, mut session, mut heard) = (Decoder::default(), Session::new(1), Vec::new());
    for chunk in bytes.chunks(usize::from(how & 0x7f).max(1)) {
        decoder.push(chunk);
        heard.extend(std::iter::from_fn(|| decoder.next()));
    }
    assert_eq!(heard, frames);
    for frame in frames {
        let encoded = encode(frame.nonce, frame.kind, frame.flags, frame.stream, &frame.payload);
        assert!(bytes.windows(encoded.len()).any(|window| window == encoded));
        if let Heard::Message(message) = session.assemble(frame) {
            assert!(message.len() <= MAX_MESSAGE);
        }
    }
}

/// A request, and what is checked of it before anything is carried out.
pub fn request(bytes: &[u8]) {
    let process = match parse(bytes) {
        Ok(Request::ContainerCreate(wanted)) => {
            let spec = wanted.spec;
            let _ = spec.check();
            let _ = Own::parse(&spec.linux.namespaces);
            let _ = spec.linux.seccomp.as_ref().map(Filter::parse);
            let _ = device_filter::compile(&spec.linux.resources.devices);
            for mount in &spec.mounts {
                let _ = mounts::parse(&mount.options);
            }
            spec.process
        }
        Ok(Request::ProcessExec(wanted)) => wanted.process,
        _ => return,
    };
    let _ = process.check();
    let _ = Sets::parse(process.capabilities.as_ref());
}

/// User name, passwd and group, separated by NUL bytes.
pub fn accounts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (name, passwd, group) = (next(), next(), next());
    let user = User { username: name.to_owned(), ..User::default() };
    let _ = user::look_up(&user, passwd, group);
}

#[cfg(test)]
mod tests {
    /// What fuzzing found worth keeping, `fuzz/corpus`.
    #[test]
    fn saved_inputs() {
        for (folder, target) in
            [("frames", super::frames as fn(&[u8])), ("request", super::request), ("accounts", super::accounts)]
        {
            let path = format!("{}/fuzz/corpus/{folder}", env!("CARGO_MANIFEST_DIR"));
            let mut count = 0;
            for entry in std::fs::read_dir(path).unwrap() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{folder}");
        }
    }
}
