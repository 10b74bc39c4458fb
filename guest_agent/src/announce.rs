//! Gratuitous ARP and unsolicited neighbour advertisements: others learn at once whose address this is now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use crate::network::Mac;
use crate::sys;

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

fn ethernet(destination: Mac, source: Mac, kind: u16) -> Vec<u8> {
    [&destination[..], &source[..], &kind.to_be_bytes()].concat()
}

/// An ARP request for one's own address, RFC 5227 section 3.
fn arp(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, address lengths, request.
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&ip.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&ip.octets());
    frame
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for pair in parts.concat().chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An unsolicited neighbour advertisement with the override flag, RFC 4861 section 7.2.6, to all nodes.
fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend_from_slice(&ip.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac);
    let length = u32::try_from(message.len()).unwrap_or(0);
    let sum = checksum(&[&ip.octets(), &all_nodes.octets(), &length.to_be_bytes(), &[0, 0, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(length as u16).to_be_bytes());
    frame.extend_from_slice(&[58, 255]);
    frame.extend_from_slice(&ip.octets());
    frame.extend_from_slice(&all_nodes.octets());
    frame.extend_from_slice(&message);
    frame
}

/// One for each network namespace that the agent was in, the last is the present one's. Kept open from boot on: the
/// kernel waits out an RCU grace period, 10 ms and more, whenever a packet socket is closed.
static SOCKETS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Opens the socket ahead of its use, in the network namespace that is the agent's now.
pub fn prepare() {
    if let (Ok(mut sockets), Ok(socket)) = (SOCKETS.lock(), sys::packet_socket()) {
        sockets.push(socket);
    }
}

/// Announces the addresses. A lost announcement costs a peer one stale entry, so failures are not errors.
pub fn announce(index: u32, mac: Mac, addresses: &[IpAddr]) {
    let Ok(sockets) = SOCKETS.lock() else { return };
    let Some(socket) = sockets.last() else { return };
    for ip in addresses {
        let frame = match ip {
            IpAddr::V4(ip) => arp(mac, *ip),
            IpAddr::V6(ip) => advertisement(mac, *ip),
        };
        let _ = sys::send_packet(socket, index, &frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_sizes_of_their_rfcs() {
        assert_eq!(arp([2; 6], Ipv4Addr::new(10, 88, 0, 2)).len(), 14 + 28);
        let frame = advertisement([2; 6], Ipv6Addr::LOCALHOST);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let length = 32_u32.to_be_bytes();
        assert_eq!(checksum(&[&frame[22..54], &length, &[0, 0, 0, 58], &frame[54..]]), 0);
    }
}
