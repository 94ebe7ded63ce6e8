//! How people name a node: its id, the first digits of it, or where it listens.

use crate::common::{Exit, Failure};
use std::str::FromStr;
use thrifty::core::node::Address;
pub(crate) use thrifty::gateway::json::id;
use thrifty::wire::location::{NodeStatus, StatusResponse};

/// Fewer digits than this are more likely a mistake than a name.
const MIN_DIGITS: usize = 4;

/// A node as it was named on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NodeName {
    /// The first digits of its id, or all.
    Prefix(String),
    /// Where it listens.
    At(Address),
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(':') {
            return text
                .parse()
                .map(NodeName::At)
                .map_err(|e: thrifty::core::node::BadAddress| e.to_string());
        }
        let hex = text.bytes().all(|b| b.is_ascii_hexdigit());
        if hex && (MIN_DIGITS..=32).contains(&text.len()) {
            return Ok(NodeName::Prefix(text.to_ascii_lowercase()));
        }
        Err(format!("write a node's id, its first {MIN_DIGITS} or more hexadecimal digits, or its HOST:PORT"))
    }
}

impl NodeName {
    fn fits(&self, node: &NodeStatus) -> bool {
        match self {
            NodeName::Prefix(digits) => id(node).to_string().starts_with(digits),
            NodeName::At(address) => node.address == address.as_str(),
        }
    }
}

impl std::fmt::Display for NodeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NodeName::Prefix(digits) => f.write_str(digits),
            NodeName::At(address) => address.fmt(f),
        }
    }
}

/// The one node of a ring that has this name.
pub(crate) fn resolve<'a>(status: &'a StatusResponse, name: &NodeName) -> Result<&'a NodeStatus, Failure> {
    let fitting: Vec<&NodeStatus> = status.nodes.iter().filter(|node| name.fits(node)).collect();
    let list = |nodes: &mut dyn Iterator<Item = &NodeStatus>| {
        nodes.map(|node| format!("{:.8} at {}", id(node), node.address)).collect::<Vec<_>>().join(", ")
    };
    match fitting.as_slice() {
        [node] => Ok(node),
        [] => {
            let there = list(&mut status.nodes.iter());
            let message = format!("ring {} has no node {name}; there are {there}", status.ring);
            Err(Failure::new(Exit::NotFound, message))
        }
        several => {
            let these = list(&mut several.iter().copied());
            Err(Failure::new(Exit::Usage, format!("{name} fits several nodes: {these}; write more digits")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thrifty::wire::convert;

    fn status() -> StatusResponse {
        let node = |id: u128, address: &str| NodeStatus {
            id: convert::id_bytes(id),
            address: address.into(),
            ..NodeStatus::default()
        };
        let nodes = vec![node(0xa_bcd1 << 108, "127.0.0.1:9900"), node(0xa_bcd2 << 108, "127.0.0.1:9901")];
        StatusResponse { nodes, ..StatusResponse::default() }
    }

    #[test]
    fn a_node_is_named_by_id_by_prefix_or_by_address() {
        let check = |name: &str, expected: Result<&str, Exit>| {
            let status = status();
            let found =
                resolve(&status, &name.parse().unwrap()).map(|n| n.address.as_str()).map_err(|f| f.exit);
            assert_eq!(found, expected, "{name}");
        };
        check("abcd1", Ok("127.0.0.1:9900"));
        check("ABCD2", Ok("127.0.0.1:9901"));
        check("abcd2000000000000000000000000000", Ok("127.0.0.1:9901"));
        check("127.0.0.1:9900", Ok("127.0.0.1:9900"));
        check("abcd", Err(Exit::Usage));
        check("ffff", Err(Exit::NotFound));
        check("127.0.0.1:1", Err(Exit::NotFound));
    }

    #[test]
    fn other_texts_name_no_node() {
        for bad in ["", "abc", "xyzw", "host:", "abcd1000000000000000000000000000f"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}
