//! Who a process runs as: numbers, or names looked up in the container's own passwd and group files.
//!
//! The files are the image's, so anything: they are opened without blocking and read up to a bound.

use std::io::Read;

use rustix::fs::{FileType, Mode, OFlags};

use crate::container::spec::User;
use crate::fault::{Fault, Outcome};

/// Bytes read of passwd and of group.
const MAX_FILE: u64 = 4 << 20;
/// Supplementary groups; what init reports of itself is one message.
pub const MAX_GROUPS: usize = 4096;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

fn read(path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return String::new() };
    match rustix::fs::fstat(&fd) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        _ => return String::new(),
    }
    let mut bytes = Vec::new();
    let _ = std::fs::File::from(fd).take(MAX_FILE).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// The rules of the image specification's `User`, on the text of both files.
pub(crate) fn look_up(user: &User, passwd: &str, group: &str) -> Outcome<Identity> {
    let mut identity =
        Identity { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone(), home: String::new() };
    if !user.username.is_empty() {
        let (name, wanted_group) = match user.username.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (user.username.as_str(), None),
        };
        let number: Option<u32> = name.parse().ok();
        let account = accounts(passwd).find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == name,
        });
        match (&account, number) {
            (Some(account), _) => {
                identity.uid = account.uid;
                identity.gid = account.gid;
            }
            (None, Some(uid)) => {
                identity.uid = uid;
                identity.gid = 0;
            }
            (None, None) => {
                return Err(Fault::invalid(format!("unable to find user {name}: no matching entries in passwd file")));
            }
        }
        let wanted_group = wanted_group.filter(|wanted| !wanted.is_empty());
        if let Some(wanted) = wanted_group {
            let found = groups(group).find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid);
            identity.gid = wanted.parse().ok().or(found).ok_or_else(|| {
                Fault::invalid(format!("unable to find group {wanted}: no matching entries in group file"))
            })?;
        }
        if let Some(account) = account.filter(|_| user.image_groups.unwrap_or(wanted_group.is_none())) {
            let member = groups(group)
                .filter(|(_, _, members)| members.split(',').any(|name| name == account.name))
                .map(|(_, gid, _)| gid);
            identity.groups.extend(member.take(MAX_GROUPS));
        }
    }
    // As containerd and CRI-O have it: what counts the supplementary groups alone finds the primary one among them.
    identity.groups.insert(0, identity.gid);
    let mut seen = std::collections::HashSet::new();
    identity.groups.retain(|gid| seen.insert(*gid));
    if identity.groups.len() > MAX_GROUPS {
        return Err(Fault::invalid("process.user: more than 4096 groups"));
    }
    identity.home = accounts(passwd).find(|account| account.uid == identity.uid).map_or("", |found| found.home).into();
    Ok(identity)
}

/// Resolves a user; called inside the container's root. `home` says whether the home directory is wanted.
pub fn resolve(user: &User, home: bool) -> Outcome<Identity> {
    let named = !user.username.is_empty();
    let passwd = if named || home { read("/etc/passwd") } else { String::new() };
    let group = if named { read("/etc/group") } else { String::new() };
    look_up(user, &passwd, &group)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:40:web,root\n";

    fn find(name: &str) -> Outcome<Identity> {
        look_up(&User { username: name.into(), ..User::default() }, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers() {
        let web = Identity { uid: 33, gid: 34, groups: vec![34, 40], home: "/srv".into() };
        assert_eq!(find("web"), Ok(web));
        let named = find("web:log").unwrap();
        assert_eq!((named.uid, named.gid, named.groups), (33, 40, vec![40]));
        let number = find("33").unwrap();
        assert_eq!((number.gid, number.groups), (34, vec![34, 40]));
        let stranger = find("1234:77").unwrap();
        assert_eq!((stranger.uid, stranger.gid), (1234, 77));
        assert_eq!(find("1234").unwrap().gid, 0);
    }

    #[test]
    fn groups_of_the_image_are_merged_or_not() {
        let find = |name: &str, image_groups| {
            let user = User { username: name.into(), additional_gids: vec![7, 40], image_groups, ..User::default() };
            look_up(&user, PASSWD, GROUP).unwrap().groups
        };
        assert_eq!(find("web:9", Some(true)), [9, 7, 40]);
        assert_eq!(find("web", Some(false)), [34, 7, 40]);
        assert_eq!(find("0", Some(true)), [0, 7, 40]);
        let many = User { additional_gids: (0..5000).collect(), ..User::default() };
        assert!(look_up(&many, "", "").unwrap_err().message.contains("4096"));
    }

    #[test]
    fn unknown_names_are_named() {
        assert!(find("nobody").unwrap_err().message.contains("nobody"));
        assert!(find("web:none").unwrap_err().message.contains("none"));
    }
}
