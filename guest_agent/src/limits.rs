//! Containers' limits, changed while they run.

use crate::agent::{Agent, State};
use crate::container::cgroup;
use crate::fault::{Code, Fault, Outcome};
use crate::request::Update;

/// As many huge pages as the containers together may have are made when they ask for them, and none is kept for them.
pub fn allow_huge_pages(agent: &Agent) {
    cgroup::allow_huge_pages(agent.containers.values().map(|container| container.cgroup.huge_pages()).sum());
}

/// Changes a container's limits; all of them, or none where one cannot be set.
pub fn update(agent: &mut Agent, wanted: &Update) -> Outcome<()> {
    let container = agent
        .containers
        .get_mut(&wanted.id)
        .ok_or_else(|| Fault::new(Code::NotFound, format!("container {} does not exist", wanted.id)))?;
    if container.state == State::Exited {
        return Err(Fault::new(Code::FailedPrecondition, format!("container {} has ended", wanted.id)));
    }
    container.cgroup.update(&wanted.resources)?;
    if let Some(score) = wanted.oom_score_adj {
        container.cgroup.set_oom_score(score)?;
        container.process.oom_score_adj = Some(score);
    }
    if !wanted.resources.hugepage_limits.is_empty() {
        allow_huge_pages(agent);
    }
    Ok(())
}
