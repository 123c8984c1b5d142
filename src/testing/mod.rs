//! Code that only tests and fuzzing compile.

pub mod commands;
pub mod properties;
