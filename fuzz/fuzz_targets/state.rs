#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| thrifty::fuzzing::node_state(bytes));
