//! The event loop: the channel, the streams, the children. One thread; nothing in it waits but epoll.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use serde_json::{Value, json};

use crate::connect::Attempt;
use crate::container::cgroup::Cgroup;
use crate::container::device_filter::Filters;
use crate::container::seccomp::Filter;
use crate::container::spec::Process;
use crate::container::userns::Space;
use crate::fault::{Code, Doing, Fault, Outcome};
use crate::frame::{FIN, Frame, Kind, MAX_PAYLOAD, MORE, encode};
use crate::hooks;
use crate::port::{self, Port};
use crate::request::StreamIds;
use crate::session::{self, MAX_REQUESTS, Session};
use crate::source::Source;
use crate::storage::Storage;
use crate::streams::Streams;
use crate::{children, connect, rpc, stdio, sys};

/// The protocol's version.
const PROTOCOL: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Creating,
    Created,
    Starting,
    Running,
    Exited,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating | Self::Created | Self::Starting => "created",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

pub struct Container {
    pub pid: u32,
    pub state: State,
    pub exit_code: i32,
    pub oom_killed: bool,
    pub cgroup: Cgroup,
    /// What the file system counts its writable layer by; 0 where it does not.
    pub project: u32,
    /// What init is, and so what its hooks are.
    pub process: Process,
    /// Of init, its hooks and its execs.
    pub filter: Option<Filter>,
    pub terminal: Option<OwnedFd>,
    /// The request that waits for init's end, to finish `container.delete`.
    pub deleting: Option<Reply>,
}

pub struct Exec {
    pub pid: u32,
    pub terminal: Option<OwnedFd>,
}

/// Where an answer goes: the session and the request.
#[derive(Clone, Copy)]
pub struct Reply {
    pub nonce: u64,
    pub request: u32,
}

pub enum Who {
    Init(String),
    Exec(String),
    /// Runs the hooks of a container.
    Hooks,
    /// Removes what an ended container wrote.
    Cleaner,
    /// PID 1 of the PID namespace that containers share.
    Pause,
}

/// A child from its fork until it is reaped.
pub struct ChildState {
    pub who: Who,
    pub status: Option<OwnedFd>,
    pub waiting: Option<Reply>,
    pub streams: StreamIds,
    /// The session whose streams it was given.
    pub nonce: u64,
    pub executed: bool,
}

impl ChildState {
    /// A child that tells nothing.
    pub fn nameless(who: Who) -> Self {
        Self { who, status: None, waiting: None, streams: StreamIds::default(), nonce: 0, executed: false }
    }
}

pub struct Agent {
    pub poll: OwnedFd,
    signals: OwnedFd,
    listener: Option<OwnedFd>,
    pub port: Option<Port>,
    pub session: Session,
    pub streams: Streams,
    pub storage: Storage,
    pub containers: BTreeMap<String, Container>,
    pub execs: BTreeMap<String, Exec>,
    pub children: HashMap<u32, ChildState>,
    pub attempts: HashMap<u32, Attempt>,
    pub next_exec: u64,
    pub next_project: u32,
    pub filters: Filters,
    pub hooks: Option<hooks::Run>,
    /// The pid of the pod's `Pause`, once a container wanted it.
    pub pause: Option<u32>,
    /// The pod's user namespace, where it has one.
    pub space: Option<Space>,
    scratch: Vec<u8>,
}

/// CLOCK_REALTIME in nanoseconds.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Agent {
    pub fn new(signals: OwnedFd) -> Outcome<Self> {
        let poll = epoll::create(CreateFlags::CLOEXEC).doing(|| "create epoll".to_owned())?;
        let agent = Self {
            poll,
            signals,
            listener: None,
            port: None,
            session: Session::default(),
            streams: Streams::default(),
            storage: Storage::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            children: HashMap::new(),
            attempts: HashMap::new(),
            next_exec: 1,
            next_project: 1,
            filters: Filters::default(),
            hooks: None,
            pause: None,
            space: None,
            scratch: vec![0; MAX_PAYLOAD],
        };
        agent.watch(&agent.signals, Source::Signals, EventFlags::IN)?;
        Ok(agent)
    }

    pub fn watch(&self, fd: &OwnedFd, source: Source, flags: EventFlags) -> Outcome<()> {
        epoll::add(&self.poll, fd, EventData::new_u64(source.token()), flags).doing(|| format!("watch {source:?}"))
    }

    /// Edge-triggered: a closed virtio-serial port reports a hang-up for ever, and would keep the loop spinning.
    pub fn take_port(&mut self, fd: OwnedFd) -> Outcome<()> {
        self.watch(&fd, Source::Channel, EventFlags::IN | EventFlags::OUT | EventFlags::ET)?;
        self.port = Some(Port::new(fd));
        Ok(())
    }

    pub fn listen(&mut self, fd: OwnedFd) -> Outcome<()> {
        self.watch(&fd, Source::Listener, EventFlags::IN)?;
        self.listener = Some(fd);
        Ok(())
    }

    /// Runs until the channel ends for good, which a virtio-serial port or a listener never does.
    pub fn run(&mut self, serial: bool) -> Outcome<()> {
        let mut events = Vec::with_capacity(32);
        loop {
            match epoll::wait(&self.poll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).doing(|| "wait for events".to_owned()),
            }
            for event in events.drain(..) {
                let event: epoll::Event = event;
                self.dispatch(Source::from_token(event.data.u64()), event.flags, serial);
            }
            self.flush();
            if self.port.is_none() && self.listener.is_none() {
                return Ok(());
            }
        }
    }

    fn dispatch(&mut self, source: Source, flags: EventFlags, serial: bool) {
        match source {
            Source::Channel => self.read_channel(serial),
            Source::Listener => self.accept(),
            Source::Signals => self.on_signals(),
            Source::Output(id) => {
                if let Some(port) = &mut self.port {
                    self.streams.pump(&self.poll, port, self.session.nonce, id, &mut self.scratch);
                }
            }
            Source::Input(id) => {
                if let Some(port) = &mut self.port {
                    let nonce = self.session.nonce;
                    if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
                        self.streams.input_gone(&self.poll, port, nonce, id);
                    } else {
                        self.streams.drain_input(&self.poll, port, nonce, id);
                    }
                }
            }
            Source::Orphan(id) => self.streams.drain_orphan(&self.poll, id, &mut self.scratch),
            Source::Status(pid) => self.on_status(pid),
            Source::Attempt(request) => connect::ended(self, request),
            Source::HooksTimer => hooks::out_of_time(self),
        }
    }

    fn flush(&mut self) {
        let Some(port) = &mut self.port else { return };
        if port.flush().is_err() {
            self.end_session();
        } else {
            self.streams.resume(&self.poll, port);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        if let Ok(fd) = rustix::net::accept_with(listener, flags) {
            // The newest connection counts: the former's host is gone or about to be.
            self.end_session();
            self.port = None;
            let _ = self.take_port(fd);
        }
    }

    fn read_channel(&mut self, serial: bool) {
        loop {
            let Some(port) = &mut self.port else { return };
            match port.read() {
                None => {
                    while let Some(frame) = self.port.as_mut().and_then(Port::next_frame) {
                        self.on_frame(frame);
                    }
                }
                Some(port::Heard::Drained) => return,
                Some(port::Heard::Closed) => {
                    port.forget_half_frame();
                    self.end_session();
                    if !serial {
                        self.port = None;
                    }
                    return;
                }
            }
        }
    }

    fn end_session(&mut self) {
        self.session = Session::default();
        self.attempts.clear();
        self.streams.abandon(&self.poll);
        if let Some(port) = &mut self.port {
            port.drop_queued();
        }
    }

    fn on_frame(&mut self, frame: Frame) {
        if frame.kind == Kind::Hello {
            self.on_hello(frame.nonce);
            return;
        }
        if frame.nonce != self.session.nonce || frame.nonce == 0 {
            return;
        }
        match frame.kind {
            Kind::Request => self.on_request(frame),
            Kind::Data => self.on_data(&frame),
            Kind::Credit => {
                if let Ok(bytes) = <[u8; 4]>::try_from(frame.payload.as_slice()) {
                    self.streams.credit(frame.stream, u32::from_le_bytes(bytes));
                }
            }
            Kind::Reset => {
                self.streams.reset(&self.poll, frame.stream);
                stdio::hang_up(self, frame.stream);
            }
            Kind::Hello | Kind::Response | Kind::Event => {}
        }
    }

    fn on_hello(&mut self, nonce: u64) {
        if nonce == 0 {
            return;
        }
        if nonce != self.session.nonce {
            self.end_session();
            self.session = Session::new(nonce);
        }
        let answer = json!({"protocol": PROTOCOL, "agent": env!("CARGO_PKG_VERSION"), "build": rpc::build()});
        self.send(Kind::Hello, 0, answer.to_string().as_bytes());
    }

    fn on_data(&mut self, frame: &Frame) {
        let Some(port) = &mut self.port else { return };
        let (id, nonce) = (frame.stream, self.session.nonce);
        if self.streams.accept(&self.poll, id, &frame.payload, frame.flags & FIN != 0) {
            self.streams.drain_input(&self.poll, port, nonce, id);
        } else {
            port.send(encode(nonce, Kind::Reset, 0, id, &[]));
        }
    }

    fn on_request(&mut self, frame: Frame) {
        let request = frame.stream;
        let reply = Reply { nonce: self.session.nonce, request };
        let message = match self.session.assemble(frame) {
            session::Heard::Incomplete => return,
            session::Heard::TooLong => {
                let text = format!("request {request} is longer than {} bytes", session::MAX_MESSAGE);
                self.answer(reply, Err(Fault::new(Code::ResourceExhausted, text)));
                return;
            }
            session::Heard::Message(message) => message,
        };
        if request == 0 || self.session.under_way.contains(&request) {
            // No answer: it could not be told from the other request's.
            return;
        }
        if self.session.under_way.len() >= MAX_REQUESTS {
            let text = format!("more than {MAX_REQUESTS} requests under way");
            self.answer(reply, Err(Fault::new(Code::ResourceExhausted, text)));
            return;
        }
        self.session.under_way.insert(request);
        match rpc::carry_out(self, reply, &message) {
            Ok(None) => {}
            Ok(Some(result)) => self.answer(reply, Ok(result)),
            Err(fault) => self.answer(reply, Err(fault)),
        }
    }

    /// Answers a request, unless its session is over.
    pub fn answer(&mut self, reply: Reply, outcome: Outcome<Value>) {
        if reply.nonce != self.session.nonce {
            return;
        }
        self.session.under_way.remove(&reply.request);
        let body = match outcome {
            Ok(result) => json!({"result": result}),
            Err(fault) => json!({"error": {"code": fault.code.name(), "message": fault.message}}),
        };
        self.send(Kind::Response, reply.request, body.to_string().as_bytes());
    }

    pub fn event(&mut self, body: &Value) {
        self.send(Kind::Event, 0, body.to_string().as_bytes());
    }

    fn send(&mut self, kind: Kind, stream: u32, message: &[u8]) {
        let nonce = self.session.nonce;
        let Some(port) = self.port.as_mut().filter(|_| nonce != 0) else { return };
        let mut parts = message.chunks(MAX_PAYLOAD).peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_some() { MORE } else { 0 };
            port.send(encode(nonce, kind, flags, stream, part));
        }
    }

    fn on_signals(&mut self) {
        let mut info = [0; 128];
        while rustix::io::read(&self.signals, &mut info).is_ok() {}
        while let Some((pid, code)) = sys::reap() {
            if !self.children.contains_key(&pid) {
                children::hear_siblings(self);
            }
            // What a child said before its end comes before the news of its end.
            self.on_status(pid);
            children::child_ended(self, pid, code);
        }
    }

    fn on_status(&mut self, pid: u32) {
        while children::hear_child(self, pid) {}
    }
}
