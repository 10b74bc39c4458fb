//! The steps that make a clone of a snapshot a machine of its own, in the order of docs/protocol.md.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde::{Deserialize, Serialize};

use crate::container::userns::{self, Mappings, Space};
use crate::fault::{Doing, Fault, Outcome};
use crate::identity::Identity;
use crate::network::{self, Network};
use crate::{identity, sys};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    entropy: String,
    realtime_ns: u64,
    identity: Option<Identity>,
    network: Option<Network>,
    /// The pod's; without one its containers are in the guest's.
    user_namespace: Option<Mappings>,
    generation: Option<String>,
}

#[derive(Serialize)]
struct Step {
    step: &'static str,
    ns: u64,
}

#[derive(Serialize)]
pub struct Confirmed {
    steps: Vec<Step>,
}

fn reseed(entropy: &str) -> Outcome<()> {
    let entropy = STANDARD.decode(entropy).map_err(|error| Fault::invalid(format!("entropy: {error}")))?;
    if !(32..=512).contains(&entropy.len()) {
        return Err(Fault::invalid(format!("entropy: {} bytes, not 32 to 512", entropy.len())));
    }
    let random = File::options().write(true).open("/dev/urandom").doing(|| "open /dev/urandom".to_owned())?;
    sys::add_entropy(random.as_fd(), &entropy).doing(|| "reseed".to_owned())
}

fn set_clock(realtime_ns: u64) -> Outcome<()> {
    let seconds = i64::try_from(realtime_ns / 1_000_000_000).map_err(|_| Fault::invalid("realtime_ns is too large"))?;
    let time = Timespec { tv_sec: seconds, tv_nsec: (realtime_ns % 1_000_000_000) as _ };
    clock_settime(ClockId::Realtime, time).doing(|| "set the clock".to_owned())
}

/// The wall clock, so that the host can tell how far it is off.
pub fn realtime_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Corrects what the way of a `restore` cost: the step is relative, so that its own way costs nothing.
pub fn adjust_clock(delta_ns: i64) -> Outcome<()> {
    const MOST: i64 = 60_000_000_000;
    if !(-MOST..=MOST).contains(&delta_ns) {
        return Err(Fault::invalid(format!("delta_ns {delta_ns} is more than a minute")));
    }
    set_clock(u64::try_from(realtime_ns().saturating_add(delta_ns)).unwrap_or_default())
}

/// A fresh version 4 UUID when the host names none.
fn write_generation(given: Option<&str>) -> Outcome<()> {
    let fresh;
    let text = match given {
        Some(text) => text,
        None => {
            fresh = fs::read_to_string("/proc/sys/kernel/random/uuid").doing(|| "read a uuid".to_owned())?;
            fresh.trim()
        }
    };
    if !identity::is_uuid(text) {
        return Err(Fault::invalid(format!("generation {text:?} is not a UUID in lower case")));
    }
    // One write over the former, which is as long: a reader meets one or the other, and never an empty file.
    let path = "/run/thaw/identity/generation";
    let file = File::options().write(true).open(path).doing(|| format!("open {path}"))?;
    file.write_all_at(format!("{text}\n").as_bytes(), 0).doing(|| format!("write {path}"))
}

/// `space` is the pod's user namespace, which its network belongs to, so it is made first.
pub fn restore(params: &Params, space: &mut Option<Space>) -> Outcome<Confirmed> {
    let mut steps = Vec::with_capacity(5);
    let mut confirm = |step: &'static str, carry_out: &mut dyn FnMut() -> Outcome<()>| {
        let begun = Instant::now();
        carry_out().map_err(|fault| Fault::new(fault.code, format!("restore step {step}: {}", fault.message)))?;
        steps.push(Step { step, ns: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX) });
        Ok(())
    };
    confirm("reseed", &mut || reseed(&params.entropy))?;
    confirm("clock", &mut || set_clock(params.realtime_ns))?;
    if let Some(wanted) = &params.user_namespace {
        userns::establish(space, wanted)
            .map_err(|fault| Fault::new(fault.code, format!("user namespace: {}", fault.message)))?;
    }
    if let Some(wanted) = &params.network {
        confirm("network", &mut || network::configure(wanted, space.as_ref()))?;
    }
    if let Some(wanted) = &params.identity {
        confirm("identity", &mut || identity::assume(wanted))?;
    }
    confirm("generation", &mut || write_generation(params.generation.as_deref()))?;
    Ok(Confirmed { steps })
}
