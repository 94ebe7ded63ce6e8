//! The few versions, questions and answers there are, small enough to be compared and hashed.

use thrifty::core::node::NodeId;
use thrifty::core::record::{Record, Version};
use thrifty::core::replica_request::{Answer, Ask};

/// The one key.
pub(crate) const KEY: &[u8] = b"k";

/// A version by its place among all: 0 is "nothing there".
pub(crate) type Rank = u8;

/// The version of a delete.
pub(crate) const DELETE: Rank = 3;

pub(crate) fn version(rank: Rank) -> Version {
    Version { hlc: rank.into(), node: rank.into() }
}

pub(crate) fn rank(version: Version) -> Rank {
    version.hlc as Rank
}

pub(crate) fn record(rank: Rank) -> Record {
    match rank {
        DELETE => Record::tombstone(version(rank)),
        _ => Record::value(version(rank), vec![rank]),
    }
}

/// A node's id. Its first digits differ from all others', for they are all that is printed, and
/// states of a request are told apart by what they print.
pub(crate) fn node_id(node: u8) -> NodeId {
    NodeId((u128::from(node) + 1) << 120)
}

pub(crate) fn node_of(id: NodeId) -> u8 {
    (id.0 >> 120) as u8 - 1
}

/// What is asked of a replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Put {
    Write(Rank),
    Read,
    Version,
}

impl Put {
    pub(crate) fn of(ask: &Ask) -> Self {
        match ask {
            // What sets them apart is for a replica without room; here all have some.
            Ask::Write(record) | Ask::WriteBack(record) => Put::Write(rank(record.version)),
            Ask::Read => Put::Read,
            Ask::Version => Put::Version,
            Ask::Page(_) => unreachable!("there are no scans here"),
        }
    }

    pub(crate) fn ask(self) -> Ask {
        match self {
            Put::Write(rank) => Ask::Write(record(rank)),
            Put::Read => Ask::Read,
            Put::Version => Ask::Version,
        }
    }

    pub(crate) fn writes(self) -> bool {
        matches!(self, Put::Write(_))
    }
}

/// What a replica answers, if it answers at all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Said {
    Accepted(Rank),
    Superseded(Rank),
    Record(Rank),
    Version(Rank),
}

impl Said {
    pub(crate) fn of(answer: &Answer) -> Option<Self> {
        match answer {
            Answer::Accepted(version) => Some(Said::Accepted(rank(*version))),
            Answer::Superseded(version) => Some(Said::Superseded(rank(*version))),
            Answer::Record(record) => Some(Said::Record(record.as_ref().map_or(0, |r| rank(r.version)))),
            Answer::Version(version) => Some(Said::Version(rank(*version))),
            Answer::Stale(_) | Answer::NoSpace | Answer::Page(_) | Answer::Silence => None,
        }
    }

    pub(crate) fn answer(self) -> Answer {
        match self {
            Said::Accepted(rank) => Answer::Accepted(version(rank)),
            Said::Superseded(rank) => Answer::Superseded(version(rank)),
            Said::Record(rank) => Answer::Record((rank > 0).then(|| record(rank))),
            Said::Version(rank) => Answer::Version(version(rank)),
        }
    }
}
