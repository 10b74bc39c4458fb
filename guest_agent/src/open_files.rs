//! The open files of a container's processes: how many, how many of them are sockets, and how many there may be.

use std::fs;
use std::path::Path;

use serde::Serialize;

#[derive(Debug, Default, PartialEq, Serialize)]
pub struct OpenFiles {
    all: u64,
    sockets: u64,
}

/// Counts what the processes have open. None where that means to look at more than `most` processes and files.
pub fn count(proc: &Path, pids: &[u32], most: usize) -> Option<OpenFiles> {
    let mut found = OpenFiles::default();
    let mut left = most.checked_sub(pids.len())?;
    for pid in pids {
        // A process that has ended meanwhile has none.
        for entry in fs::read_dir(proc.join(format!("{pid}/fd"))).into_iter().flatten().filter_map(Result::ok) {
            left = left.checked_sub(1)?;
            found.all += 1;
            // A file's name begins with a slash.
            let target = fs::read_link(entry.path()).unwrap_or_default();
            found.sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        }
    }
    Some(found)
}

/// How many files the process may open, by its soft limit.
pub fn limit(proc: &Path, pid: u32) -> Option<u64> {
    soft(&fs::read_to_string(proc.join(format!("{pid}/limits"))).ok()?)
}

fn soft(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_are_counted() {
        let proc = Path::new("/proc");
        let pid = std::process::id();
        let count = |most| count(proc, &[pid, u32::MAX], most);
        let before = count(100_000).unwrap();
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let _file = fs::File::open("/dev/null").unwrap();
        let after = count(100_000).unwrap();
        // Other tests of this process open and close files meanwhile.
        assert!(before.all >= 3, "{before:?}");
        assert!(after.all >= 6 && after.sockets >= 2, "{after:?}");
        assert_eq!(count(4), None);
        assert_eq!(count(1), None);
    }

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax processes  1  2  processes\nMax open files            1024                 4096                 files     \n";
        assert_eq!(soft(text), Some(1024));
        assert_eq!(soft("Max open files  unlimited  unlimited  files\n"), None);
        assert_eq!(soft(""), None);
        assert!(limit(Path::new("/proc"), std::process::id()).is_some());
    }
}
