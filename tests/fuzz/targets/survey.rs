#![no_main]

#[path = "../survey.rs"]
mod survey;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| survey::survey(bytes));
