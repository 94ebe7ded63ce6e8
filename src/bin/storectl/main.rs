//! `storectl`: everything else a person asks of a ring.
//!
//! Its status, its table, who owns a key; its keys and what is under them; whether owners agree; and letting members leave, stop or be
//! removed. What only looks works for rings of the location service alone, too.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "each tool uses its part of what they share")]
mod common;

mod args;
mod export;
mod healing;
mod import;
mod keys;
mod line;
mod ls;
mod member;
mod membership;
mod note;
mod progress;
mod removal;
mod ring;
mod status;
mod table;
mod top;
mod watch;

use args::{Cli, Command};
use common::Failure;
use std::process::ExitCode;

const TOOL: &str = "storectl";

fn main() -> ExitCode {
    common::run(TOOL, 1, control(common::parse()))
}

async fn control(Cli { target, command }: Cli) -> Result<(), Failure> {
    match command {
        Command::Status { keys, care, json } => status::status(&target, keys, &care, json).await,
        Command::Ring { json } => table::ring(&target, json).await,
        Command::Locate { key, json } => table::locate(&target, &key, json).await,
        Command::Top(top) => top.run(&target).await,
        Command::Watch(watch) => watch.run(&target).await,
        Command::Export(export) => export.run(&target).await,
        Command::Import(import) => import.run(&target).await,
        Command::Ls(ls) => ls.run(&target).await,
        Command::Get(get) => get.run(TOOL, &target.connect, target.store(&get.care)).await,
        Command::Put(put) => put.run(TOOL, target.store(&put.care)).await,
        Command::Del { key, care, json } => keys::delete(&target, &key, &care, json).await,
        Command::Prime { care, json } => keys::prime(&target, &care, json).await,
        Command::Verify { wait, json } => healing::verify(&target, wait, json).await,
        Command::Repair { json } => healing::repair(&target, json).await,
        Command::Leave { node, json } => membership::leave(&target, node, json).await,
        Command::Shutdown { node, json } => membership::shutdown(&target, node, json).await,
        Command::Remove { node, force, yes, json } => removal::remove(&target, &node, force, yes, json).await,
    }
}
