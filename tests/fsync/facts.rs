//! The vault and what a node remembers in it.

use crate::disk::Luck;
use crate::mount::Mount;
use crate::{Failure, Run, layout, must};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thrifty::core::ballot::{Ballot, Vote};
use thrifty::core::layout::Layout;
use thrifty::core::node::NodeId;
use thrifty::location::state::{NodeState, save_clock, save_layout, save_vote};
use thrifty::storage::data_dir::DataDir;
use thrifty::storage::vault::{DirVault, Vault};

/// Every cut leaves each blob old or new and whole, and new once `save` has returned. The seeds take
/// every point of the run in turn.
pub(crate) fn vault(mount: &Mount, seed: u64) -> Result<Run, Failure> {
    let mut rng = StdRng::seed_from_u64(seed);
    mount.clear();
    mount.stop_after(1 + seed % 64);
    let folder = mount.path().join("vault");
    let mut sure: BTreeMap<&str, Option<Vec<u8>>> = [("a", None), ("b-2", None)].into();
    let mut unsure = None;
    if let Ok(vault) = DirVault::open(&folder) {
        while !mount.stopped() {
            let name = *["a", "b-2"].get(rng.random_range(0..2)).ok_or("two names")?;
            let len = rng.random_range(0..20_000);
            let blob = rng.random_bool(0.8).then(|| vec![rng.random::<u8>(); len]);
            let done = match &blob {
                Some(blob) => vault.save(name, blob),
                None => vault.remove(name),
            };
            match done {
                Ok(()) => sure.insert(name, blob),
                Err(_stopped) => unsure.replace((name, blob)).and(None),
            };
        }
    }
    mount.cut(Luck::any(&mut rng), &mut rng);
    let vault = must("opening the vault again", DirVault::open(&folder))?;
    for (name, sure) in sure {
        let found = must("loading", vault.load(name))?;
        let new = unsure.as_ref().filter(|(unsure, _)| *unsure == name);
        if found != sure && new.is_none_or(|(_, new)| found != *new) {
            let len = |blob: &Option<Vec<u8>>| blob.as_ref().map(Vec::len);
            return Err(format!("{name}: {:?} bytes found, {:?} saved", len(&found), len(&sure)));
        }
    }
    Ok(Run::Whole)
}

/// A node wakes as the one it was, never in a generation that it has lived in, and forgets neither a
/// layout nor a vote nor how far its clock may have run; through kills and cuts in any order.
pub(crate) fn node_state(mount: &Mount, seed: u64) -> Result<Run, Failure> {
    let mut rng = StdRng::seed_from_u64(seed);
    mount.clear();
    let first = layout();
    // What was seen last of each fact, and what may be there as well.
    let (mut id, mut generations) = (None, BTreeSet::new());
    let mut epochs = BTreeSet::from([0]);
    let mut votes = BTreeSet::from([(0, 0)]);
    let mut mark = 0;
    for _life in 0..6 {
        mount.stop_after(rng.random_range(1..60));
        let mut lived = || -> Result<(), Failure> {
            let Ok(dir) = DataDir::open(mount.path().join("node")) else { return stopped(mount) };
            let vault: Arc<dyn Vault> = Arc::new(dir.vault());
            let state = match NodeState::open(vault.clone()) {
                Ok(state) => state,
                Err(_) if mount.stopped() => return Ok(()),
                Err(error) => return Err(format!("what the node remembers: {error}")),
            };
            let found = state.layout.as_ref().map_or(0, |layout| layout.epoch);
            if !epochs.contains(&found) {
                return Err(format!("epoch {found} found, one of {epochs:?} saved"));
            }
            epochs = [found].into();
            if found > 0 {
                if id.is_some_and(|id| id != state.id) {
                    return Err("it woke as somebody else".into());
                }
                if !generations.insert(state.generation) {
                    return Err(format!("it lives in generation {} again", state.generation));
                }
                id = Some(state.id);
                let vote = (found + 1, state.vote.promised.round);
                if !votes.iter().any(|(target, round)| (*target, *round) == vote)
                    && (vote.1 != 0 || votes.iter().all(|(target, _)| *target == vote.0))
                {
                    return Err(format!("vote {vote:?} found, one of {votes:?} saved"));
                }
                votes = [vote].into();
            } else {
                // Without a layout it is somebody new at each start.
                (id, generations) = (Some(state.id), [state.generation].into());
            }
            if state.clock_mark < mark {
                return Err(format!("clock mark {} found, {mark} saved", state.clock_mark));
            }
            mark = state.clock_mark;
            let mut installed = state.layout.as_deref().cloned();
            for _ in 0..rng.random_range(0..8) {
                let saved = match rng.random_range(0..3) {
                    0 => {
                        let next = match &installed {
                            Some(layout) => Layout { epoch: layout.epoch + 1, ..layout.clone() },
                            None => first.clone(),
                        };
                        let saved = save_layout(&*vault, &next);
                        remember(&mut epochs, next.epoch, saved.is_ok());
                        installed = Some(next);
                        saved
                    }
                    1 => {
                        let target = installed.as_ref().map_or(0, |layout| layout.epoch) + 1;
                        let round = rng.random_range(1..1000);
                        let promised = Ballot::new(round, NodeId(1));
                        let saved = save_vote(&*vault, target, &Vote { promised, accepted: None });
                        remember(&mut votes, (target, round), saved.is_ok());
                        saved
                    }
                    _ => {
                        let next = mark + rng.random_range(1..1000);
                        let saved = save_clock(&*vault, next);
                        if saved.is_ok() {
                            mark = next;
                        }
                        saved
                    }
                };
                if saved.is_err() {
                    return stopped(mount);
                }
            }
            Ok(())
        };
        lived()?;
        if rng.random() {
            mount.cut(Luck::any(&mut rng), &mut rng);
        } else {
            mount.kill();
        }
    }
    Ok(Run::Whole)
}

/// What can be there from now on: this, or after a failure this or what was there before.
fn remember<T: Ord>(known: &mut BTreeSet<T>, new: T, durable: bool) {
    if durable {
        known.clear();
    }
    known.insert(new);
}

/// Fails unless the machine has stopped: an error is expected then and only then.
fn stopped(mount: &Mount) -> Result<(), Failure> {
    if mount.stopped() { Ok(()) } else { Err("an error while the disk was working".into()) }
}
