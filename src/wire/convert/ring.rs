//! Layouts, votes and what members tell each other.

use super::{Malformed, id_bytes, node_id, ring_id, sixteen};
use crate::core::ballot::{Ballot, Vote};
use crate::core::collection::Found;
use crate::core::layout::{
    Cell, Kind, Layout, MAX_NAME_BYTES, MAX_WEIGHT, Member, Phase, Replicas, Standing, Table,
};
use crate::core::node::Address;
use crate::core::token::SegmentCount;
use crate::core::transition::{MAX_REMOVALS, Report};
use crate::wire::location as pb;
use prost::Message;
use std::sync::Arc;

/// A ring's kind.
pub fn kind(number: i32) -> Result<Kind, Malformed> {
    match pb::Kind::try_from(number) {
        Ok(pb::Kind::Location) => Ok(Kind::Location),
        Ok(pb::Kind::Store) => Ok(Kind::Store),
        _ => Err(Malformed::Range("the kind of ring")),
    }
}

/// As it is sent.
pub fn kind_to(kind: Kind) -> i32 {
    (match kind {
        Kind::Location => pb::Kind::Location,
        Kind::Store => pb::Kind::Store,
    })
    .into()
}

/// A phase.
pub fn phase(number: i32) -> Result<Phase, Malformed> {
    match pb::Phase::try_from(number) {
        Ok(pb::Phase::Stable) => Ok(Phase::Stable),
        Ok(pb::Phase::Dual) => Ok(Phase::Dual),
        Ok(pb::Phase::ReadNew) => Ok(Phase::ReadNew),
        _ => Err(Malformed::Range("the phase")),
    }
}

/// As it is sent.
pub fn phase_to(phase: Phase) -> i32 {
    (match phase {
        Phase::Stable => pb::Phase::Stable,
        Phase::Dual => pb::Phase::Dual,
        Phase::ReadNew => pb::Phase::ReadNew,
    })
    .into()
}

/// A member.
pub fn member(member: pb::Member) -> Result<Member, Malformed> {
    if member.zone.len() > MAX_NAME_BYTES {
        return Err(Malformed::Range("the length of a zone's name"));
    }
    if member.weight > MAX_WEIGHT {
        return Err(Malformed::Range("a member's weight"));
    }
    Ok(Member {
        id: node_id(&member.id)?,
        address: member
            .address
            .parse::<Address>()
            .map_err(|_error| Malformed::Range("a member's address"))?,
        zone: member.zone,
        weight: member.weight,
        durable: member.durable,
        standing: match pb::Standing::try_from(member.standing) {
            Ok(pb::Standing::Joining) => Standing::Joining,
            Ok(pb::Standing::Leaving) => Standing::Leaving,
            _ => Standing::Staying,
        },
    })
}

/// As it is sent.
pub fn member_to(member: &Member) -> pb::Member {
    pb::Member {
        id: id_bytes(member.id.0),
        address: member.address.to_string(),
        zone: member.zone.clone(),
        weight: member.weight,
        durable: member.durable,
        standing: (match member.standing {
            Standing::Staying => pb::Standing::Staying,
            Standing::Joining => pb::Standing::Joining,
            Standing::Leaving => pb::Standing::Leaving,
        })
        .into(),
    }
}

/// 0 stands for "every member".
pub fn replicas(number: u32) -> Result<Replicas, Malformed> {
    match u16::try_from(number) {
        Ok(0) => Ok(Replicas::All),
        Ok(count) => Ok(Replicas::Count(count)),
        Err(_) => Err(Malformed::Range("the number of replicas")),
    }
}

/// 0 stands for "every member".
pub fn replicas_to(replicas: Replicas) -> u32 {
    match replicas {
        Replicas::All => 0,
        Replicas::Count(count) => count.into(),
    }
}

fn table_to<'a>(rows: impl Iterator<Item = &'a [Cell]> + Clone, members: usize) -> pb::Table {
    let stride = rows.clone().map(<[Cell]>::len).max().unwrap_or(0);
    let mut table = pb::Table { stride: stride as u32, owners: Vec::new(), acquired: Vec::new() };
    for row in rows {
        for at in 0..stride {
            table.owners.push(row.get(at).map_or(members as u32, |cell| cell.member.into()));
            table.acquired.push(row.get(at).map_or(0, |cell| cell.acquired));
        }
    }
    table
}

fn rows(table: &pb::Table, members: usize) -> Result<Vec<Vec<Cell>>, Malformed> {
    let stride = table.stride as usize;
    let fits =
        stride > 0 && table.owners.len() == table.acquired.len() && table.owners.len().is_multiple_of(stride);
    if !fits {
        return Err(Malformed::Range("a table's size"));
    }
    let owners = table.owners.chunks_exact(stride).zip(table.acquired.chunks_exact(stride));
    let row = |(owners, acquired): (&[u32], &[u64])| {
        let cells = owners.iter().zip(acquired).take_while(|(owner, _)| **owner != members as u32);
        cells
            .map(|(owner, acquired)| {
                let member = u16::try_from(*owner).map_err(|_error| Malformed::Range("an owner's index"))?;
                Ok(Cell { member, acquired: *acquired })
            })
            .collect()
    };
    owners.map(row).collect()
}

/// A layout, with everything checked that the rest of the program relies on.
pub fn layout(layout: pb::Layout) -> Result<Layout, Malformed> {
    let count = layout.members.len();
    let current = rows(&layout.current.ok_or(Malformed::Missing("the table"))?, count)?;
    let phase = phase(layout.phase)?;
    let next = match layout.next {
        None if phase == Phase::Stable => None,
        changes => {
            let changes = changes.unwrap_or_default();
            let mut next = current.clone();
            if let Some(table) = &changes.rows {
                let changed = rows(table, count)?;
                if changed.len() != changes.segments.len() {
                    return Err(Malformed::Range("a table's changes"));
                }
                for (segment, row) in changes.segments.iter().zip(changed) {
                    *next.get_mut(*segment as usize).ok_or(Malformed::Range("a changed segment"))? = row;
                }
            }
            Some(Table::new(next))
        }
    };
    let layout = Layout {
        ring: ring_id(&layout.ring_id)?,
        former: layout.former_ring_ids.iter().map(|id| ring_id(id)).collect::<Result<_, _>>()?,
        name: layout.ring_name,
        kind: kind(layout.kind)?,
        epoch: layout.epoch,
        replicas: replicas(layout.replicas)?,
        segments: SegmentCount::new(layout.segments.into())
            .map_err(|_error| Malformed::Range("the number of segments"))?,
        members: layout.members.into_iter().map(member).collect::<Result<_, _>>()?,
        phase,
        current: Table::new(current),
        next,
        collected: layout.collected,
    };
    layout.validate()?;
    Ok(layout)
}

/// As it is sent: the next table as its difference from the current one.
pub fn layout_to(layout: &Layout) -> pb::Layout {
    let count = layout.members.len();
    let next = layout.next.as_ref().map(|next| {
        let pairs = layout.current.rows().zip(next.rows()).enumerate();
        let changed: Vec<(usize, &[Cell])> =
            pairs.filter(|(_, (a, b))| a != b).map(|(segment, (_, row))| (segment, row)).collect();
        pb::TableChanges {
            segments: changed.iter().map(|(segment, _)| *segment as u32).collect(),
            rows: (!changed.is_empty()).then(|| table_to(changed.iter().map(|(_, row)| *row), count)),
        }
    });
    pb::Layout {
        ring_id: id_bytes(layout.ring.0),
        former_ring_ids: layout.former.iter().map(|ring| id_bytes(ring.0)).collect(),
        ring_name: layout.name.clone(),
        kind: kind_to(layout.kind),
        epoch: layout.epoch,
        replicas: replicas_to(layout.replicas),
        segments: layout.segments.get() as u32,
        members: layout.members.iter().map(member_to).collect(),
        phase: phase_to(layout.phase),
        current: Some(table_to(layout.current.rows(), count)),
        next,
        collected: layout.collected,
    }
}

/// A layout as bytes, for the node's own state.
pub fn layout_bytes(layout: &Layout) -> Vec<u8> {
    layout_to(layout).encode_to_vec()
}

/// A layout from bytes.
pub fn layout_from_bytes(bytes: &[u8]) -> Result<Layout, Malformed> {
    layout(pb::Layout::decode(bytes).map_err(|_error| Malformed::Protobuf)?)
}

/// A ballot; absent is the lowest.
pub fn ballot(ballot: Option<pb::Ballot>) -> Result<Ballot, Malformed> {
    match ballot {
        Some(ballot) => Ok(Ballot { round: ballot.round, node: sixteen(&ballot.node, "a ballot's node")? }),
        None => Ok(Ballot::default()),
    }
}

/// As it is sent.
pub fn ballot_to(ballot: Ballot) -> pb::Ballot {
    pb::Ballot { round: ballot.round, node: id_bytes(ballot.node) }
}

/// What a voter accepted last.
pub fn accepted(accepted: Option<pb::AcceptedProposal>) -> Result<Option<(Ballot, Arc<Layout>)>, Malformed> {
    let Some(accepted) = accepted else { return Ok(None) };
    let proposed = accepted.layout.ok_or(Malformed::Missing("the accepted layout"))?;
    Ok(Some((ballot(accepted.ballot)?, Arc::new(layout(proposed)?))))
}

/// As it is sent.
pub fn accepted_to(accepted: &Option<(Ballot, Arc<Layout>)>) -> Option<pb::AcceptedProposal> {
    accepted.as_ref().map(|(ballot, layout)| pb::AcceptedProposal {
        ballot: Some(ballot_to(*ballot)),
        layout: Some(layout_to(layout)),
    })
}

/// A voter's memory about the epoch `target`, as bytes for the node's own state.
pub fn vote_bytes(target: u64, vote: &Vote<Arc<Layout>>) -> Vec<u8> {
    // The promised ballot and the target travel in a request of the first phase, the rest as the
    // answer to it: no message of its own is needed.
    let prepare = pb::PrepareRequest { target, ballot: Some(ballot_to(vote.promised)), ..Default::default() };
    let promise = pb::Promise { accepted: accepted_to(&vote.accepted), down: Vec::new() };
    let mut bytes = prepare.encode_length_delimited_to_vec();
    bytes.extend(promise.encode_length_delimited_to_vec());
    bytes
}

/// The reverse of [`vote_bytes`]: the target, and the memory about it.
pub fn vote_from_bytes(mut bytes: &[u8]) -> Result<(u64, Vote<Arc<Layout>>), Malformed> {
    let prepare =
        pb::PrepareRequest::decode_length_delimited(&mut bytes).map_err(|_error| Malformed::Protobuf)?;
    let promise = pb::Promise::decode_length_delimited(&mut bytes).map_err(|_error| Malformed::Protobuf)?;
    let vote = Vote { promised: ballot(prepare.ballot)?, accepted: accepted(promise.accepted)? };
    Ok((prepare.target, vote))
}

/// A report to the claimant.
pub fn report(report: pb::Report) -> Result<Report, Malformed> {
    let pb::Report { installed, synced, failed, progress, leaving, removals, found } = report;
    if removals.len() > MAX_REMOVALS {
        return Err(Malformed::Range("the number of removals"));
    }
    let removals = removals.iter().map(|id| node_id(id)).collect::<Result<_, _>>()?;
    let found = match pb::Found::try_from(found) {
        Ok(pb::Found::Nothing) => Found::Nothing,
        Ok(pb::Found::All) => Found::All,
        Ok(pb::Found::Full) => Found::Full,
        Err(_) => return Err(Malformed::Range("what was found")),
    };
    Ok(Report { installed, synced, failed, progress, leaving, removals, found })
}

/// As it is sent.
pub fn report_to(report: Report) -> pb::Report {
    let Report { installed, synced, failed, progress, leaving, removals, found } = report;
    let removals = removals.into_iter().map(|id| id_bytes(id.0)).collect();
    let found = match found {
        Found::Nothing => pb::Found::Nothing,
        Found::All => pb::Found::All,
        Found::Full => pb::Found::Full,
    };
    pb::Report { installed, synced, failed, progress, leaving, removals, found: found.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::{member as some_member, ring_of};
    use crate::core::node::{NodeId, RingId};
    use std::collections::BTreeSet;

    fn every_phase() -> Vec<Layout> {
        let ring = ring_of(5, 3, 64);
        let dual = ring.dual(&[some_member(9)], &BTreeSet::from([NodeId(2)])).unwrap();
        let forced = ring.forced(RingId(7), &BTreeSet::from([NodeId(1), NodeId(2)])).unwrap();
        vec![dual.read_new(), dual.aborted(), dual.read_new().settled(), dual, ring, forced]
    }

    #[test]
    fn a_layout_survives_the_wire_in_every_phase() {
        for before in every_phase() {
            assert_eq!(layout_from_bytes(&layout_bytes(&before)), Ok(before));
        }
    }

    #[test]
    fn a_vote_survives_the_disk() {
        let proposed = Arc::new(ring_of(3, 3, 8));
        let vote = Vote {
            promised: Ballot::new(4, NodeId(1)),
            accepted: Some((Ballot::new(3, NodeId(2)), proposed)),
        };
        assert_eq!(vote_from_bytes(&vote_bytes(9, &vote)), Ok((9, vote)));
        assert_eq!(vote_from_bytes(&vote_bytes(1, &Vote::default())), Ok((1, Vote::default())));
    }

    #[test]
    fn broken_bytes_are_refused_and_never_panic() {
        let good = layout_bytes(&every_phase()[0]);
        for cut in 0..good.len() {
            let _ = layout_from_bytes(&good[..cut]);
            let mut flipped = good.clone();
            flipped[cut] ^= 0x55;
            if let Ok(layout) = layout_from_bytes(&flipped) {
                layout.validate().unwrap();
            }
            let _ = vote_from_bytes(&flipped);
        }
        assert!(layout_from_bytes(b"").is_err());
    }

    #[test]
    fn a_big_layout_fits_in_a_mebibyte() {
        let members: Vec<Member> = (1..=3000).map(some_member).collect();
        let segments = SegmentCount::new(65536).unwrap();
        let first = Layout::first(
            RingId(1),
            "r".into(),
            Kind::Store,
            Replicas::Count(3),
            segments,
            members[0].clone(),
        );
        let rows = (0..65536u32).map(|s| {
            (0..3).map(|i| Cell { member: ((s * 7 + i * 997) % 3000) as u16, acquired: 10_000 }).collect()
        });
        let layout = Layout { members, current: Table::new(rows.collect()), epoch: 10_000, ..first };
        layout.validate().unwrap();
        assert!(layout_bytes(&layout).len() <= 1 << 20, "{}", layout_bytes(&layout).len());
    }
}
