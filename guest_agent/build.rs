//! The rehearsal's program has no C runtime.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bin=thaw-rehearsal=-nostartfiles");
    println!("cargo::rustc-link-arg-bin=thaw-rehearsal=-nostdlib");
}
