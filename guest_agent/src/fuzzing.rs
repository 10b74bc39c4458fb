//! What the fuzz targets (`fuzz/`) call: the parsers, each with the checks that follow it.

use crate::container::caps::Sets;
use crate::container::namespaces::Own;
use crate::container::spec::User;
use crate::container::{device_filter, mounts, user};
use crate::frame::{Decoder, encode};
use crate::request::{Request, parse};
use crate::session::{Heard, MAX_MESSAGE, Session};

/// The first byte is how many bytes come at once; frames must be what encoding them again gives.
pub fn frames(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let (mut decoder, mut session) = (Decoder::default(), Session::new(1));
    let mut again = Vec::new();
    for chunk in bytes.chunks(usize::from(*size).max(1)) {
        decoder.push(chunk);
        while let Some(frame) = decoder.next() {
            let encoded = encode(frame.nonce, frame.kind, frame.flags, frame.stream, &frame.payload);
            assert!(bytes.windows(encoded.len()).any(|window| window == encoded));
            again.push(frame.clone());
            if let Heard::Message(message) = session.assemble(frame) {
                assert!(message.len() <= MAX_MESSAGE);
            }
        }
    }
    let mut whole = Decoder::default();
    whole.push(bytes);
    assert!(std::iter::from_fn(|| whole.next()).eq(again));
}

/// A request, and what is checked of it before anything is carried out.
pub fn request(bytes: &[u8]) {
    let process = match parse(bytes) {
        Ok(Request::ContainerCreate(wanted)) => {
            let spec = wanted.spec;
            let _ = spec.check();
            let _ = Own::parse(&spec.linux.namespaces);
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
