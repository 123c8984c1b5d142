//! Code for tests and fuzzing alone; the program has none of it.

pub mod commands;
pub mod properties;
