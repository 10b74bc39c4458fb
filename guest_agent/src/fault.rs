//! The one error type of the agent: a gRPC status name and a message for people.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    FailedPrecondition,
    ResourceExhausted,
    Unimplemented,
    Unavailable,
    Internal,
}

const NAMES: [(Code, &str); 9] = [
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::Internal, "INTERNAL"),
];

impl Code {
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(code, _)| *code == self).map_or("INTERNAL", |(_, name)| name)
    }

    pub fn from_name(name: &str) -> Self {
        NAMES.iter().find(|(_, known)| *known == name).map_or(Self::Internal, |(code, _)| *code)
    }
}

pub type Outcome<T> = Result<T, Fault>;

impl Fault {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.code.name(), self.message)
    }
}

/// The operating system's words for an error, without Rust's "(os error 2)": as runc's users know them.
pub fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => text.to_owned(),
    }
}

/// Says what was being done when a system call failed; the result is INTERNAL.
pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| {
            let error: std::io::Error = error.into();
            Fault::internal(format!("{}: {}", what(), words(&error)))
        })
    }
}
