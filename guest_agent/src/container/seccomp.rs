//! A container's seccomp filter: a program of classic BPF that the host compiled, loaded as the last thing before an exec.
//!
//! The kernel verifies the program; here it is only bounded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::container::caps::Sets;
use crate::container::spec::Seccomp;
use crate::fault::{Doing, Fault, Outcome};
use crate::sys;

/// Instructions of a program, the kernel's BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;
/// SECCOMP_FILTER_FLAG_LOG and SECCOMP_FILTER_FLAG_SPEC_ALLOW: others are for threads and listeners, which there are none of.
const FLAGS: u32 = 2 | 4;

#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    /// Each a `struct sock_filter`.
    instructions: Vec<u64>,
    flags: u32,
}

impl Filter {
    pub fn parse(wanted: &Seccomp) -> Outcome<Self> {
        let bytes =
            STANDARD.decode(&wanted.program).map_err(|error| Fault::invalid(format!("linux.seccomp: {error}")))?;
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || !(1..=MAX_INSTRUCTIONS).contains(&instructions.len()) {
            let text = format!("linux.seccomp: {} bytes are not 1 to {MAX_INSTRUCTIONS} instructions", bytes.len());
            return Err(Fault::invalid(text));
        }
        if wanted.flags & !FLAGS != 0 {
            return Err(Fault::invalid(format!("linux.seccomp: flags {:#x} are not all known", wanted.flags)));
        }
        let instructions = instructions.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        Ok(Self { instructions, flags: wanted.flags })
    }
}

/// What is still to be done in a process that is settled but for its filter: the filter must see as few of our own calls
/// as can be, for its profile need not allow them.
pub struct Seal<'a> {
    filter: Option<&'a Filter>,
    /// What is left once CAP_SYS_ADMIN, which loading takes without no_new_privs, is given up.
    then: Option<Sets>,
}

impl<'a> Seal<'a> {
    /// Takes on the capabilities, after the change of user.
    pub fn prepare(caps: &Sets, filter: Option<&'a Filter>, no_new_privileges: bool) -> Outcome<Self> {
        let keep = filter.is_some() && !no_new_privileges && !caps.may_administrate();
        caps.apply(keep)?;
        Ok(Self { filter, then: keep.then_some(*caps) })
    }

    /// Loads the filter. Nothing but the exec may follow.
    pub fn close(&self) -> Outcome<()> {
        let Some(filter) = self.filter else { return Ok(()) };
        sys::load_seccomp_filter(&filter.instructions, filter.flags).doing(|| "load the seccomp filter".to_owned())?;
        match &self.then {
            Some(caps) => caps.set().doing(|| {
                "drop CAP_SYS_ADMIN under the seccomp filter (its profile must allow capset, or the container must not \
                 allow privilege escalation)"
                    .to_owned()
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Code;

    fn parse(count: usize, flags: u32) -> Outcome<Filter> {
        Filter::parse(&Seccomp { program: STANDARD.encode(vec![6; count]), flags })
    }

    #[test]
    fn programs_are_bounded() {
        assert_eq!(parse(16, 4).unwrap().instructions.len(), 2);
        assert!(parse(MAX_INSTRUCTIONS * 8, 0).is_ok());
        for (count, flags) in [(0, 0), (12, 0), (MAX_INSTRUCTIONS * 8 + 8, 0), (8, 8)] {
            assert_eq!(parse(count, flags).unwrap_err().code, Code::InvalidArgument);
        }
        assert!(Filter::parse(&Seccomp { program: "!".into(), flags: 0 }).is_err());
    }
}
