//! What an event of the loop belongs to, as the 64-bit token that epoll carries: the kind above, the number below.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Channel,
    Listener,
    Signals,
    /// A stream that carries a process's output.
    Output(u32),
    /// A stream that carries a process's input, waiting for its pipe.
    Input(u32),
    /// Output nobody listens to any more.
    Orphan(u32),
    /// The status socket of the child with this pid.
    Status(u32),
    /// A connection attempt, by request.
    Attempt(u32),
    /// The time that hooks are given is over.
    HooksTimer,
}

impl Source {
    pub fn token(self) -> u64 {
        let (kind, number) = match self {
            Self::Channel => (0, 0),
            Self::Listener => (1, 0),
            Self::Signals => (2, 0),
            Self::Output(id) => (3, id),
            Self::Input(id) => (4, id),
            Self::Orphan(id) => (5, id),
            Self::Status(pid) => (6, pid),
            Self::Attempt(request) => (7, request),
            Self::HooksTimer => (8, 0),
        };
        kind << 32 | u64::from(number)
    }

    pub fn from_token(token: u64) -> Self {
        let number = (token & 0xffff_ffff) as u32;
        match token >> 32 {
            1 => Self::Listener,
            2 => Self::Signals,
            3 => Self::Output(number),
            4 => Self::Input(number),
            5 => Self::Orphan(number),
            6 => Self::Status(number),
            7 => Self::Attempt(number),
            8 => Self::HooksTimer,
            _ => Self::Channel,
        }
    }
}
