//! TCP connections of the host's into the guest: `network.probe`, and `port.connect`, whose bytes go over two streams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use serde_json::json;

use crate::agent::{Agent, Reply};
use crate::fault::{Code, Doing, Fault, Outcome, words};
use crate::request::{PortConnect, Probe, SocketStreams};
use crate::source::Source;
use crate::streams::End;

/// A connection attempt under way.
pub struct Attempt {
    socket: OwnedFd,
    reply: Reply,
    to: SocketAddr,
    /// Where its bytes go; a probe's go nowhere.
    streams: Option<SocketStreams>,
}

pub fn probe(agent: &mut Agent, reply: Reply, wanted: &Probe) -> Outcome<()> {
    attempt(agent, reply, SocketAddr::new(wanted.address, wanted.port), None)
}

/// Connects to the pod's own localhost: by IPv4, and where nothing listens there by IPv6.
pub fn to_port(agent: &mut Agent, reply: Reply, wanted: &PortConnect) -> Outcome<()> {
    let SocketStreams { input, output } = wanted.streams;
    let free = |id: u32| id != 0 && !agent.streams.knows(id);
    if input == output || !free(input) || !free(output) {
        return Err(Fault::invalid("streams: an id is 0 or already in use"));
    }
    if wanted.port == 0 {
        return Err(Fault::invalid("port 0"));
    }
    let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), wanted.port);
    attempt(agent, reply, to, Some(wanted.streams))
}

fn unreachable(to: SocketAddr, error: Errno) -> Fault {
    Fault::new(Code::Unavailable, format!("dial tcp {to}: connect: {}", words(&error.into())))
}

fn begin(to: SocketAddr) -> Outcome<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None).doing(|| "open a socket".to_owned())?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(unreachable(to, error)),
    }
}

fn attempt(agent: &mut Agent, reply: Reply, to: SocketAddr, streams: Option<SocketStreams>) -> Outcome<()> {
    let socket = begin(to)?;
    agent.watch(&socket, Source::Attempt(reply.request), EventFlags::OUT | EventFlags::ONESHOT)?;
    agent.attempts.insert(reply.request, Attempt { socket, reply, to, streams });
    Ok(())
}

/// The attempt of this request has succeeded or failed.
pub fn ended(agent: &mut Agent, request: u32) {
    let Some(Attempt { socket, reply, to, streams }) = agent.attempts.remove(&request) else { return };
    // Its session's streams are gone.
    if reply.nonce != agent.session.nonce {
        return;
    }
    let outcome = match sockopt::socket_error(&socket) {
        Ok(Ok(())) => streams.map_or(Ok(()), |streams| carry(agent, socket, streams)),
        Ok(Err(error)) | Err(error) => {
            // The former socket goes first: it is watched under the same token.
            drop(socket);
            if streams.is_some() && to.is_ipv4() {
                let six = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), to.port());
                if attempt(agent, reply, six, streams).is_ok() {
                    return;
                }
            }
            Err(unreachable(to, error))
        }
    };
    agent.answer(reply, outcome.map(|()| json!({})));
}

fn carry(agent: &mut Agent, socket: OwnedFd, streams: SocketStreams) -> Outcome<()> {
    // What a user types comes in small pieces.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let reader = rustix::io::fcntl_dupfd_cloexec(&socket, 5).doing(|| "duplicate a socket".to_owned())?;
    // It was watched as an attempt, and goes on being so as long as a duplicate of it is open.
    let _ = rustix::event::epoll::delete(&agent.poll, &socket);
    agent.streams.add_input(&agent.poll, streams.input, socket, End::Socket);
    agent.streams.add_output(&agent.poll, streams.output, reader, End::Socket);
    Ok(())
}
