//! The limit of open files (`RLIMIT_NOFILE`), which is that of connections too: raised, and counted against.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::places::{Room, TooFewFiles};

/// Files besides connections that may be opened while the server runs, such as a collector's sockets.
const OTHERS: usize = 16;
/// What is taken to be open where the system does not tell.
const USUALLY_OPEN: usize = 64;

/// Room for as many connections as `wanted`, or else as are usual. Raises the soft limit of open files as far
/// as they need it and the hard limit lets it.
///
/// # Errors
///
/// Where the limit is too low for what is wanted, or for any server.
pub fn room(wanted: Option<usize>) -> Result<Room, TooFewFiles> {
    let n_taken = n_open().unwrap_or(USUALLY_OPEN) + OTHERS;
    let n_most = Room::within(usize::MAX, wanted)?.n_open();
    let limit = raise_limit(n_taken.saturating_add(n_most));
    let room = Room::within(limit.saturating_sub(n_taken), wanted)?;
    if wanted.is_none() && room.n_open() < n_most {
        tracing::warn!(
            connections = room.places,
            open_files = limit,
            "few connections at a time: the limit of open files is low"
        );
    }
    Ok(room)
}

/// Files this process has open.
fn n_open() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Raises the limit of open files to `wanted` where it is lower and may be; returns what it is then.
fn raise_limit(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(current) = current else {
        return usize::MAX;
    };
    let raised = maximum.map_or(wanted as u64, |most| most.min(wanted as u64));
    if raised <= current {
        return current as usize;
    }
    let limit = Rlimit {
        current: Some(raised),
        maximum,
    };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => raised as usize,
        Err(error) => {
            tracing::debug!(%error, wanted, "the limit of open files stays");
            current as usize
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_as_far_as_it_may_be_and_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        let current = before.current.map_or(usize::MAX, |current| current as usize);
        assert_eq!(raise_limit(1), current, "it is never lowered");
        // As much as there may be, so that other tests in this process have no less.
        let raised = raise_limit(before.maximum.map_or(current, |most| most as usize));
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.maximum, before.maximum);
        assert_eq!(after.current.map_or(usize::MAX, |now| now as usize), raised);
        assert!(raised >= current);
        assert!(n_open().is_ok_and(|n| n > 2), "the standard streams at least");
    }
}
