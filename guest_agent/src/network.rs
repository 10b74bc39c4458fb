//! The pod's network inside the guest: `eth0` and `lo`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use serde::Deserialize;

use crate::container::userns::{self, Space};
use crate::fault::{Doing, Fault, Outcome};
use crate::netlink::{ACK, CREATE, DUMP, Message, Netlink, REPLACE, attributes};
use crate::sockets;

const LINK: &str = "eth0";
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const IFF_UP: u32 = 1;
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const SCOPE_LINK: u8 = 253;
const NUD_PERMANENT: u16 = 0x80;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    mac: String,
    #[serde(default = "usual_mtu")]
    mtu: u32,
    addresses: Vec<String>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    neighbours: Vec<Neighbour>,
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
}

fn usual_mtu() -> u32 {
    1500
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    dst: String,
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Neighbour {
    ip: IpAddr,
    mac: String,
}

pub type Mac = [u8; 6];

fn parse_mac(text: &str) -> Outcome<Mac> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+')))
        .collect();
    let mac: Option<Mac> = bytes.and_then(|bytes| bytes.try_into().ok());
    mac.ok_or_else(|| Fault::invalid(format!("network: {text:?} is no MAC address")))
}

fn parse_prefix(text: &str) -> Outcome<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(ip, length)| {
        let ip: IpAddr = ip.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        Some((ip, length.parse().ok().filter(|length| *length <= most)?))
    });
    parsed.ok_or_else(|| Fault::invalid(format!("network: {text:?} is no address with a prefix length")))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Asked of the kernel: /sys shows the network namespace that it was mounted in.
fn index_of(netlink: &Netlink, name: &str) -> Outcome<u32> {
    rustix::net::netdevice::name_to_index(netlink, name).doing(|| format!("network: find {name}"))
}

fn link_message(index: u32, flags: u32) -> Message {
    let mut fixed = vec![0; 4];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    Message::new(RTM_NEWLINK, ACK, &fixed)
}

/// Brings `lo` and, where there is one, `eth0` up: at boot, so that a restored guest need not; and in a network namespace
/// that is new.
pub fn boot() -> Outcome<()> {
    crate::announce::prepare();
    let mut netlink = Netlink::open(None)?;
    for name in ["lo", LINK] {
        if let Ok(index) = index_of(&netlink, name) {
            // No autoconfiguration: the host alone gives addresses, and the link-local one follows from the pod's MAC,
            // not the snapshot's.
            for (setting, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1")]
            {
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), value);
            }
            netlink.tell(link_message(index, IFF_UP), 0, || format!("network: {name} up"))?;
        }
    }
    Ok(())
}

/// Has the kernel keep the connections that it tracks in 8,192 buckets at most, and as many of them as before.
///
/// It looks into each bucket once a minute, also where nothing is tracked: 10 ms under emulation for the 65,536 buckets
/// that it makes for a guest of more than 1 GiB.
pub fn track_in_few_buckets() -> Outcome<()> {
    const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
    const MOST: u32 = 8192;
    // The module is one that a kernel need not have.
    let Ok(text) = fs::read_to_string(BUCKETS) else { return Ok(()) };
    if text.trim().parse::<u32>().is_ok_and(|buckets| buckets <= MOST) {
        return Ok(());
    }
    fs::write(BUCKETS, MOST.to_string()).doing(|| format!("write {BUCKETS}"))
}

/// Moves `eth0`, where there is one, into another network namespace. Nothing that was set of it goes along.
pub fn move_link(target: BorrowedFd<'_>) -> Outcome<()> {
    const IFLA_NET_NS_FD: u16 = 28;
    let mut netlink = Netlink::open(None)?;
    let Ok(index) = index_of(&netlink, LINK) else { return Ok(()) };
    let message = link_message(index, 0).attribute(IFLA_NET_NS_FD, &target.as_raw_fd().to_ne_bytes());
    netlink.tell(message, 0, || format!("network: move {LINK}"))
}

/// Takes a dumped object's fixed part and attributes back as a request to delete it, when it belongs to the link.
fn delete_all(netlink: &mut Netlink, get: u16, delete: u16, fixed: usize, mine: impl Fn(&[u8]) -> bool) -> Outcome<()> {
    let dumped = netlink.ask(Message::new(get, DUMP, &vec![0; fixed])).doing(|| "network: list".to_owned())?;
    for (_, body) in dumped {
        if body.len() >= fixed && mine(&body) {
            let mut message = Message::new(delete, ACK, &body[..fixed]);
            for (kind, value) in attributes(&body[fixed..]) {
                message = message.attribute(kind, value);
            }
            // ESRCH and the like: an earlier deletion took it along.
            let _ = netlink.ask(message);
        }
    }
    Ok(())
}

fn belongs(body: &[u8], fixed: usize, attribute: u16, index: u32) -> bool {
    attributes(body.get(fixed..).unwrap_or_default())
        .any(|(kind, value)| kind == attribute && value == index.to_ne_bytes())
}

fn flush(netlink: &mut Netlink, index: u32) -> Outcome<()> {
    const RTA_OIF: u16 = 4;
    let at_four = |body: &[u8]| body.get(4..8) == Some(&index.to_ne_bytes());
    delete_all(netlink, RTM_GETADDR, RTM_DELADDR, 8, at_four)?;
    delete_all(netlink, RTM_GETROUTE, RTM_DELROUTE, 12, |body| {
        body[4] == RT_TABLE_MAIN && belongs(body, 12, RTA_OIF, index)
    })?;
    delete_all(netlink, RTM_GETNEIGH, RTM_DELNEIGH, 12, at_four)
}

fn add_address(netlink: &mut Netlink, index: u32, text: &str) -> Outcome<IpAddr> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let (ip, length) = parse_prefix(text)?;
    let mut fixed = vec![family(ip), length, if ip.is_ipv6() { IFA_F_NODAD } else { 0 }, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let bytes = octets(ip);
    let message = Message::new(RTM_NEWADDR, ACK | CREATE | REPLACE, &fixed)
        .attribute(IFA_LOCAL, &bytes)
        .attribute(IFA_ADDRESS, &bytes);
    netlink.tell(message, 0, || format!("network: add address {text}"))?;
    Ok(ip)
}

fn add_route(netlink: &mut Netlink, index: u32, route: &Route) -> Outcome<()> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTNH_F_ONLINK: u32 = 4;
    let (ip, length) = parse_prefix(&route.dst)?;
    let scope = if route.gateway.is_none() && ip.is_ipv4() { SCOPE_LINK } else { 0 };
    let mut fixed = vec![family(ip), length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST];
    // A gateway outside all prefixes (a point-to-point CNI plugin's) is on the link all the same.
    fixed.extend_from_slice(&(if route.gateway.is_some() { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
    let mut message =
        Message::new(RTM_NEWROUTE, ACK | CREATE | REPLACE, &fixed).attribute(RTA_OIF, &index.to_ne_bytes());
    if length > 0 {
        message = message.attribute(RTA_DST, &octets(ip));
    }
    if let Some(gateway) = route.gateway {
        message = message.attribute(RTA_GATEWAY, &octets(gateway));
    }
    netlink.tell(message, 0, || format!("network: add route {}", route.dst))
}

fn add_neighbour(netlink: &mut Netlink, index: u32, neighbour: &Neighbour) -> Outcome<()> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let mut fixed = vec![family(neighbour.ip), 0, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    fixed.extend_from_slice(&[0, 0]);
    let message = Message::new(RTM_NEWNEIGH, ACK | CREATE | REPLACE, &fixed)
        .attribute(NDA_DST, &octets(neighbour.ip))
        .attribute(NDA_LLADDR, &parse_mac(&neighbour.mac)?);
    netlink.tell(message, 0, || format!("network: add neighbour {}", neighbour.ip))
}

/// The address that neighbour discovery uses, RFC 4291 appendix A.
fn link_local(mac: Mac) -> std::net::Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let [a, b, c, d, e, f] = mac;
    std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// Step `network` of `restore`, in the namespaces of the pod's user namespace where it has one.
pub fn configure(network: &Network, space: Option<&Space>) -> Outcome<()> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_MTU: u16 = 4;
    let mac = parse_mac(&network.mac)?;
    let mut netlink = Netlink::open(None)?;
    let index = index_of(&netlink, LINK)?;
    flush(&mut netlink, index)?;
    sockets::destroy_connections()?;
    let link =
        link_message(index, IFF_UP).attribute(IFLA_ADDRESS, &mac).attribute(IFLA_MTU, &network.mtu.to_ne_bytes());
    netlink.tell(link, 0, || format!("network: set {LINK} to {} and MTU {}", network.mac, network.mtu))?;
    for (name, value) in &network.sysctls {
        let set = crate::sysctl::set(name, value);
        if set.is_err() && !space.is_some_and(|space| userns::set_sysctl(space, name, value)) {
            return set;
        }
    }
    let mut addresses = Vec::new();
    for text in &network.addresses {
        addresses.push(add_address(&mut netlink, index, text)?);
    }
    if addresses.iter().any(IpAddr::is_ipv6) {
        add_address(&mut netlink, index, &format!("{}/64", link_local(mac)))?;
    }
    // Routes on the link first: gateways are reached by them.
    for route in network.routes.iter().filter(|route| route.gateway.is_none()) {
        add_route(&mut netlink, index, route)?;
    }
    for route in network.routes.iter().filter(|route| route.gateway.is_some()) {
        add_route(&mut netlink, index, route)?;
    }
    for neighbour in &network.neighbours {
        add_neighbour(&mut netlink, index, neighbour)?;
    }
    crate::announce::announce(index, mac, &addresses);
    Ok(())
}

/// Addresses of all links, as `index address/prefix`, for `state`.
pub fn addresses() -> Vec<String> {
    const IFA_ADDRESS: u16 = 1;
    let Ok(mut netlink) = Netlink::open(None) else { return Vec::new() };
    let dumped = netlink.ask(Message::new(RTM_GETADDR, DUMP, &[0; 8])).unwrap_or_default();
    let mut lines: Vec<String> = dumped
        .iter()
        .filter(|(_, body)| body.len() >= 8)
        .filter_map(|(_, body)| {
            let (_, value) = attributes(&body[8..]).find(|(kind, _)| *kind == IFA_ADDRESS)?;
            let ip = match value.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
            };
            Some(format!("{} {ip}/{}", u32::from_ne_bytes(body[4..8].try_into().ok()?), body[1]))
        })
        .collect();
    lines.sort();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_follows_from_the_mac() {
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]).to_string(), "fe80::5054:ff:fe12:3456");
    }

    #[test]
    fn texts_are_parsed_or_named() {
        assert_eq!(parse_mac("02:00:0a:58:00:02").unwrap(), [2, 0, 10, 88, 0, 2]);
        for bad in ["", "02:00", "02:00:0a:58:00:0g", "02:00:0a:58:00:02:03", "+2:00:0a:58:00:02"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_prefix("10.88.0.2/16").unwrap(), ("10.88.0.2".parse().unwrap(), 16));
        for bad in ["10.0.0.1", "10.0.0.1/33", "x/8", "::1/129"] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }
}
