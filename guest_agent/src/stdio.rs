//! What a process reads and writes: its pipes or its terminal, and the streams that they are sent as.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::agent::{Agent, ChildState, Who};
use crate::container::create::Stdio;
use crate::fault::{Doing, Fault, Outcome};
use crate::request::StreamIds;
use crate::streams::End;

/// The agent's ends of a process's pipes, by stream.
#[derive(Default)]
pub struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn null() -> Outcome<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).doing(|| "open /dev/null".to_owned())
}

/// Bytes that a process may be ahead of the agent.
const OUTPUT_PIPE: usize = 256 * 1024;

/// The reading and the writing end; the agent's is nonblocking.
fn pipe(ours_reads: bool) -> Outcome<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let ours = if ours_reads { &reader } else { &writer };
    rustix::io::ioctl_fionbio(ours.as_fd(), true).doing(|| "make a pipe".to_owned())?;
    if ours_reads {
        // A writer that seldom has to wait: each wait costs two changes of the process.
        let _ = rustix::pipe::fcntl_setpipe_size(&reader, OUTPUT_PIPE);
    }
    Ok((reader, writer))
}

/// Streams that lead nowhere.
pub fn null_streams() -> Outcome<Stdio> {
    Ok(Stdio { stdin: null()?, stdout: null()?, stderr: null()? })
}

pub fn stdio(ids: StreamIds, terminal: bool) -> Outcome<(Stdio, Ends)> {
    let mut ends = Ends::default();
    if terminal {
        return Ok((null_streams()?, ends));
    }
    let stdin = match ids.stdin {
        0 => null()?,
        _ => {
            let (reader, writer) = pipe(false)?;
            ends.stdin = Some(writer);
            reader
        }
    };
    let output = |id: u32, end: &mut Option<OwnedFd>| -> Outcome<OwnedFd> {
        if id == 0 {
            return null();
        }
        let (reader, writer) = pipe(true)?;
        *end = Some(reader);
        Ok(writer)
    };
    let stdout = output(ids.stdout, &mut ends.stdout)?;
    let stderr = output(ids.stderr, &mut ends.stderr)?;
    Ok((Stdio { stdin, stdout, stderr }, ends))
}

pub fn check_streams(agent: &Agent, ids: StreamIds, terminal: bool) -> Outcome<()> {
    let mut used: Vec<u32> = [ids.stdin, ids.stdout, ids.stderr].into_iter().filter(|id| *id != 0).collect();
    let count = used.len();
    used.sort_unstable();
    used.dedup();
    if used.len() != count || used.iter().any(|id| agent.streams.knows(*id)) {
        return Err(Fault::invalid("streams: an id is already in use"));
    }
    if terminal && ids.stderr != 0 {
        return Err(Fault::invalid("streams: a terminal has no stderr of its own"));
    }
    Ok(())
}

pub fn attach(agent: &mut Agent, ids: StreamIds, ends: Ends, kind: End) {
    if let Some(fd) = ends.stdin {
        agent.streams.add_input(&agent.poll, ids.stdin, fd, kind);
    }
    for (id, end) in [(ids.stdout, ends.stdout), (ids.stderr, ends.stderr)] {
        if let Some(fd) = end {
            agent.streams.add_output(&agent.poll, id, fd, kind);
        }
    }
}

pub fn attach_terminal(agent: &mut Agent, pid: u32, master: OwnedFd) {
    let Some(child) = agent.children.get(&pid) else { return };
    let ids = child.streams;
    if child.nonce == agent.session.nonce {
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(&master, 5).ok();
        let stdin = duplicate().filter(|_| ids.stdin != 0);
        let stdout = duplicate().filter(|_| ids.stdout != 0);
        let ends = Ends { stdin, stdout, stderr: None };
        match &child.who {
            Who::Init(id) => {
                if let Some(container) = agent.containers.get_mut(id) {
                    container.terminal = Some(master);
                }
            }
            Who::Exec(id) => {
                if let Some(exec) = agent.execs.get_mut(id) {
                    exec.terminal = Some(master);
                }
            }
            Who::Hooks | Who::Cleaner | Who::Pause => {}
        }
        attach(agent, ids, ends, End::Terminal);
    }
}

/// Nobody follows this output any more: an exec whose terminal it was is hung up on, as by a line that went dead.
pub fn hang_up(agent: &mut Agent, output: u32) {
    let whose =
        agent.children.values().find(|child| child.streams.stdout == output && child.nonce == agent.session.nonce);
    let Some(ChildState { who: Who::Exec(id), streams, .. }) = whose else { return };
    if let Some(exec) = agent.execs.get_mut(id)
        && exec.terminal.take().is_some()
    {
        agent.streams.reset(&agent.poll, streams.stdin);
    }
}
