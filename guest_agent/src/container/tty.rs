//! Pseudo-terminals: opened in the container's own devpts, so that `ttyname` finds them there.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::container::spec::ConsoleSize;
use crate::fault::{Doing, Outcome};
use crate::sys;

pub fn resize(master: impl AsFd, width: u16, height: u16) -> Outcome<()> {
    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).doing(|| "set the terminal's size".to_owned())
}

/// Opens a terminal inside the container: its master (for the agent) and its slave.
pub fn open(size: Option<&ConsoleSize>) -> Outcome<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).doing(|| "open /dev/pts/ptmx".to_owned())?;
    unlockpt(&master).doing(|| "unlock the terminal".to_owned())?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .doing(|| "open the terminal".to_owned())?;
    if let Some(size) = size {
        resize(&master, size.width, size.height)?;
    }
    Ok((master, slave))
}

/// Makes the slave the process's standard streams and its session's controlling terminal.
pub fn become_console(slave: &OwnedFd) -> Outcome<()> {
    for number in 0..3 {
        sys::place_fd(slave.as_fd(), number).doing(|| "place the terminal".to_owned())?;
    }
    sys::take_terminal(slave.as_fd()).doing(|| "take the terminal".to_owned())
}
