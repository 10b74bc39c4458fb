//! PID 1 of every Thaw microVM: boots the guest, then serves docs/protocol.md.
//!
//! A library for the sake of its fuzz targets (`fuzz/`) alone; the program is `main`.

mod agent;
mod announce;
mod boot;
mod children;
mod connect;
mod container;
mod fault;
mod frame;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod hooks;
mod identity;
mod limits;
mod machine;
mod netlink;
mod network;
mod open_files;
mod port;
mod request;
mod restore;
mod rpc;
mod sandbox;
mod scheduler;
mod scsi;
mod session;
mod sockets;
mod source;
mod state;
mod stats;
mod status;
mod stdio;
mod storage;
mod streams;
mod sys;
mod sysctl;
mod volumes;

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};

use crate::agent::Agent;
use crate::container::{exec, pause};
use crate::fault::{Doing, Fault, Outcome};

const OWN_DESCRIPTORS: u64 = 65_536;

fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

fn serve(fd: i32) -> Outcome<()> {
    let signals = sys::signal_fd(&[libc::SIGCHLD]).doing(|| "watch signals".to_owned())?;
    boot::make_folders()?;
    let mut agent = Agent::new(signals)?;
    let port = sys::inherited_fd(fd);
    rustix::io::ioctl_fionbio(&port, true).doing(|| "the channel".to_owned())?;
    agent.take_port(port)?;
    agent.run(false)
}

fn init() -> Outcome<()> {
    // Children inherit it until their exec: a container's root may neither trace them nor read the agent's memory.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).doing(|| "forbid tracing".to_owned())?;
    boot::boot()?;
    // Each stream takes one, each forwarded connection two.
    let limit = Rlimit { current: Some(OWN_DESCRIPTORS), maximum: Some(exec::DESCRIPTORS.1) };
    rustix::process::setrlimit(Resource::Nofile, limit).doing(|| "set the limit of descriptors".to_owned())?;
    let signals = sys::signal_fd(&[libc::SIGCHLD]).doing(|| "watch signals".to_owned())?;
    let mut agent = Agent::new(signals)?;
    for done in [network::boot(), network::track_in_few_buckets(), scheduler::serve_seldom()] {
        if let Err(fault) = done {
            boot::complain(&fault.to_string());
        }
    }
    match boot::channel()? {
        boot::Channel::Port(fd) => agent.take_port(fd)?,
        boot::Channel::Listener(fd) => agent.listen(fd)?,
    }
    agent.run(true)?;
    Err(Fault::internal("the channel ended"))
}

/// PID 1 must not return: the kernel would panic without a word.
fn stop(text: &str) -> ! {
    boot::complain(text);
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    forever()
}

/// The program.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if args == [pause::OPTION] {
        // PID 1 of a pod's containers: SIGCHLD is ignored, and so are, for PID 1, all signals from its own namespace.
        sys::ignore_children();
        let _ = rustix::thread::set_name(c"pause");
        forever();
    }
    if let [option, number] = args.as_slice()
        && option == "--serve-fd"
        && let Ok(number) = number.parse()
    {
        return match serve(number) {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                eprintln!("thaw-agent: {fault}");
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() != 1 {
        eprintln!("usage: thaw-agent --serve-fd N; as PID 1 it boots a guest");
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| stop(&panic.to_string())));
    match init() {
        Ok(()) => stop("the agent ended"),
        Err(fault) => stop(&fault.to_string()),
    }
}
