//! Finding a ring, or finding that there is none.
//!
//! A node binds, serves, and only then looks, so that of any two that start at once at least one
//! sees the other. A seeker makes a ring only if it met no member, no lower seeker, and no lower
//! seeker met *it*: of all that seek at once, exactly the one with the lowest address does.
//!
//! Who was told whom to ask asks on: those whom these were told to ask or were asked by, and so forth. It makes
//! a ring only if all of them seek, and has then asked each of them itself. So nodes that were told of each other
//! in a chain or a circle become one ring, and one that nobody finds holds up those who were told of it.
//!
//! Whom it asks is what it was told, what it remembers, and the loopback ports or the [`lan`](super::lan).

use super::lan::{Lan, Listener};
use super::{Location, LocationConfig, LocationError, Shared, Stage};
use crate::core::layout::Kind;
use crate::core::node::Address;
use crate::news;
use crate::wire::channel;
use crate::wire::convert;
use crate::wire::location::{self as pb, ProbeRequest, ProbeResponse};
use bytes::Bytes;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Nodes that are asked at the most, by who was told whom to ask.
const MAX_ASKED: usize = 64;

/// How often a seeker that has to wait for another looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// For how long a probe by another seeker counts: some of its rounds.
const SEEKER_FORGET: Duration = Duration::from_secs(3);

/// After how long, and then how often, a person is told what the node waits for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What a look around comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Members of the ring: ask one of them to be taken in.
    Ring(Vec<Address>),
    /// Nobody: make a ring.
    Nobody,
    /// Somebody who will make a ring, or is being taken in.
    Wait(String),
}

/// Seekers are ordered by host, then by port as a number.
fn rank(address: &Address) -> (String, u16) {
    let text = address.as_str();
    (text.rsplit_once(':').map_or(text, |(host, _)| host).to_owned(), address.port())
}

/// Who is looking, and how.
#[derive(Debug)]
pub struct Seeker<'a> {
    /// Where it listens.
    pub me: &'a Address,
    /// The ring's name.
    pub ring_name: &'a str,
    /// Its kind.
    pub kind: Kind,
    /// The ring's id, where it is known: then no other will do, and none is made.
    pub ring_id: Option<Bytes>,
    /// Other seekers that probed it lately.
    pub probed_by: Vec<Address>,
    /// Of the nodes that it was told to ask, and those it was led to by them, those that did not say that they
    /// seek.
    pub missing: &'a [Address],
    /// What it has to wait for before silence means that there is nobody.
    pub unheard: Option<&'static str>,
}

/// Decides by the answers to one round of probes.
pub fn decide(seeker: &Seeker, answers: &[ProbeResponse]) -> Result<Found, LocationError> {
    let ours =
        |a: &&ProbeResponse| a.ring_name == seeker.ring_name && a.kind == convert::kind_to(seeker.kind);
    let answers: Vec<(&ProbeResponse, Address)> =
        answers.iter().filter(ours).filter_map(|a| Some((a, a.address.parse().ok()?))).collect();
    let of_stage = |stage| answers.iter().filter(move |(a, _)| a.stage() == stage);
    let known = |a: &ProbeResponse| {
        seeker.ring_id.as_ref().is_none_or(|id| *id == a.ring_id || a.former_ring_ids.contains(id))
    };
    // Whoever has missed a forced removal will follow the others soon.
    let succeeded = |a: &ProbeResponse| answers.iter().any(|(b, _)| b.former_ring_ids.contains(&a.ring_id));
    let members: Vec<_> = of_stage(pb::Stage::Member).filter(|(a, _)| known(a) && !succeeded(a)).collect();
    if let Some((first, at)) = members.first() {
        if let Some((second, other)) = members.iter().find(|(a, _)| a.ring_id != first.ring_id) {
            let hex = |id: &[u8]| convert::ring_id(id).map(|id| format!("{id:.8}")).unwrap_or_default();
            return Err(LocationError::TwoRings {
                name: seeker.ring_name.to_owned(),
                first: at.clone(),
                first_id: hex(&first.ring_id),
                second: other.clone(),
                second_id: hex(&second.ring_id),
            });
        }
        return Ok(Found::Ring(members.iter().map(|(_, at)| at.clone()).collect()));
    }
    if seeker.ring_id.is_some() {
        let ring = seeker.ring_name;
        return Ok(Found::Wait(format!("the members of ring {ring}, of which this node was one")));
    }
    if let Some((_, at)) = of_stage(pb::Stage::Waiting).next() {
        return Ok(Found::Wait(format!("the node at {at}, which is being taken in")));
    }
    let seekers: Vec<&Address> =
        of_stage(pb::Stage::Seeking).map(|(_, at)| at).filter(|at| *at != seeker.me).collect();
    let lower = seekers.iter().copied().chain(&seeker.probed_by).find(|at| rank(at) < rank(seeker.me));
    if let Some(at) = lower {
        return Ok(Found::Wait(format!("the node at {at}, which starts the ring")));
    }
    if !seeker.missing.is_empty() {
        let missing: Vec<&str> = seeker.missing.iter().map(Address::as_str).collect();
        let missing = missing.join(", ");
        return Ok(Found::Wait(format!(
            "a member of ring {} at {missing}, given with --peer",
            seeker.ring_name
        )));
    }
    Ok(seeker.unheard.map_or(Found::Nobody, |what| Found::Wait(what.to_owned())))
}

/// Looks until there is a ring to join, or one to be made (`None`).
pub(super) async fn seek(
    location: &Location,
    lan: Option<&Lan>,
    ring_id: Option<Bytes>,
    hints: &[Address],
) -> Result<Option<Vec<Address>>, LocationError> {
    let shared = &location.shared;
    let config = &shared.config;
    if config.bootstrap && ring_id.is_none() {
        return Ok(None);
    }
    let told: Vec<Address> = config.peers.iter().filter(|peer| **peer != shared.address).cloned().collect();
    let mut listener =
        lan.map(|lan| Listener::new(Some(lan), config.kind, Some(&config.ring_name))).transpose()?;
    let mut said = Instant::now();
    *shared.asked.lock().unwrap_or_else(PoisonError::into_inner) = told.clone();
    shared.elects.store(ring_id.is_none(), Ordering::Release);
    loop {
        let request = ProbeRequest {
            ring_name: config.ring_name.clone(),
            kind: convert::kind_to(config.kind),
            seeker_address: if ring_id.is_none() { shared.address.to_string() } else { String::new() },
        };
        let (mut answers, missing) = ask_on(shared, &told, &request).await?;
        // Whoever was waited for may have made a ring.
        let probers = probed_by(&mut shared.stage.lock().unwrap_or_else(PoisonError::into_inner));
        answers.extend(ask(&probers, &request).await);
        answers.extend(ask(hints, &request).await);
        let mut unheard = None;
        if let Some(listener) = &mut listener {
            let (whom, wait_for) = listener.hear()?;
            answers.extend(ask(&whom, &request).await);
            unheard = wait_for;
        } else if config.peers.is_empty() {
            let seeker = ring_id.is_none().then_some(&shared.address);
            answers.extend(channel::scan_loopback(config.kind, &config.ring_name, seeker).await);
        }
        // From here to the change of stage nothing may come between: a lower seeker either is
        // noted before, or finds a member.
        let found = {
            let mut stage = shared.stage.lock().unwrap_or_else(PoisonError::into_inner);
            let probed_by = probed_by(&mut stage);
            let seeker = Seeker {
                me: &shared.address,
                ring_name: &config.ring_name,
                kind: config.kind,
                ring_id: ring_id.clone(),
                probed_by,
                missing: &missing,
                unheard,
            };
            let found = decide(&seeker, &answers)?;
            match found {
                Found::Nobody => *stage = Stage::Member,
                Found::Ring(_) => *stage = Stage::Waiting,
                Found::Wait(_) => {}
            }
            found
        };
        match found {
            Found::Nobody => return Ok(None),
            Found::Ring(members) => return Ok(Some(members)),
            Found::Wait(whom) => {
                if said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    news!("waiting for {whom}");
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Who sought and asked this node lately.
fn probed_by(stage: &mut Stage) -> Vec<Address> {
    match stage {
        Stage::Seeking(by) => {
            by.retain(|(_, at)| at.elapsed() < SEEKER_FORGET);
            by.iter().map(|(address, _)| address.clone()).collect()
        }
        Stage::Waiting | Stage::Member => Vec::new(),
    }
}

/// Asks these, and those that seekers among them lead to; with the answers, who gave none or does not seek.
async fn ask_on(
    shared: &Shared,
    told: &[Address],
    request: &ProbeRequest,
) -> Result<(Vec<ProbeResponse>, Vec<Address>), LocationError> {
    let config = &shared.config;
    let (mut answers, mut missing) = (Vec::new(), Vec::new());
    let (mut known, mut next) = (told.to_vec(), told.to_vec());
    known.push(shared.address.clone());
    // Of those alone whom a person named it is a mistake to be in another ring.
    let mut named = true;
    while !next.is_empty() {
        let probes = next.iter().map(|address| channel::probe(address, request.clone()));
        let answered = futures_util::future::join_all(probes).await;
        if named {
            // By the names that they have themselves: others may not find them by the one that was told here.
            let name = |(told, answer): (&Address, &Result<ProbeResponse, _>)| {
                answer.as_ref().ok().and_then(|answer| answer.address.parse().ok()).unwrap_or(told.clone())
            };
            let names = next.iter().zip(&answered).map(name).collect();
            *shared.asked.lock().unwrap_or_else(PoisonError::into_inner) = names;
        }
        for (address, answer) in std::mem::take(&mut next).into_iter().zip(answered) {
            let Ok(answer) = answer else {
                missing.push(address);
                continue;
            };
            let is_ours = answer.ring_name == config.ring_name && answer.kind == request.kind;
            if is_ours && answer.stage() == pb::Stage::Seeking && answer.elects {
                let further = answer.seekers.iter().filter_map(|text| text.parse::<Address>().ok());
                for further in further.take(MAX_ASKED) {
                    if known.contains(&further) {
                        continue;
                    }
                    if known.len() >= MAX_ASKED {
                        missing.push(further);
                        continue;
                    }
                    known.push(further.clone());
                    next.push(further);
                }
            } else {
                missing.push(address);
            }
            answers.push(answer);
        }
        if std::mem::take(&mut named) {
            strangers(config, &answers)?;
        }
    }
    Ok((answers, missing))
}

/// The answers of those who do.
pub(super) async fn ask(whom: &[Address], request: &ProbeRequest) -> Vec<ProbeResponse> {
    let probes = whom.iter().map(|address| channel::probe(address, request.clone()));
    futures_util::future::join_all(probes).await.into_iter().filter_map(Result::ok).collect()
}

/// A node that was named with --peer and is of another ring is a mistake to be told, not waited out.
fn strangers(config: &LocationConfig, answers: &[ProbeResponse]) -> Result<(), LocationError> {
    for answer in answers.iter().filter(|answer| answer.stage() == pb::Stage::Member) {
        if answer.kind != convert::kind_to(config.kind) {
            return Err(LocationError::Refused(format!(
                "the node at {} is of another kind: location nodes and store nodes are never in one ring",
                answer.address
            )));
        }
        if answer.ring_name != config.ring_name {
            return Err(LocationError::Refused(format!(
                "the node at {} is in ring {:?}, not {:?}: give --ring {:?} to join it",
                answer.address, answer.ring_name, config.ring_name, answer.ring_name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        format!("127.0.0.1:{port}").parse().unwrap()
    }

    fn answer(port: u16, stage: pb::Stage, ring: u8) -> ProbeResponse {
        ProbeResponse {
            ring_name: "r".into(),
            kind: convert::kind_to(Kind::Store),
            stage: stage.into(),
            ring_id: Bytes::from(vec![ring; 16]),
            address: at(port).to_string(),
            ..ProbeResponse::default()
        }
    }

    fn decided(answers: &[ProbeResponse], probed_by: &[u16], missing: usize) -> Result<Found, LocationError> {
        let me = at(9910);
        let probed_by = probed_by.iter().map(|port| at(*port)).collect();
        let missing = vec![at(9911); missing];
        decide(
            &Seeker {
                me: &me,
                ring_name: "r",
                kind: Kind::Store,
                ring_id: None,
                probed_by,
                missing: &missing,
                unheard: None,
            },
            answers,
        )
    }

    fn waits(found: Result<Found, LocationError>) -> bool {
        matches!(found, Ok(Found::Wait(_)))
    }

    use pb::Stage::{Member, Seeking, Waiting};

    #[test]
    fn a_member_is_joined_and_nobody_means_a_new_ring() {
        assert_eq!(decided(&[], &[], 0).unwrap(), Found::Nobody);
        let members = decided(&[answer(9900, Seeking, 0), answer(9920, Member, 1)], &[], 0);
        assert_eq!(members.unwrap(), Found::Ring(vec![at(9920)]));
        let others = ProbeResponse { ring_name: "other".into(), ..answer(9901, Member, 1) };
        assert_eq!(decided(&[others], &[], 0).unwrap(), Found::Nobody);
    }

    #[test]
    fn of_seekers_the_lowest_makes_the_ring() {
        assert!(waits(decided(&[answer(9909, Seeking, 0)], &[], 0)));
        assert_eq!(
            decided(&[answer(9911, Seeking, 0), answer(9910, Seeking, 0)], &[], 0).unwrap(),
            Found::Nobody
        );
        assert!(waits(decided(&[], &[9900], 0)), "a lower one has met this one");
        assert_eq!(decided(&[], &[9911, 10000], 0).unwrap(), Found::Nobody);
        assert!(waits(decided(&[answer(9999, Waiting, 0)], &[], 0)));
    }

    #[test]
    fn who_was_told_to_ask_certain_nodes_waits_for_them() {
        assert!(waits(decided(&[], &[], 1)));
        assert!(waits(decided(&[answer(9912, Seeking, 0)], &[], 1)));
        assert_eq!(decided(&[answer(9911, Seeking, 0)], &[], 0).unwrap(), Found::Nobody);
        assert!(waits(decided(&[answer(9905, Seeking, 0)], &[], 0)));
        assert!(waits(decided(&[answer(9911, Seeking, 0)], &[9905], 0)));
    }

    #[test]
    fn silence_means_nobody_only_once_it_was_listened_to() {
        let me = at(9910);
        let seeker = Seeker {
            me: &me,
            ring_name: "r",
            kind: Kind::Store,
            ring_id: None,
            probed_by: Vec::new(),
            missing: &[],
            unheard: Some("announcements"),
        };
        assert_eq!(decide(&seeker, &[]).unwrap(), Found::Wait("announcements".into()));
        assert!(waits(decide(&seeker, &[answer(9911, Seeking, 0)])));
        assert_eq!(decide(&seeker, &[answer(9900, Member, 1)]).unwrap(), Found::Ring(vec![at(9900)]));
    }

    #[test]
    fn two_rings_of_one_name_are_refused_by_both_names() {
        let error =
            decided(&[answer(9900, Member, 1), answer(9901, Member, 2)], &[], 0).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:9900") && error.contains("127.0.0.1:9901"), "{error}");
    }

    #[test]
    fn who_left_a_ring_waits_for_that_one() {
        let me = at(9910);
        let id = Some(Bytes::from(vec![5; 16]));
        let seeker = Seeker {
            me: &me,
            ring_name: "r",
            kind: Kind::Store,
            ring_id: id,
            probed_by: Vec::new(),
            missing: &[],
            unheard: None,
        };
        assert!(waits(decide(&seeker, &[])));
        assert!(waits(decide(&seeker, &[answer(9900, Member, 4)])));
        assert_eq!(decide(&seeker, &[answer(9900, Member, 5)]).unwrap(), Found::Ring(vec![at(9900)]));
        let successor =
            ProbeResponse { former_ring_ids: vec![Bytes::from(vec![5; 16])], ..answer(9901, Member, 6) };
        let both = [answer(9900, Member, 5), successor];
        assert_eq!(decide(&seeker, &both).unwrap(), Found::Ring(vec![at(9901)]));
    }
}
