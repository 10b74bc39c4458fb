//! Containers, by direct system calls in the order that runc documents.

pub mod caps;
pub mod cgroup;
pub mod create;
pub mod device_filter;
pub mod devices;
pub mod exec;
pub mod hooks;
pub mod image;
pub mod mounts;
pub mod namespaces;
pub mod paths;
pub mod pause;
pub mod rootfs;
pub mod seccomp;
pub mod signals;
pub mod spec;
pub mod trash;
pub mod tty;
pub mod user;
pub mod userns;
