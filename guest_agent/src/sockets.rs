//! TCP connections of a former identity, ended by sock_diag(7)'s SOCK_DESTROY. The kernel's documentation of both is
//! include/uapi/linux/inet_diag.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SOCK_DIAG;

use crate::fault::{Doing, Outcome};
use crate::netlink::{ACK, DUMP, Message, Netlink};

/// Lists both families at once, which SOCK_DIAG_BY_FAMILY does not.
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DESTROY: u16 = 21;
/// All states but LISTEN and CLOSE, as bits.
const CONNECTED: u32 = 0xfff & !(1 << 10) & !(1 << 7) & !1;
/// struct inet_diag_sockid: ports, addresses, interface, cookie.
const ID: usize = 48;

/// struct inet_diag_req: family, prefixes, extensions; the id, states, and a member without use.
fn listing() -> Vec<u8> {
    [&[0; 4][..], &[0; ID], &CONNECTED.to_ne_bytes(), &[0; 4]].concat()
}

/// struct inet_diag_req_v2: family, protocol, extensions, padding; states and the id.
fn one(family: u8, id: &[u8]) -> Vec<u8> {
    [&[family, libc::IPPROTO_TCP as u8, 0, 0][..], &CONNECTED.to_ne_bytes(), id].concat()
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if i32::from(family) == libc::AF_INET {
        Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into())
    } else {
        Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).to_canonical())
    }
}

/// Whether both ends are loopback addresses: such a connection never left the pod, and is as good as before.
fn is_within_the_pod(family: u8, id: &[u8]) -> bool {
    let ends = id.get(4..20).zip(id.get(20..36));
    ends.and_then(|(source, target)| address(family, source).zip(address(family, target)))
        .is_some_and(|(source, target)| source.is_loopback() && target.is_loopback())
}

/// Destroys what is connected; listeners stay. Called while the machine has no address but loopback, so that the reset
/// that the kernel would send finds no way out: the peer may be connected to another clone, or to the original.
pub fn destroy_connections() -> Outcome<()> {
    let mut netlink = Netlink::open(Some(SOCK_DIAG))?;
    let message = Message::new(TCPDIAG_GETSOCK, DUMP, &listing());
    let found = netlink.ask(message).doing(|| "list the TCP connections".to_owned())?;
    for (_, body) in found {
        // struct inet_diag_msg: family, state, timer, retransmissions, the id.
        let (Some(family), Some(id)) = (body.first().copied(), body.get(4..4 + ID)) else { continue };
        if is_within_the_pod(family, id) {
            continue;
        }
        // ENOENT: it ended in the meantime.
        let message = Message::new(SOCK_DESTROY, ACK, &one(family, id));
        netlink.tell(message, libc::ENOENT, || "destroy a TCP connection".to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(source: IpAddr, target: IpAddr) -> Vec<u8> {
        let padded = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => [&ip.octets()[..], &[0; 12]].concat(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        [&[0; 4][..], &padded(source), &padded(target), &[0; 12]].concat()
    }

    #[test]
    fn only_loopback_to_loopback_is_within_the_pod() {
        let (four, six) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
        for (family, source, target, within) in [
            (four, "127.0.0.1", "127.0.0.53", true),
            (four, "10.88.0.2", "10.88.0.2", false),
            (four, "127.0.0.1", "10.88.0.2", false),
            (six, "::1", "::1", true),
            (six, "::ffff:127.0.0.1", "::ffff:127.0.0.1", true),
            (six, "fd00::2", "fd00::3", false),
        ] {
            let id = id(source.parse().unwrap(), target.parse().unwrap());
            assert_eq!(id.len(), ID);
            assert_eq!(is_within_the_pod(family, &id), within, "{source} {target}");
        }
        assert!(!is_within_the_pod(four, &[]));
    }
}
