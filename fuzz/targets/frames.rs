#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hello_server::fuzzing::frames(data));
