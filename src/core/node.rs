//! Who a member is: an id that outlives its address, a generation that orders its lives.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

/// One member process. Random, kept in its data directory; not its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

impl NodeId {
    /// The low half, which versions carry to tell writers of one instant apart.
    pub fn low(self) -> u64 {
        self.0 as u64
    }
}

impl fmt::Display for NodeId {
    /// 32 hexadecimal digits; `{:.8}` prints the first eight, which is what people read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        f.write_str(&digits[..f.precision().unwrap_or(32).min(32)])
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:.8}")
    }
}

/// A text that is no node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 32 hexadecimal digits")]
pub struct BadNodeId;

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadNodeId);
        }
        u128::from_str_radix(text, 16).map(NodeId).map_err(|_error| BadNodeId)
    }
}

/// The identity of a ring: two rings of one name are told apart by it. A forced removal starts
/// a new one, so that votes of the old can't return.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId(pub u128);

impl fmt::Display for RingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&NodeId(self.0), f)
    }
}

impl fmt::Debug for RingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:.8}")
    }
}

/// Which life of a node: raised durably at every start. Newer news of the same node wins.
pub type Generation = u64;

/// What gossip says of a member. It steers routing and never changes the ring by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    /// It answers.
    Up,
    /// It did not answer lately, and may still refute that.
    Suspect,
    /// It is taken for dead.
    Down,
}

/// Time since some arbitrary start, from a clock that never runs backwards.
pub type Moment = std::time::Duration;

/// Where a node can be reached, `host:port`. In a layout it is a hint: a durable member may
/// come back elsewhere and says so by gossip.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(Arc<str>);

/// A text that is no `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: write HOST:PORT, for example 127.0.0.1:9900")]
pub struct BadAddress(String);

impl Address {
    /// The longest address accepted: a DNS name is at most 253 bytes, a port five digits.
    pub const MAX_BYTES: usize = 260;

    /// The text, `host:port`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The port.
    pub fn port(&self) -> u16 {
        split(&self.0).map_or(0, |(_, port)| port)
    }
}

fn split(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    // Anything else would mean something of its own in a URI, and another place be dialled.
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    // The standard library's numbers may begin with a plus.
    let port = port.parse().ok().filter(|_| !port.starts_with('+'))?;
    (is_host && text.len() <= Address::MAX_BYTES).then_some((host, port))
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        match split(text) {
            Some(_) => Ok(Address(text.into())),
            None => Err(BadAddress(text.chars().take(80).collect())),
        }
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Address(address.to_string().into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_round_trips_as_text() {
        let id = NodeId(0x00ab_cdef);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(format!("{id:.4}"), "0000");
        for bad in ["", "xyz", "+0000000000000000000000000000000", "0"] {
            assert_eq!(bad.parse::<NodeId>(), Err(BadNodeId), "{bad}");
        }
    }

    #[test]
    fn an_address_needs_a_host_and_a_port() {
        for good in ["127.0.0.1:9900", "[::1]:1", "host.example:65535", "a-b_c:1"] {
            assert_eq!(good.parse::<Address>().unwrap().as_str(), good);
        }
        for bad in ["", "9900", ":9900", "host", "host:", "host:99999", "ho st:1", "a/b:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        // What a URI takes apart otherwise, or not at all.
        for bad in ["[:20]::1", "::1:1", "[::1:1", "host:+1", "me@host:1", "host:1?:2", "host#:1", "h%41:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!(format!("{}:1", "h".repeat(300)).parse::<Address>().is_err());
    }
}
