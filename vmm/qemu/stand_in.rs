//! What stands in for libraries that Debian's QEMU is linked with and a worker has no use for, and
//! for one answer of the C library's.
//!
//! The loader relocates a library's tables in each process before anything runs. libcapstone's take
//! 1.3 MiB of each; only QEMU's debug output would disassemble. libpmem is for files in persistent
//! memory, which no worker is given (`pmem=on`), and brings libkmod and so libcrypto with it: 0.5
//! MiB.
//!
//! QEMU is linked with both before the C library, so that its `sysconf` is this one.

#![no_std]
#![allow(clippy::missing_safety_doc)]

use core::ffi::{c_int, c_long, c_void};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

unsafe extern "C" {
    fn __sysconf(name: c_int) -> c_long;
    fn abort() -> !;
}

/// `_SC_LEVEL1_ICACHE_LINESIZE` of the GNU C library.
const ICACHE_LINE: c_int = 187;

/// Bytes, a power of two.
const BLOCK: c_long = 16;

/// TCG begins each block of translated code, and its description, at a multiple of the line of the
/// instruction cache. Both are a few hundred bytes, and an idle worker has 50,000 of them: with the
/// processor's 64 bytes every seventh byte of the buffer was a gap. x86 needs no such bounds, and
/// wants its loops at multiples of 16.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysconf(name: c_int) -> c_long {
    if name == ICACHE_LINE {
        BLOCK
    } else {
        unsafe { __sysconf(name) }
    }
}

/// Functions whatever their arguments, which the C calling convention lets them disregard.
macro_rules! answers {
    ($($name:ident -> $type:ty = $value:expr;)*) => {
        $(#[unsafe(no_mangle)]
        pub extern "C" fn $name() -> $type {
            $value
        })*
    };
}

/// `CS_ERR_ARCH`: unsupported architecture.
const UNSUPPORTED: c_int = 2;

// What Capstone 4 answers for an architecture that was left out when it was built; QEMU then prints
// bytes instead.
answers! {
    cs_open -> c_int = UNSUPPORTED;
    cs_close -> c_int = UNSUPPORTED;
    cs_option -> c_int = UNSUPPORTED;
    cs_errno -> c_int = UNSUPPORTED;
    cs_regs_access -> c_int = UNSUPPORTED;
    cs_op_count -> c_int = -1;
    cs_op_index -> c_int = -1;
    cs_version -> u32 = 0x0400;
    cs_support -> bool = false;
    cs_disasm_iter -> bool = false;
    cs_insn_group -> bool = false;
    cs_reg_read -> bool = false;
    cs_reg_write -> bool = false;
    cs_disasm -> usize = 0;
    cs_disasm_ex -> usize = 0;
    cs_free -> () = ();
    cs_malloc -> *mut c_void = core::ptr::null_mut();
    cs_strerror -> *const c_void = c"no disassembler".as_ptr().cast();
    cs_reg_name -> *const c_void = core::ptr::null();
    cs_insn_name -> *const c_void = core::ptr::null();
    cs_group_name -> *const c_void = core::ptr::null();
}

/// Functions that must not be called: QEMU without libpmem gives up in their place, too, since who
/// calls them counts on what they write being kept.
macro_rules! refuses {
    ($($name:ident)*) => {
        $(#[unsafe(no_mangle)]
        pub extern "C" fn $name() -> ! {
            unsafe { abort() }
        })*
    };
}

refuses! {
    pmem_persist pmem_msync pmem_flush pmem_drain pmem_deep_flush pmem_deep_drain pmem_deep_persist
    pmem_memcpy pmem_memcpy_persist pmem_memcpy_nodrain pmem_memmove pmem_memmove_persist pmem_memmove_nodrain
    pmem_memset pmem_memset_persist pmem_memset_nodrain pmem_map_file pmem_unmap
    pmem_is_pmem pmem_has_hw_drain pmem_has_auto_flush pmem_check_version pmem_errormsg
}
