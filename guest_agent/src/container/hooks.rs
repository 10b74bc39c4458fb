//! A container's hooks, run by a child of the agent that has joined the container and become its user.

use std::ffi::CString;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{Access, AtFlags, CWD};

use crate::container::seccomp::Seal;
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::hooks::Phase;
use crate::{status, sys};

const FOLDER: &str = "/etc/thaw/hooks.d";
/// Hooks of a container in one phase.
const MAX: usize = 16;

/// The executable files of the phase's folder, by name.
fn list(phase: Phase) -> Outcome<Vec<(String, CString)>> {
    let folder = format!("{FOLDER}/{}", phase.name());
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        result => result.doing(|| format!("list {folder}"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.doing(|| format!("list {folder}"))?.path();
        let executable = std::fs::metadata(&path).is_ok_and(|data| data.is_file())
            && rustix::fs::accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if executable && let Ok(path) = CString::new(path.into_os_string().into_vec()) {
            found.push((name, path));
        }
        if found.len() > MAX {
            return Err(Fault::new(Code::ResourceExhausted, format!("{folder} holds more than {MAX}")));
        }
    }
    found.sort();
    Ok(found)
}

/// Runs the hooks one after the other and reports each. The agent ends it when they take too long.
pub fn run(phase: Phase, env: &[CString], seal: &Seal<'_>, status: BorrowedFd<'_>) -> Outcome<()> {
    for (name, path) in list(phase)? {
        let code = match sys::fork_into(0, None).doing(|| format!("fork for {name}"))? {
            None => {
                if seal.close().is_err() {
                    sys::exit_now(126)
                }
                sys::exec(&path, std::slice::from_ref(&path), env);
                sys::exit_now(126)
            }
            Some(pid) => sys::wait(pid).doing(|| format!("wait for {name}"))?,
        };
        status::say_hook(status, &name, code)?;
    }
    Ok(())
}
