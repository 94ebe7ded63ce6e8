//! Runs a node of the store.

#[path = "server/mod.rs"]
mod server;

fn main() -> std::process::ExitCode {
    server::main(thrifty::core::layout::Kind::Store)
}
