//! The workload: a few clients, each of which sends one request after the other.
//!
//! A client sends to some live node, which is mostly not the right one, waits for a while and then
//! goes on. It never sends a request again: one whose outcome is unknown stays so.

use crate::env::{Env, Event, Index, MS, Micros};
use crate::rng::Rng;
use thrifty::core::quorum::Consistency;
use thrifty::core::ttl::Ttl;

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    Put,
    Get,
    /// All of the key's segment.
    Scan,
    Delete,
}

/// One request of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    /// Its number, which is also the value that a put writes.
    pub(crate) number: u64,
    /// Which key, as an index into the plan's.
    pub(crate) key: usize,
    pub(crate) wish: Wish,
    /// How long what it puts is to be kept, if not for ever.
    pub(crate) ttl: Option<Ttl>,
    pub(crate) consistency: Consistency,
    pub(crate) fallback: bool,
    /// From its start until the coordinator gives up.
    pub(crate) patience: Micros,
}

/// What a client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Done,
    /// Nothing was done; it may be sent again.
    Refused,
    /// Not an owner at this epoch; nothing was done.
    NotOwner(u64),
    Unknown,
}

/// A client and what it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) waits_for: Option<u64>,
    /// What it decides by: its own, so that it wants the same whatever becomes of the others.
    pub(crate) rng: Rng,
}

impl Client {
    pub(crate) fn new(seed: u64, client: usize) -> Self {
        Client { waits_for: None, rng: Rng::new(seed ^ (client as u64 + 1) << 32) }
    }
}

/// Makes up a request.
pub(crate) fn command(env: &mut Env) -> Command {
    let wish = match env.rng.below(10) {
        dice if dice < env.plan.deletes => Wish::Delete,
        0..5 => Wish::Put,
        _ => Wish::Get,
    };
    // After the faults mostly reads, or every key would be written anew and no owner lack anything.
    let wish = if env.healed && env.rng.chance(950) { Wish::Get } else { wish };
    let scans = wish == Wish::Get && env.plan.scans > 0 && env.rng.chance(env.plan.scans);
    let wish = if scans { Wish::Scan } else { wish };
    let consistency = match env.rng.below(40) {
        0..2 => Consistency::One,
        2 => Consistency::All,
        _ => Consistency::Quorum,
    };
    let fallback = env.rng.chance(30);
    let longest = env.rng.pick(env.plan.deadlines);
    let patience = env.rng.range(100 * MS, longest);
    let key = env.rng.below(env.plan.keys.len() as u64) as usize;
    let ttl = match key < env.plan.lasting {
        true => None,
        false => Ttl::from_ms(env.rng.range(100, 2_000)).ok(),
    };
    Command { number: env.fresh(), key, wish, ttl, consistency, fallback, patience }
}

/// How long a client thinks before it sends again.
pub(crate) fn think(env: &mut Env, client: usize) {
    let delay = env.rng.range(env.plan.think / 4, env.plan.think * 2);
    env.after(delay, Event::Client(client));
}

/// A client's request goes to some live node.
pub(crate) fn choose(env: &mut Env, live: &[Index]) -> Option<Index> {
    (!live.is_empty()).then(|| env.rng.pick(live))
}
