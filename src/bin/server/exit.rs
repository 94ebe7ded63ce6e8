//! The exit codes of a server that could not go on, out of the same table as the tools': 2 wrong
//! usage (which the reading of the command line sees to), 3 unavailable, 4 conflict.

use super::place::PlaceError;
use thrifty::location::LocationError;
use thrifty::node::NodeError;
use thrifty::storage::StorageError;
use thrifty::storage::data_dir::DataDirError;

/// What is needed can't be had now: a port, a directory, the disk. It may work later.
const UNAVAILABLE: u8 = 3;

/// What is there is another's, or of another make: it will be the same again.
const CONFLICT: u8 = 4;

/// The exit code for why a server ended.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(known).unwrap_or(UNAVAILABLE)
}

fn known(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<PlaceError>() {
        return Some(match error {
            PlaceError::InUse(_)
            | PlaceError::GateInUse(_)
            | PlaceError::Unbound { .. }
            | PlaceError::NoPort => UNAVAILABLE,
            PlaceError::OtherKind { .. } | PlaceError::OtherRing { .. } | PlaceError::Sound { .. } => {
                CONFLICT
            }
        });
    }
    if let Some(error) = cause.downcast_ref::<DataDirError>() {
        return Some(match error {
            DataDirError::Foreign { .. } | DataDirError::TooNew { .. } | DataDirError::Damaged { .. } => {
                CONFLICT
            }
            _ => UNAVAILABLE,
        });
    }
    match cause.downcast_ref::<NodeError>() {
        Some(NodeError::Location(error)) => Some(of_location(error)),
        Some(NodeError::Storage(_) | NodeError::Housekeeping(_) | NodeError::Serve(_)) => Some(UNAVAILABLE),
        None => cause.downcast_ref().map(of_location).or_else(|| cause.downcast_ref().map(of_storage)),
    }
}

fn of_location(error: &LocationError) -> u8 {
    match error {
        LocationError::TwoRings { .. } | LocationError::Refused(_) | LocationError::Damaged(_) => CONFLICT,
        LocationError::Lan(_) => UNAVAILABLE,
        LocationError::Storage(error) => of_storage(error),
    }
}

fn of_storage(error: &StorageError) -> u8 {
    match error {
        StorageError::Corrupt { .. } | StorageError::Foreign { .. } => CONFLICT,
        _ => UNAVAILABLE,
    }
}
