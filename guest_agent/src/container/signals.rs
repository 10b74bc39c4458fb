//! What a container's first process does with signals.

use std::fs;

/// Whether a signal that is sent now comes to something. The kernel drops what the first process of a PID namespace
/// neither handles nor blocks (`pid_namespaces(7)`): a program that is told to end before it has set its handlers
/// would never learn of it. What it ignores by its own will counts as heard.
pub fn hears(pid: u32, signal: i32) -> bool {
    // Where it has ended meanwhile, nothing is to be waited for.
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(true, |status| hears_by(&status, signal))
}

fn hears_by(status: &str, signal: i32) -> bool {
    if signal == libc::SIGKILL || signal == libc::SIGSTOP || signal < 1 {
        return true;
    }
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let is_first = field("NSpid:").split_whitespace().skip(1).last() == Some("1");
    let bit = 1_u64 << (signal - 1);
    let is_in = |name| u64::from_str_radix(field(name), 16).is_ok_and(|set| set & bit != 0);
    !is_first || is_in("SigCgt:") || is_in("SigBlk:") || is_in("SigIgn:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pids: &str, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\ttop\nNSpid:\t{pids}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    const TERM: u64 = 1 << 14;

    #[test]
    fn the_first_process_hears_what_it_handles_blocks_or_ignores() {
        assert!(!hears_by(&status("812\t1", 0, 0, 0), libc::SIGTERM));
        assert!(!hears_by(&status("812\t1", !TERM, !TERM, !TERM), libc::SIGTERM));
        for (blocked, ignored, caught) in [(TERM, 0, 0), (0, TERM, 0), (0, 0, TERM)] {
            assert!(hears_by(&status("812\t1", blocked, ignored, caught), libc::SIGTERM));
        }
        assert!(hears_by(&status("812\t1", 0, 0, 1 << 63), 64));
        assert!(!hears_by(&status("812\t1", 0, 0, 1 << 62), 64));
    }

    #[test]
    fn what_the_kernel_does_not_drop_is_heard() {
        assert!(hears_by(&status("812\t1", 0, 0, 0), libc::SIGKILL));
        assert!(hears_by(&status("812\t7", 0, 0, 0), libc::SIGTERM));
        assert!(hears_by(&status("812", 0, 0, 0), libc::SIGTERM));
        assert!(hears_by("", libc::SIGTERM));
    }
}
