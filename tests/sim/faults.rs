//! What a seed makes of a run: its ring, its weather, and which faults strike how often.
//!
//! Every kind of fault gets a weight of its own per seed, often zero ("swarm testing", Groce et al.
//! 2012): runs in which a few faults pile up find more than runs with a little of everything.

use crate::env::{MS, Micros, SECOND};
use crate::rng::Rng;
use bytes::Bytes;
use std::time::Duration;
use thrifty::core::layout::Replicas;
use thrifty::core::transition::Patience;

/// A thing that can go wrong, or that an operator does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Crash,
    CrashAll,
    /// A node is lost with its disk. Never more than the ring can bear.
    Kill,
    Cut,
    /// Some nodes are heard by nobody, but hear all.
    CutOneWay,
    /// Each node hears only its two neighbours.
    CutToRing,
    /// A process stands still for a while, and then goes on as if nothing had been.
    Pause,
    /// Some nodes hear nothing of layouts for a while, and serve on at their epoch.
    Deaf,
    /// Some nodes hear no coordinator for a while, but all else.
    Numb,
    Mistake,
    /// Everybody takes one node for dead, one that pulls if there is any.
    Doubt,
    ClockJump,
    /// A wall clock is set by hours.
    ClockLeap,
    /// A node has no room for a while, one that pulls if there is any.
    DiskFull,
    /// Syncs take long for a while.
    DiskSlow,
    /// The disk fails at one of the next things that are to be made durable, and the process with it.
    DiskFails,
    /// A node loses its disk, within the same limits, and comes back under a new id.
    Wipe,
    Join,
    Leave,
    LeaveAll,
    Removal,
    /// No majority is left, and what is left is made a ring of its own.
    ForcedRemoval,
}

/// What strikes at the worst moment: just after the first node has installed a new layout.
const AMBUSHES: &[Fault] = &[
    Fault::Deaf,
    Fault::Deaf,
    Fault::Numb,
    Fault::Doubt,
    Fault::Doubt,
    Fault::Cut,
    Fault::DiskFull,
    Fault::Crash,
    Fault::CrashAll,
    Fault::CutOneWay,
    Fault::CutToRing,
    Fault::Pause,
    Fault::DiskFails,
];

/// How often each fault strikes in the long run, relative to the others.
const WEIGHTS: [(Fault, u64); 21] = [
    (Fault::Crash, 6),
    (Fault::CrashAll, 1),
    (Fault::Kill, 3),
    (Fault::Wipe, 6),
    (Fault::Cut, 4),
    (Fault::CutOneWay, 2),
    (Fault::CutToRing, 2),
    (Fault::Pause, 4),
    (Fault::Deaf, 6),
    (Fault::Numb, 3),
    (Fault::Mistake, 2),
    (Fault::Doubt, 1),
    (Fault::ClockJump, 1),
    (Fault::ClockLeap, 1),
    (Fault::DiskFull, 4),
    (Fault::DiskSlow, 2),
    (Fault::DiskFails, 4),
    (Fault::Join, 8),
    (Fault::Leave, 8),
    (Fault::LeaveAll, 1),
    (Fault::Removal, 2),
];

/// What of the weather a schedule may leave out.
pub(crate) const CALMED: &[&str] = &[
    "late",
    "lost",
    "lost-writes",
    "lost-layouts",
    "doubled",
    "raced",
    "suspicion",
    "skew",
    "repair",
    "scans",
    "collect",
];

impl Fault {
    /// The fault of that name.
    pub(crate) fn named(name: &str) -> Option<Fault> {
        WEIGHTS
            .iter()
            .map(|(fault, _)| *fault)
            .chain([Fault::ForcedRemoval])
            .find(|fault| format!("{fault:?}") == name)
    }
}

/// Everything that is fixed at the start of a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Members of the first ring.
    pub(crate) nodes: usize,
    pub(crate) replicas: Replicas,
    pub(crate) segments: u64,
    pub(crate) keys: Vec<Bytes>,
    /// How many of them, the first ones, hold nothing that expires; what is put under the others does.
    pub(crate) lasting: usize,
    /// How many in ten requests are deletes.
    pub(crate) deletes: u64,
    /// How many in a thousand of what would be reads go through the key's segment.
    pub(crate) scans: u64,
    /// Whether what is dead is looked for and forgotten.
    pub(crate) collects: bool,
    /// How long it takes at most until a node has dropped what others own; 0 for no time.
    pub(crate) tidies_within: Micros,
    pub(crate) clients: usize,
    /// A client's pause between two requests.
    pub(crate) think: Micros,
    /// How long coordinators go on at most. Mostly short, or clients would only wait; long ones
    /// outlive whole transitions.
    pub(crate) deadlines: &'static [Micros],
    /// When the faults end.
    pub(crate) duration: Micros,

    /// The usual delay of a packet.
    pub(crate) delay: Micros,
    /// How many in a thousand are late, by up to `lateness`.
    pub(crate) late: u64,
    pub(crate) lateness: Micros,
    /// How many in a thousand are lost.
    pub(crate) lost: u64,
    /// How many in a thousand of those that ask a replica to write are lost besides, so that
    /// replicas differ.
    pub(crate) lost_writes: u64,
    /// The same of those that bring a layout, so that nodes are at different epochs.
    pub(crate) lost_layouts: u64,
    /// How many in a thousand come twice.
    pub(crate) doubled: u64,

    /// From a write until the next sync.
    pub(crate) sync_delay: Micros,
    pub(crate) ask_timeout: Micros,
    pub(crate) page_timeout: Micros,
    pub(crate) page_bytes: usize,
    /// Until a death is noticed.
    pub(crate) detect: Micros,
    pub(crate) patience: Patience,
    /// How far wall clocks are off at most.
    pub(crate) skew_ms: u64,
    /// How long a crashed node stays down at most.
    pub(crate) down: Micros,
    /// Whether a coordinator takes the requests for one key in turn.
    pub(crate) in_turn: bool,
    /// How many requests in a thousand go to another owner than the first.
    pub(crate) raced: u64,

    /// How often owners compare what they hold while faults strike; 0 for never.
    pub(crate) repair_every: Micros,
    /// The pause between two faults.
    pub(crate) fault_every: Micros,
    /// The pause between two joins or leaves, beside those that are faults; 0 for none.
    pub(crate) churn_every: Micros,
    /// How many new layouts in a thousand bring a fault with them.
    pub(crate) ambush: u64,
    /// Of which kinds.
    pub(crate) ambushes: &'static [Fault],
    /// How many in a thousand are under suspicion, for no reason.
    pub(crate) suspicion: u64,
    weights: Vec<(Fault, u64)>,
}

impl Plan {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let replicas = match rng.below(20) {
            0 => Replicas::All,
            1..3 => Replicas::Count(1),
            3..6 => Replicas::Count(2),
            6..8 => Replicas::Count(5),
            8..10 => Replicas::Count(4),
            _ => Replicas::Count(3),
        };
        let keys = rng.range(1, 7);
        let mut weights = WEIGHTS.to_vec();
        for (_, weight) in &mut weights {
            *weight *= rng.pick(&[0, 0, 1, 1, 4]);
        }
        if !rng.chance(100) {
            weights.retain(|(fault, _)| *fault != Fault::LeaveAll);
        }
        let remove_after = match rng.below(3) {
            0 => Duration::from_millis(rng.range(800, 3_000)),
            _ => Duration::from_secs(300),
        };
        // Progress is reported twice a second: a ring that is less patient never gets anywhere.
        let pull_timeout = Duration::from_millis(rng.range(1_100, 3_000));
        let mut plan = Plan {
            nodes: rng.range(1, 7) as usize,
            replicas,
            segments: rng.pick(&[1, 1, 1, 2, 2, 4, 8, 16]),
            keys: (0..keys).map(|key| Bytes::from(format!("k{key}"))).collect(),
            lasting: 0,
            deletes: 1,
            // By luck of its own, so that the rest of a seed goes as if there were none.
            scans: Rng::new(rng.clone().next() ^ 5).pick(&[0, 0, 0, 200, 800]),
            collects: false,
            tidies_within: 0,
            clients: rng.range(2, 10) as usize,
            think: rng.range(2 * MS, 40 * MS),
            deadlines: &[300 * MS, 300 * MS, 300 * MS, 1_000 * MS, 5_000 * MS],
            duration: rng.range(5 * SECOND, 16 * SECOND),
            delay: rng.pick(&[300, 1_000, 1_000, 3_000, 10_000]),
            late: rng.pick(&[0, 10, 30, 100]),
            lateness: rng.range(20 * MS, 800 * MS),
            lost: rng.pick(&[0, 5, 20, 100, 200]),
            lost_writes: rng.pick(&[0, 0, 200, 400]),
            lost_layouts: rng.pick(&[0, 0, 300, 600]),
            doubled: rng.pick(&[0, 0, 10, 50]),
            sync_delay: rng.pick(&[MS, 3 * MS, 10 * MS, 30 * MS]),
            ask_timeout: rng.range(60 * MS, 250 * MS),
            page_timeout: rng.range(60 * MS, 250 * MS),
            page_bytes: rng.pick(&[1, 100, 10_000]),
            detect: rng.range(100 * MS, 800 * MS),
            patience: Patience { pull_timeout, remove_after, ..Patience::default() },
            skew_ms: rng.pick(&[0, 5, 500, 20_000]),
            down: rng.pick(&[100 * MS, 500 * MS, SECOND, 3 * SECOND]),
            in_turn: rng.chance(500),
            raced: rng.pick(&[0, 50, 300, 700]),
            repair_every: rng.pick(&[0, 0, 300 * MS, 2 * SECOND]),
            fault_every: rng.range(100 * MS, 900 * MS),
            churn_every: rng.pick(&[0, 500 * MS, 1_000 * MS, 2_000 * MS]),
            ambushes: AMBUSHES,
            ambush: rng.pick(&[0, 300, 700]),
            suspicion: rng.pick(&[0, 0, 100, 400]),
            weights,
        };
        let theme = rng.below(10);
        match theme {
            0..4 => plan.of_laggards(rng),
            4..7 => plan.of_newcomers(rng),
            7 => plan.of_rivals(rng),
            _ => {}
        }
        if Rng::new(rng.clone().next() ^ 1).chance(140) {
            plan.of_survivors(&mut Rng::new(rng.clone().next() ^ 2));
            return plan;
        }
        if Rng::new(rng.clone().next() ^ 3).chance(30) {
            plan.of_blackouts(&mut Rng::new(rng.clone().next() ^ 4));
            return plan;
        }
        // By luck of its own, so that the rest of a seed goes as if nothing were collected.
        let mut luck = Rng::new(rng.clone().next());
        plan.lasting = plan.keys.len();
        match theme {
            ..=6 if luck.chance(100) => plan.collect(&mut luck),
            8.. if luck.chance(700) => plan.of_collectors(&mut luck),
            8.. if luck.chance(500) => plan.collect(&mut luck),
            _ => {}
        }
        plan
    }

    /// What is dead is forgotten, often, and some keys hold what expires.
    fn collect(&mut self, rng: &mut Rng) {
        self.collects = true;
        self.patience.collect_every = Duration::from_millis(rng.range(50, 1_500));
        self.deletes = rng.pick(&[1, 2, 3]);
        self.keys.extend((0..rng.below(3)).map(|key| Bytes::from(format!("x{key}"))));
    }

    /// A theme: deletes that are forgotten at once, and messages that come when nobody remembers any more what
    /// they should lose to.
    fn of_collectors(&mut self, rng: &mut Rng) {
        self.keys.truncate(rng.pick(&[1, 2, 6]));
        self.lasting = self.keys.len();
        self.collect(rng);
        self.patience.collect_every = Duration::from_millis(rng.range(50, 300));
        self.nodes = rng.range(3, 6) as usize;
        self.replicas = Replicas::Count(rng.pick(&[2, 3, 3]));
        self.segments = rng.pick(&[1, 2, 8]);
        self.clients = rng.range(2, 6) as usize;
        self.think = rng.pick(&[10 * MS, 40 * MS, 200 * MS, 500 * MS]);
        self.delay = 1_000;
        self.sync_delay = MS;
        self.suspicion = 0;
        // What is hardest to find here is found by reads; other seeds scan what is deleted.
        self.scans = 0;
        self.detect = 100 * MS;
        self.skew_ms = rng.pick(&[0, 20_000]);
        self.lost = rng.pick(&[0, 5]);
        self.lost_writes = rng.pick(&[0, 800, 800]);
        self.late = rng.pick(&[30, 100, 300]);
        self.lateness = rng.range(500 * MS, 4 * SECOND);
        self.repair_every = 100 * MS;
        self.tidies_within = 10 * SECOND;
        self.deadlines = &[5_000 * MS];
        self.raced = rng.pick(&[0, 300, 700]);
        self.fault_every = 1_500 * MS;
        self.churn_every = rng.pick(&[0, 1_000 * MS, 2_000 * MS]);
        self.down = 100 * MS;
        self.ambush = rng.pick(&[0, 300]);
        if rng.chance(300) {
            // Quiet, but that segments come and go between owners that are slow to drop them.
            (self.nodes, self.replicas, self.segments) = (3, Replicas::Count(2), 8);
            (self.late, self.lost, self.lost_writes, self.lost_layouts, self.ambush) = (0, 0, 0, 0, 0);
            (self.deletes, self.think, self.clients) = (3, 200 * MS, 4);
            // Newcomers with slow clocks soon write what was deleted and forgotten.
            (self.skew_ms, self.raced) = (20_000, 700);
            self.churn_every = 1_800 * MS;
            self.weights = vec![(Fault::Leave, 1), (Fault::Join, 1)];
        }
    }

    /// A theme: owners that miss whole transitions and serve on in a world that has ended, while
    /// others miss writes.
    fn of_laggards(&mut self, rng: &mut Rng) {
        self.nodes = rng.range(4, 7) as usize;
        self.replicas = Replicas::Count(3);
        self.segments = rng.pick(&[1, 1, 2]);
        self.keys.truncate(2);
        self.clients = rng.range(5, 9) as usize;
        self.delay = 1_000;
        self.lost = rng.pick(&[0, 5]);
        self.lost_writes = rng.pick(&[200, 400]);
        self.lost_layouts = rng.pick(&[300, 600, 800]);
        self.sync_delay = MS;
        self.raced = 700;
        self.suspicion = rng.pick(&[100, 400]);
        self.churn_every = 700 * MS;
        self.ambush = 0;
        self.fault_every = 1_500 * MS;
        self.weights = vec![(Fault::Deaf, 8), (Fault::Join, 2), (Fault::Wipe, rng.pick(&[0, 0, 1]))];
    }

    /// A theme: tables that are replaced whole, coordinated by newcomers whose clocks are slow and
    /// whom the old owners don't answer.
    fn of_newcomers(&mut self, rng: &mut Rng) {
        self.nodes = rng.range(2, 6) as usize;
        self.replicas = Replicas::Count(rng.pick(&[1, 1, 2, 3]));
        self.segments = rng.pick(&[1, 2]);
        self.keys.truncate(3);
        self.skew_ms = 20_000;
        self.lost_writes = rng.pick(&[0, 300, 600]);
        self.lost_layouts = rng.pick(&[0, 300, 600]);
        self.raced = 700;
        self.sync_delay = MS;
        self.churn_every = 500 * MS;
        self.clients = rng.range(5, 9) as usize;
        self.lost = rng.pick(&[20, 100]);
        self.page_timeout = 250 * MS;
        self.deadlines = &[1_000 * MS, 5_000 * MS];
        self.ambush = rng.pick(&[0, 700]);
        self.ambushes = &[Fault::Numb, Fault::Numb, Fault::Deaf];
    }

    /// A theme: a ring that loses its majority, and goes on without it.
    fn of_survivors(&mut self, rng: &mut Rng) {
        self.lasting = self.keys.len();
        self.nodes = rng.range(3, 8) as usize;
        self.replicas = Replicas::Count(rng.pick(&[1, 2, 3, 3, 3, 5, 7]));
        self.segments = rng.pick(&[1, 2, 4]);
        self.detect = rng.range(100 * MS, 300 * MS);
        self.suspicion = 0;
        self.delay = 1_000;
        self.lost = rng.pick(&[0, 20, 200]);
        self.lost_layouts = rng.pick(&[0, 300, 600]);
        self.down = 500 * MS;
        self.ambush = rng.pick(&[0, 300]);
        self.ambushes = &[Fault::ForcedRemoval];
        self.churn_every = rng.pick(&[300 * MS, 500 * MS, 1_000 * MS]);
        self.fault_every = 700 * MS;
        self.weights = vec![(Fault::ForcedRemoval, 3), (Fault::Crash, 1), (Fault::Join, 1), (Fault::Deaf, 1)];
        if rng.chance(250) {
            // Quiet, so that nobody comes along with whom the segments that are left with too few owners get others.
            (self.nodes, self.replicas) = (rng.range(5, 8) as usize, Replicas::Count(3));
            (self.churn_every, self.ambush, self.weights) = (0, 0, vec![(Fault::ForcedRemoval, 1)]);
        }
    }

    /// A theme: writes that are sent again at a new epoch before they were synced at the old one, and power that
    /// fails then.
    fn of_blackouts(&mut self, rng: &mut Rng) {
        self.lasting = self.keys.len();
        self.nodes = rng.range(2, 5) as usize;
        self.replicas = Replicas::Count(rng.pick(&[1, 1, 2, 3]));
        self.segments = rng.pick(&[1, 2]);
        self.clients = rng.range(5, 9) as usize;
        self.think = 10 * MS;
        self.delay = 1_000;
        self.lost = 0;
        self.lost_layouts = 0;
        self.suspicion = 0;
        self.sync_delay = rng.pick(&[30 * MS, 100 * MS]);
        self.deadlines = &[1_000 * MS, 5_000 * MS];
        self.down = 100 * MS;
        self.churn_every = 500 * MS;
        self.fault_every = SECOND;
        self.ambush = 700;
        self.ambushes = &[Fault::CrashAll, Fault::Crash];
        self.weights = vec![(Fault::Join, 1), (Fault::Crash, 1)];
    }

    /// A theme: several that take themselves for the claimant, whose proposals come late and who crash
    /// in the midst of it, over and over.
    fn of_rivals(&mut self, rng: &mut Rng) {
        self.nodes = rng.range(3, 6) as usize;
        self.segments = 1;
        self.keys.truncate(2);
        self.clients = 2;
        self.delay = rng.pick(&[10 * MS, 30 * MS]);
        self.ask_timeout = 250 * MS;
        self.page_timeout = 250 * MS;
        self.lost = rng.pick(&[0, 100]);
        self.late = 300;
        self.lateness = SECOND;
        self.lost_layouts = rng.pick(&[300, 800]);
        self.suspicion = 0;
        self.patience.remove_after = Duration::from_millis(rng.range(300, 1_000));
        self.down = rng.pick(&[20 * MS, 100 * MS]);
        self.churn_every = 700 * MS;
        self.fault_every = 60 * MS;
        self.ambush = 0;
        self.weights = vec![
            (Fault::Mistake, 8),
            (Fault::Crash, rng.pick(&[0, 2, 8])),
            (Fault::DiskFails, rng.pick(&[0, 2])),
        ];
    }

    /// Leaves some of the weather out.
    pub(crate) fn calm(&mut self, names: &[&str]) {
        for name in names {
            match *name {
                "late" => self.late = 0,
                "lost" => self.lost = 0,
                "lost-writes" => self.lost_writes = 0,
                "lost-layouts" => self.lost_layouts = 0,
                "doubled" => self.doubled = 0,
                "raced" => self.raced = 0,
                "suspicion" => self.suspicion = 0,
                "skew" => self.skew_ms = 0,
                "repair" => self.repair_every = 0,
                "scans" => self.scans = 0,
                "collect" => self.collects = false,
                _ => unreachable!("named in CALMED"),
            }
        }
    }

    /// The next fault; none in a seed that has none.
    pub(crate) fn fault(&self, rng: &mut Rng) -> Option<Fault> {
        let sum = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.below(sum);
        for (fault, weight) in &self.weights {
            if at < *weight {
                return Some(*fault);
            }
            at -= weight;
        }
        None
    }
}
