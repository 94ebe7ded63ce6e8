//! Scans: a node goes through the segment of some key, stretch by stretch, and what it meets is checked.

use crate::client::{Command, Reply};
use crate::counts::Kind;
use crate::env::Env;
use crate::node::Process;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use thrifty::core::quorum::Consistency;
use thrifty::core::record::{Record, Version};
use thrifty::core::replica_request::Stretch;
use thrifty::core::scan::Scan;
use thrifty::core::token::Segment;
use thrifty::core::write::{Action, Outcome, Terms};

/// A key of the scanned segment: which, its account when the scan began, and what had to be met at least.
type Expected = (usize, usize, Version);

/// A scan under way.
pub(crate) struct Scanning {
    pub(crate) scan: Scan,
    segment: Segment,
    terms: Terms,
    expected: Vec<Expected>,
    met: BTreeMap<Bytes, Record>,
    /// The least that was achieved for a stretch.
    least: Consistency,
}

/// How a scan goes on.
pub(crate) enum Advance {
    /// Its stretch is under way.
    Waits,
    /// The next stretch has begun.
    Asks(Vec<Action>),
    /// It is over.
    Ended(Reply),
}

impl Process {
    pub(crate) fn begin_scan(&mut self, command: Command, env: &mut Env) -> (Scanning, Vec<Action>) {
        let (layout, now) = (self.layout(), env.moment());
        let segment = layout.segment(&env.plan.keys[command.key]);
        let deadline = now + Duration::from_micros(command.patience);
        let terms = Terms::new(command.consistency, command.fallback, now, deadline);
        let of = |key: usize| (key, env.checker.account(layout.ring, key));
        let here = (0..env.plan.keys.len()).filter(|key| layout.segment(&env.plan.keys[*key]) == segment);
        let expected = here.map(of).map(|(key, account)| (key, account, env.checker.floor(account)));
        let expected = expected.collect();
        let (scan, actions) = self.stretch(segment, Bytes::new(), terms, env);
        (Scanning { scan, segment, terms, expected, met: BTreeMap::new(), least: terms.consistency }, actions)
    }

    fn stretch(&self, segment: Segment, after: Bytes, terms: Terms, env: &Env) -> (Scan, Vec<Action>) {
        let (prefix, max_bytes) = (Bytes::new(), env.plan.page_bytes);
        let stretch = Stretch { segment, prefix, after, keys_only: false, max_bytes };
        let view = env.gossip.view(self.index, env.now);
        let mut actions = Vec::new();
        let scan = Scan::start(
            self.id,
            self.layout(),
            stretch,
            terms,
            env.moment(),
            &|id| view.of(id),
            &mut actions,
        );
        (scan, actions)
    }

    /// Goes on with the next stretch if this one has ended; says how the scan ended if that was the last.
    pub(crate) fn advance_scan(&self, scanning: &mut Scanning, env: &mut Env) -> Advance {
        let Some(outcome) = scanning.scan.outcome().cloned() else { return Advance::Waits };
        let (page, achieved) = match outcome {
            Outcome::Done(page, achieved) => (page, achieved),
            _ => {
                env.count(Kind::ScanFailed);
                return Advance::Ended(Reply::Refused);
            }
        };
        scanning.least = achieved.min(scanning.least);
        let after = page.records.last().map(|(key, _)| key.clone()).unwrap_or_default();
        scanning.met.extend(page.records);
        if !page.last {
            env.count(Kind::ScannedOn);
            let (scan, actions) = self.stretch(scanning.segment, after, scanning.terms, env);
            scanning.scan = scan;
            return Advance::Asks(actions);
        }
        let ring = self.layout().ring;
        for (key, began_in, floor) in &scanning.expected {
            let account = env.checker.account(ring, *key);
            // What was there in the old ring when it began says nothing of a new one.
            let floor = (scanning.least > Consistency::One && account == *began_in).then_some(*floor);
            env.checker.scanned(account, scanning.met.get(&env.plan.keys[*key]), floor);
        }
        env.count(Kind::Scanned);
        Advance::Ended(Reply::Done)
    }
}
