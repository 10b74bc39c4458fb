//! The program of the rehearsal's layer: `true`, `echo` and `sleep`, by the name it is called. Without the standard
//! library, since under emulation each start of a program translates it anew. It touches the kernel where an ordinary
//! program's start does, so that the kernel's code for that is translated when the first container starts.

#![no_std]
#![no_main]
#![no_builtins]

use core::arch::{asm, global_asm};
use core::mem::MaybeUninit;
use core::slice;

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {run}", run = sym run);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl {run}", run = sym run);

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const MUNMAP: usize = 11;
    pub const BRK: usize = 12;
    pub const RT_SIGACTION: usize = 13;
    pub const NANOSLEEP: usize = 35;
    pub const GETPID: usize = 39;
    pub const UNAME: usize = 63;
    pub const PRLIMIT: usize = 302;
    pub const SET_TID_ADDRESS: usize = 218;
    pub const GETRANDOM: usize = 318;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const MMAP: usize = 222;
    pub const MPROTECT: usize = 226;
    pub const MUNMAP: usize = 215;
    pub const BRK: usize = 214;
    pub const RT_SIGACTION: usize = 134;
    pub const NANOSLEEP: usize = 101;
    pub const GETPID: usize = 172;
    pub const UNAME: usize = 160;
    pub const PRLIMIT: usize = 261;
    pub const SET_TID_ADDRESS: usize = 96;
    pub const GETRANDOM: usize = 278;
    pub const EXIT_GROUP: usize = 94;
}

fn call(number: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: every caller below passes numbers, or pointers to memory of its own that the call's size fits.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5], out("rcx") _, out("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0", in("x8") number, inlateout("x0") args[0] => result, in("x1") args[1], in("x2") args[2],
            in("x3") args[3], in("x4") args[4], in("x5") args[5],
        );
    }
    result
}

fn exit() -> ! {
    loop {
        call(number::EXIT_GROUP, [0; 6]);
    }
}

fn write(text: &[u8]) {
    call(number::WRITE, [1, text.as_ptr() as usize, text.len(), 0, 0, 0]);
}

/// Rests for so many seconds; 0 is for ever.
fn sleep(seconds: usize) {
    let time = [if seconds == 0 { isize::MAX.unsigned_abs() } else { seconds }, 0];
    call(number::NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

/// What the C library and the loader of an ordinary program ask of the kernel before its `main`.
fn start_as_programs_do() {
    const PAGE: usize = 4096;
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    const NOFILE: usize = 7;
    const SIGINT: usize = 2;
    let mut buffer = MaybeUninit::<[u8; 512]>::uninit();
    let room = buffer.as_mut_ptr() as usize;
    let end = call(number::BRK, [0; 6]).unsigned_abs();
    call(number::BRK, [end + 33 * PAGE, 0, 0, 0, 0, 0]);
    call(number::SET_TID_ADDRESS, [room, 0, 0, 0, 0, 0]);
    call(number::PRLIMIT, [0, NOFILE, 0, room, 0, 0]);
    call(number::GETRANDOM, [room, 16, 0, 0, 0, 0]);
    call(number::UNAME, [room, 0, 0, 0, 0, 0]);
    call(number::GETPID, [0; 6]);
    call(number::RT_SIGACTION, [SIGINT, 0, room, 8, 0, 0]);
    let mapped = call(number::MMAP, [0, 4 * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]);
    if mapped > 0 {
        let mapped = mapped.unsigned_abs();
        // A write of the kernel's to a page of the mapping is a page fault, as the program's own would be.
        call(number::GETRANDOM, [mapped, 16, 0, 0, 0, 0]);
        call(number::MPROTECT, [mapped + PAGE, PAGE, 1, 0, 0, 0]);
        call(number::MUNMAP, [mapped, 4 * PAGE, 0, 0, 0, 0]);
    }
}

/// The arguments on the initial stack: a count, as many pointers, a null pointer.
struct Arguments(*const *const u8);

impl Iterator for Arguments {
    type Item = &'static [u8];

    fn next(&mut self) -> Option<Self::Item> {
        // SAFETY: the kernel ends the array with a null pointer, at which this stops, and each string with a NUL.
        unsafe {
            let text = *self.0;
            if text.is_null() {
                return None;
            }
            self.0 = self.0.add(1);
            let mut length = 0;
            while *text.add(length) != 0 {
                length += 1;
            }
            Some(slice::from_raw_parts(text, length))
        }
    }
}

extern "C" fn run(stack: *const *const u8) -> ! {
    start_as_programs_do();
    // SAFETY: the kernel puts the count there, the pointers behind it.
    let mut arguments = Arguments(unsafe { stack.add(1) });
    let path = arguments.next().unwrap_or_default();
    match path.rsplit(|byte| *byte == b'/').next() {
        Some(b"echo") => {
            let mut first = true;
            for word in arguments {
                if !first {
                    write(b" ");
                }
                first = false;
                write(word);
            }
            write(b"\n");
        }
        Some(b"sleep") => {
            let digits = arguments.next().unwrap_or_default().iter().take(9);
            sleep(digits.fold(0, |seconds, digit| seconds * 10 + usize::from(digit.saturating_sub(b'0'))));
        }
        _ => {}
    }
    exit()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit()
}
