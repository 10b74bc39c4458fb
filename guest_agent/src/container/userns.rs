//! User namespaces: the pod's, which owns its network, IPC and UTS namespaces, and those that only say how the owners of
//! mounted files are shown.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::Deserialize;

use crate::container::user::Identity;
use crate::fault::{Code, Doing, Fault, Outcome, words};
use crate::{network, sys, sysctl};

/// Lines of a namespace's map, the kernel's UID_GID_MAP_MAX_EXTENTS.
const MAX_EXTENTS: usize = 340;
/// Those that a pod's user namespace owns from its beginning; PID, mount and cgroup namespaces come with containers.
const OWNED: i32 = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// The runtime specification's: so many ids, from `container_id` on inside, are those from `host_id` on outside. Outside is
/// the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
}

/// What an id inside is outside; None where it is nobody's.
fn outside(map: &[IdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|each| {
        let within = id.checked_sub(each.container_id).filter(|within| *within < each.size)?;
        Some(each.host_id + within)
    })
}

fn text(map: &[IdMapping]) -> String {
    map.iter().map(|each| format!("{} {} {}\n", each.container_id, each.host_id, each.size)).collect()
}

impl Mappings {
    /// The kernel refuses what overlaps.
    pub fn check(&self) -> Outcome<()> {
        for (name, map) in [("uidMappings", &self.uid_mappings), ("gidMappings", &self.gid_mappings)] {
            if !(1..=MAX_EXTENTS).contains(&map.len()) {
                return Err(Fault::invalid(format!("{name}: {} lines are not 1 to {MAX_EXTENTS}", map.len())));
            }
            for each in map {
                let fits = |id: u32| each.size > 0 && id.checked_add(each.size).is_some();
                if !fits(each.container_id) || !fits(each.host_id) {
                    return Err(Fault::invalid(format!("{name}: {each:?} is no range of ids")));
                }
            }
        }
        Ok(())
    }

    /// Who is root inside: user and group outside.
    pub fn root(&self) -> Outcome<(u32, u32)> {
        let root = outside(&self.uid_mappings, 0).zip(outside(&self.gid_mappings, 0));
        root.ok_or_else(|| Fault::invalid("the user namespace's mappings have no id 0 inside"))
    }

    /// Refuses a user whose ids the namespace does not have.
    pub fn check_user(&self, user: &Identity) -> Outcome<()> {
        let absent =
            |kind: &str, id: u32| Err(Fault::invalid(format!("{kind} {id} is not mapped in the pod's user namespace")));
        if outside(&self.uid_mappings, user.uid).is_none() {
            return absent("user", user.uid);
        }
        let mut groups = user.groups.iter().chain([&user.gid]);
        match groups.find(|gid| outside(&self.gid_mappings, **gid).is_none()) {
            Some(gid) => absent("group", *gid),
            None => Ok(()),
        }
    }
}

/// A pod's user namespace.
pub struct Space {
    pub user: OwnedFd,
    pub mappings: Mappings,
}

/// Becomes root of the user namespace that the process is in, without groups.
pub fn become_root() -> Outcome<()> {
    let what = || "become root of the user namespace".to_owned();
    sys::set_groups(&[]).doing(what)?;
    sys::set_gid(0).doing(what)?;
    sys::set_uid(0).doing(what)
}

/// What a child does inside its new namespace: says who it is by /proc, which is the guest's, whatever PID namespace it
/// is in; once it is mapped, makes the others.
fn settle_inside(parent: &OwnedFd, others: i32) -> std::io::Result<()> {
    rustix::io::write(parent, fs::read_link("/proc/self")?.as_os_str().as_encoded_bytes())?;
    if rustix::io::read(parent, &mut [0])? != 1 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    // Of what is made now, the root inside is the owner.
    sys::set_groups(&[])?;
    sys::set_gid(0)?;
    sys::set_uid(0)?;
    if others != 0 {
        sys::unshare(others)?;
    }
    Ok(())
}

/// Lives for a moment in a new user namespace, with `others` that belong to it, while `take` looks at the process there.
/// It waits for a child that does nothing but a few system calls.
fn within<T>(mappings: &Mappings, others: i32, take: impl FnOnce(u32) -> Outcome<T>) -> Outcome<T> {
    mappings.check()?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .doing(|| "make a socket".to_owned())?;
    let forked = sys::fork_into(libc::CLONE_NEWUSER, None).doing(|| "fork a process in a user namespace".to_owned())?;
    let Some(pid) = forked else {
        drop(ours);
        let result = settle_inside(&theirs, others);
        let number = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let _ = rustix::io::write(&theirs, &number.to_ne_bytes());
        // Until it has been looked at.
        let _ = rustix::io::read(&theirs, &mut [0]);
        sys::exit_now(0)
    };
    drop(theirs);
    let result = name(&ours).and_then(|child| {
        map(child, mappings)?;
        let what = || "make the pod's namespaces".to_owned();
        let mut number = [0; 4];
        rustix::io::write(&ours, b"m").doing(what)?;
        rustix::io::read(&ours, &mut number).doing(what)?;
        match i32::from_ne_bytes(number) {
            0 => take(child),
            number => Err(std::io::Error::from_raw_os_error(number)).doing(what),
        }
    });
    drop(ours);
    let _ = sys::wait(pid);
    result
}

/// The pid that a child says it has.
fn name(child: &OwnedFd) -> Outcome<u32> {
    let mut said = [0; 16];
    let count = rustix::io::read(child, &mut said).doing(|| "read a child's pid".to_owned())?;
    let text = std::str::from_utf8(&said[..count]).unwrap_or_default();
    text.parse().map_err(|_| Fault::internal("a child in a user namespace says no pid"))
}

fn map(pid: u32, mappings: &Mappings) -> Outcome<()> {
    for (name, map) in [("uid_map", &mappings.uid_mappings), ("gid_map", &mappings.gid_mappings)] {
        let lines = text(map);
        fs::write(format!("/proc/{pid}/{name}"), &lines)
            .map_err(|error| Fault::invalid(format!("{name} {:?}: {}", lines.trim_end(), words(&error))))?;
    }
    Ok(())
}

fn open(pid: u32, kind: &str) -> Outcome<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    File::open(&path).doing(|| format!("open {path}")).map(OwnedFd::from)
}

/// A user namespace that no process is in, for `map_tree`.
pub fn for_mounts(mappings: &Mappings) -> Outcome<OwnedFd> {
    within(mappings, 0, |pid| open(pid, "user"))
}

/// Gives the pod its user namespace, once, with network, IPC and UTS namespaces that it owns. The agent moves into
/// these: what it sets there from now on is the pod's, and all that it forks is born there.
pub fn establish(space: &mut Option<Space>, mappings: &Mappings) -> Outcome<()> {
    if let Some(present) = space {
        if present.mappings == *mappings {
            return Ok(());
        }
        return Err(Fault::new(Code::FailedPrecondition, "the pod has another user namespace"));
    }
    mappings.check()?;
    mappings.root()?;
    let (user, net, ipc, uts) = within(mappings, OWNED, |pid| {
        Ok((open(pid, "user")?, open(pid, "net")?, open(pid, "ipc")?, open(pid, "uts")?))
    })?;
    network::move_link(net.as_fd())?;
    for (fd, kind) in [(net, libc::CLONE_NEWNET), (ipc, libc::CLONE_NEWIPC), (uts, libc::CLONE_NEWUTS)] {
        sys::setns(fd.as_fd(), kind).doing(|| "enter the pod's namespaces".to_owned())?;
    }
    network::boot()?;
    *space = Some(Space { user, mappings: mappings.clone() });
    Ok(())
}

/// Sets a kernel setting as who is root inside, whom those of an IPC namespace belong to: nobody else may, whatever his
/// capabilities. By a child, for a few system calls. Whether it is set.
pub fn set_sysctl(space: &Space, name: &str, value: &str) -> bool {
    let set = || {
        sys::setns(space.user.as_fd(), libc::CLONE_NEWUSER).doing(|| "enter the pod's user namespace".to_owned())?;
        become_root()?;
        sysctl::set(name, value)
    };
    match sys::fork_into(0, None) {
        Ok(None) => sys::exit_now(i32::from(set().is_err())),
        Ok(Some(pid)) => sys::wait(pid).is_ok_and(|code| code == 0),
        Err(_) => false,
    }
}

/// Shows the files of a detached mount, and of those below it, as `user` maps their owners.
pub fn map_tree(tree: BorrowedFd<'_>, user: BorrowedFd<'_>, what: &str) -> Outcome<()> {
    sys::map_tree(tree, user).doing(|| format!("map the owners of {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    fn both(map: &[IdMapping]) -> Mappings {
        Mappings { uid_mappings: map.to_vec(), gid_mappings: map.to_vec() }
    }

    #[test]
    fn ids_are_mapped_within_their_range() {
        let map = [line(0, 1000, 10), line(20, 5000, 1)];
        for (inside, expected) in [(0, Some(1000)), (9, Some(1009)), (10, None), (20, Some(5000)), (21, None)] {
            assert_eq!(outside(&map, inside), expected, "{inside}");
        }
        assert_eq!(text(&map), "0 1000 10\n20 5000 1\n");
        assert_eq!(both(&map).root(), Ok((1000, 1000)));
        assert!(both(&[line(1, 1000, 10)]).root().is_err());
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        assert!(both(&[line(0, 0, u32::MAX)]).check().is_ok());
        for bad in [&[][..], &[line(0, 1, 0)], &[line(0, 1, u32::MAX)], &[line(2, 0, u32::MAX)]] {
            assert!(both(bad).check().is_err(), "{bad:?}");
        }
        assert!(both(&[line(0, 0, 1); MAX_EXTENTS + 1]).check().is_err());
    }

    #[test]
    fn users_outside_are_named() {
        let mappings = both(&[line(0, 1000, 10)]);
        let user = |uid, gid, groups: &[u32]| Identity { uid, gid, groups: groups.to_vec(), home: String::new() };
        assert!(mappings.check_user(&user(9, 0, &[0, 3])).is_ok());
        for (bad, says) in
            [(user(10, 0, &[]), "user 10"), (user(0, 11, &[]), "group 11"), (user(0, 0, &[12]), "group 12")]
        {
            assert!(mappings.check_user(&bad).unwrap_err().message.contains(says));
        }
    }
}
