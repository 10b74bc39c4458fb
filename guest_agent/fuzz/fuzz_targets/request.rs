#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thaw_agent::fuzzing::request(bytes));
