//! Stories: the real programs, as people start, use, stop and kill them.
//!
//! Every test has a folder and a loopback address of its own, so that they run side by side. Those
//! that start programs without any flag, as a person does first, share the ports from 9900 on and
//! take turns (see [`rig::Rig::without_flags`]). Nothing here sleeps in the hope that something has
//! happened by then: every wait is for a condition, with a deadline.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod load;
mod rig;

// It looks up in /proc what a node has in memory.
#[cfg(target_os = "linux")]
mod abuse;
mod at_once;
mod bad_input;
mod cache;
mod changes;
mod client;
mod collection;
mod dialects;
#[cfg(target_os = "linux")]
mod discover;
mod expiry;
mod forced_removal;
mod forerunners;
mod full_disk;
mod healing;
mod http;
mod killed;
mod partition;
mod removal;
mod scan;
mod service;
mod services;
mod storectl;
mod stories_change;
mod stories_crash;
mod stories_start;
mod ties;
mod torture;
mod wrong_start;
