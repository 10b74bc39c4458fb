//! Capstone's interface without a disassembler behind it.
//!
//! Debian's QEMU is linked with libcapstone, whose tables of pointers the loader relocates: 1.3 MiB
//! of memory of its own for each process, before anything runs. Only QEMU's debug output would
//! disassemble. Each function answers what Capstone 4 does for an architecture that was left out
//! when it was built, and QEMU then prints bytes instead.

#![no_std]
#![allow(clippy::missing_safety_doc)]

use core::ffi::{c_int, c_void};

/// `CS_ERR_ARCH`: unsupported architecture.
const UNSUPPORTED: c_int = 2;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
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
