//! Runs a node of the location service alone.

#[path = "server/mod.rs"]
mod server;

fn main() -> std::process::ExitCode {
    server::main(thrifty::core::layout::Kind::Location)
}
