//! Connection admission: which connections a server holds at a time, and which one makes room when all places
//! are taken.
//!
//! ```text
//! a place is free                          the newcomer takes it
//! somebody waits for their client          that connection is closed, the newcomer takes its place
//! nobody does                              one of the reserved places, for health checks alone
//! all reserved places are taken            the newcomer takes that of the one which waits longest there
//! nobody waits there either                refused
//! ```
//!
//! A connection waits for its client between two requests, while a head or a body is incomplete, and while
//! the client reads nothing of what is sent. One that is being answered waits for nobody and is never closed.
//!
//! Who makes room (`n` counts the connections of an address):
//!
//! * a connection of the newcomer's own address that has waited for [`Patience::idle`] or longer, or any of
//!   an address with `n` greater by 2 or more: an address with many connections takes no place from one with
//!   few, and cannot keep its places by sending a byte now and then;
//! * of these, first those that have waited for [`Patience::idle`], then those of the address with the most
//!   connections, then the one that waits longest.
//!
//! So an address may have all places as long as nobody else wants one, as a proxy or this machine may need.
//! IPv6 addresses count as one by their first 64 bits, which is what one client is given.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::wire::error::ApiError;

/// What reserved places are for: questions that are answered at once, by which others tell whether the server
/// is well.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Connections at a time.
    pub places: usize,
    /// More connections, for health checks alone.
    pub reserved: usize,
}

impl Room {
    /// Connections that end while others take their places.
    const LEAVING: usize = 8;
    /// What most servers need.
    const MOST: usize = 4096;
    /// For probes every second from a few places.
    const RESERVED: usize = 32;
    /// Fewer places serve nobody.
    const LEAST: usize = 8;

    /// Sockets that are open at a time.
    pub fn n_open(self) -> usize {
        self.places + self.reserved + Room::LEAVING
    }

    /// Room for as many connections as `wanted`, or else as are usual, of a process that may open `n_files`
    /// more files. Where nothing is wanted, fewer files make fewer places.
    ///
    /// # Errors
    ///
    /// Where what is wanted, or the least that makes sense, does not fit.
    pub fn within(n_files: usize, wanted: Option<usize>) -> Result<Room, TooFewFiles> {
        let reserved = Room::RESERVED.min(n_files / 8).max(2);
        let fits = n_files.saturating_sub(reserved + Room::LEAVING);
        let least = wanted.unwrap_or(Room::LEAST);
        if fits < least {
            return Err(TooFewFiles {
                n_places: least,
                n_needed: least.saturating_add(reserved + Room::LEAVING),
                n_files,
            });
        }
        Ok(Room {
            places: wanted.unwrap_or(fits.min(Room::MOST)),
            reserved,
        })
    }
}

/// There are too few file handles for the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{n_places} connections need {n_needed} more open files, and the process may have {n_files} more")]
pub struct TooFewFiles {
    n_places: usize,
    n_needed: usize,
    n_files: usize,
}

/// How long clients are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A connection must say what it wants within this time, the first time and after every answer.
    pub header: Duration,
    /// The same on a reserved place.
    pub reserved_header: Duration,
    /// What is sent must make some progress within this time.
    pub write: Duration,
    /// Clients that are waited for as long may have to make room.
    pub idle: Duration,
}

impl Default for Patience {
    /// 60 seconds for a write are what nginx gives (`send_timeout`).
    fn default() -> Self {
        Patience {
            header: Duration::from_secs(30),
            reserved_header: Duration::from_secs(5),
            write: Duration::from_secs(60),
            idle: Duration::from_secs(1),
        }
    }
}

/// Since when a connection waits for its client. The connection writes it, who looks for a place reads it.
#[derive(Debug)]
pub(crate) struct Activity {
    created: Instant,
    to_send: Since,
    to_read: Since,
}

/// Milliseconds after some instant, and one more; 0 for never.
#[derive(Debug, Default)]
struct Since(AtomicU64);

impl Since {
    fn begin(&self, created: Instant) {
        if self.0.load(Ordering::Relaxed) == 0 {
            let millis = created.elapsed().as_millis() as u64;
            self.0.store(millis + 1, Ordering::Relaxed);
        }
    }

    fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn began(&self, created: Instant) -> Option<Instant> {
        let millis = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        Some(created + Duration::from_millis(millis))
    }
}

impl Activity {
    /// Of a connection that waits for its first byte.
    pub(crate) fn new() -> Activity {
        let activity = Activity {
            created: Instant::now(),
            to_send: Since::default(),
            to_read: Since::default(),
        };
        activity.wait_for_sending();
        activity
    }

    /// The client has to send something.
    pub(crate) fn wait_for_sending(&self) {
        self.to_send.begin(self.created);
    }

    /// It sent something.
    pub(crate) fn has_sent(&self) {
        self.to_send.end();
    }

    /// The client has to read something.
    pub(crate) fn wait_for_reading(&self) {
        self.to_read.begin(self.created);
    }

    /// It read something.
    pub(crate) fn has_read(&self) {
        self.to_read.end();
    }

    /// Since when the client is waited for; absent where it is not.
    fn waits_since(&self) -> Option<Instant> {
        let since = [&self.to_send, &self.to_read];
        since.iter().filter_map(|since| since.began(self.created)).min()
    }
}

/// What a connection may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// Everything.
    Open,
    /// What [`require_seat`] lets through, once.
    Reserved,
}

/// A place for a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found<K> {
    pub(crate) seat: Seat,
    /// The connection to be closed for it.
    pub(crate) instead_of: Option<K>,
}

#[derive(Debug)]
struct Occupant {
    address: Address,
    seat: Seat,
    activity: Arc<Activity>,
}

/// What counts as one client: an IPv4 address, or 64 bits of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Address {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Address::V4(address.to_bits()),
            IpAddr::V6(address) => Address::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Who has a place, by some key.
#[derive(Debug)]
pub(crate) struct Places<K> {
    room: Room,
    idle: Duration,
    occupants: HashMap<K, Occupant>,
    /// Occupants of open seats by address; none that is 0.
    n_by_address: HashMap<Address, usize>,
    n_reserved: usize,
}

impl<K: Copy + Eq + Hash> Places<K> {
    pub(crate) fn new(room: Room, idle: Duration) -> Places<K> {
        Places {
            room,
            idle,
            occupants: HashMap::new(),
            n_by_address: HashMap::new(),
            n_reserved: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.occupants.len()
    }

    /// A place for a connection from `address`; absent where there is none.
    pub(crate) fn find(&self, address: IpAddr, now: Instant) -> Option<Found<K>> {
        let found = |seat, instead_of| Some(Found { seat, instead_of });
        if self.len() - self.n_reserved < self.room.places {
            return found(Seat::Open, None);
        }
        if let Some(key) = self.who_makes_room_for(address.into(), now) {
            return found(Seat::Open, Some(key));
        }
        if self.n_reserved < self.room.reserved {
            return found(Seat::Reserved, None);
        }
        let key = self.who_waits_longest(Seat::Reserved)?;
        found(Seat::Reserved, Some(key))
    }

    pub(crate) fn take(&mut self, key: K, address: IpAddr, seat: Seat, activity: Arc<Activity>) {
        let address = Address::from(address);
        match seat {
            Seat::Open => *self.n_by_address.entry(address).or_default() += 1,
            Seat::Reserved => self.n_reserved += 1,
        }
        let occupant = Occupant {
            address,
            seat,
            activity,
        };
        let before = self.occupants.insert(key, occupant);
        assert!(before.is_none(), "a key stands for one connection");
    }

    /// Gives a place back; does nothing where that was done before.
    pub(crate) fn leave(&mut self, key: K) {
        let Some(occupant) = self.occupants.remove(&key) else {
            return;
        };
        match occupant.seat {
            Seat::Reserved => self.n_reserved -= 1,
            Seat::Open => {
                let n = self.n_by_address.get_mut(&occupant.address);
                let n = n.expect("every occupant's address is counted");
                *n -= 1;
                if *n == 0 {
                    self.n_by_address.remove(&occupant.address);
                }
            }
        }
    }

    /// The connection that has waited longest for its client, on a seat of this kind.
    pub(crate) fn who_waits_longest(&self, seat: Seat) -> Option<K> {
        let there = self
            .occupants
            .iter()
            .filter(|(_, occupant)| occupant.seat == seat);
        let waiting = there.filter_map(|(key, occupant)| Some((occupant.activity.waits_since()?, *key)));
        waiting.min_by_key(|(since, _)| *since).map(|(_, key)| key)
    }

    fn who_makes_room_for(&self, newcomer: Address, now: Instant) -> Option<K> {
        let n_own = self.n_by_address.get(&newcomer).copied().unwrap_or(0);
        let candidates = self.occupants.iter().filter_map(|(key, occupant)| {
            let since = match occupant.seat {
                Seat::Open => occupant.activity.waits_since()?,
                Seat::Reserved => return None,
            };
            let n = self.n_by_address[&occupant.address];
            let has_more = n > n_own + 1;
            let waited = now.saturating_duration_since(since);
            let is_idle = waited >= self.idle;
            let may_go = has_more || occupant.address == newcomer && is_idle;
            may_go.then_some((is_idle, n, waited, *key))
        });
        let first = candidates.max_by_key(|(is_idle, n, waited, _)| (*is_idle, *n, *waited));
        first.map(|(_, _, _, key)| key)
    }
}

/// Put into the requests of a connection on a reserved place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnReserved {
    /// Places that are all taken.
    pub(crate) n_places: usize,
}

/// Stands before every route: a connection on a reserved place is for health checks alone.
pub(crate) async fn require_seat(request: Request, next: Next) -> Response {
    match request.extensions().get::<OnReserved>() {
        Some(OnReserved { n_places }) if !PROBES.contains(&request.uri().path()) => {
            ApiError::TooManyConnections { limit: *n_places }.into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(1);

    /// Three places, and two for health checks.
    struct Hall {
        places: Places<u32>,
        now: Instant,
    }

    impl Hall {
        fn new() -> Hall {
            let room = Room {
                places: 3,
                reserved: 2,
            };
            Hall {
                places: Places::new(room, IDLE),
                now: Instant::now() + Duration::from_secs(3600),
            }
        }

        /// Seats connection `key`, which has waited for its client for `waited` seconds, or does not wait.
        fn seat(&mut self, key: u32, address: &str, seat: Seat, waited: Option<u64>) {
            let activity = Activity::new();
            match waited {
                Some(seconds) => {
                    let millis = (self.now - activity.created).as_millis() as u64 - 1000 * seconds;
                    activity.to_send.0.store(millis + 1, Ordering::Relaxed);
                }
                None => activity.has_sent(),
            }
            let address = address.parse().expect("an address");
            self.places.take(key, address, seat, Arc::new(activity));
        }

        fn open(&mut self, key: u32, address: &str, waited: Option<u64>) {
            self.seat(key, address, Seat::Open, waited);
        }

        /// Who gives way to a newcomer, and where that one sits.
        fn find(&self, address: &str) -> Option<(Seat, Option<u32>)> {
            let address = address.parse().expect("an address");
            let found = self.places.find(address, self.now);
            found.map(|found| (found.seat, found.instead_of))
        }
    }

    #[test]
    fn nobody_makes_room_while_a_place_is_free() {
        let mut hall = Hall::new();
        hall.open(1, "10.0.0.1", Some(100));
        hall.open(2, "10.0.0.1", Some(100));
        assert_eq!(hall.find("10.0.0.1"), Some((Seat::Open, None)));
        hall.open(3, "10.0.0.1", Some(100));
        hall.places.leave(2);
        hall.places.leave(2);
        assert_eq!(hall.find("10.0.0.1"), Some((Seat::Open, None)));
        assert_eq!(hall.places.len(), 2);
    }

    #[test]
    fn of_one_address_the_connection_that_waits_longest_makes_room() {
        let mut hall = Hall::new();
        hall.open(1, "10.0.0.1", Some(5));
        hall.open(2, "10.0.0.1", Some(50));
        hall.open(3, "10.0.0.1", None);
        assert_eq!(hall.find("10.0.0.1"), Some((Seat::Open, Some(2))));
        hall.places.leave(2);
        hall.open(4, "10.0.0.1", Some(0));
        assert_eq!(hall.find("10.0.0.1"), Some((Seat::Open, Some(1))));
        hall.places.leave(1);
        hall.open(5, "10.0.0.1", None);
        // The one that waits has only just begun to.
        assert_eq!(hall.find("10.0.0.1"), Some((Seat::Reserved, None)));
    }

    #[test]
    fn an_address_with_many_connections_makes_room_for_one_with_few_and_not_the_other_way_round() {
        let mut hall = Hall::new();
        hall.open(1, "10.0.0.1", Some(0));
        hall.open(2, "10.0.0.1", Some(0));
        hall.open(3, "10.0.0.2", Some(50));
        // Though it has only just begun to wait: it may be sending a byte now and then.
        let first = hall.find("10.0.0.3").expect("a place");
        assert!(matches!(first, (Seat::Open, Some(1 | 2))), "{first:?}");
        // It has as many as the newcomer's address would have, and its own waits too shortly.
        assert_eq!(hall.find("10.0.0.1"), Some((Seat::Reserved, None)));
        // One that has no more than others changes only its own.
        assert_eq!(hall.find("10.0.0.2"), Some((Seat::Open, Some(3))));
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one_and_mapped_ones_as_ipv4() {
        let mut hall = Hall::new();
        hall.open(1, "2001:db8:0:1::1", Some(0));
        hall.open(2, "2001:db8:0:1::2", Some(0));
        hall.open(3, "2001:db8:0:2::1", Some(0));
        let first = hall.find("2001:db8:0:3::1").expect("a place");
        assert!(matches!(first, (Seat::Open, Some(1 | 2))), "{first:?}");
        let mapped = Address::from("::ffff:10.0.0.1".parse::<IpAddr>().expect("an address"));
        let plain = Address::from("10.0.0.1".parse::<IpAddr>().expect("an address"));
        assert_eq!(mapped, plain);
    }

    #[test]
    fn reserved_places_are_for_when_nobody_can_make_room_and_pass_on_among_themselves() {
        let mut hall = Hall::new();
        for key in 1..=3 {
            hall.open(key, "10.0.0.1", None);
        }
        assert_eq!(hall.find("10.0.0.2"), Some((Seat::Reserved, None)));
        hall.seat(4, "10.0.0.2", Seat::Reserved, Some(1));
        hall.seat(5, "10.0.0.3", Seat::Reserved, Some(2));
        assert_eq!(hall.find("10.0.0.2"), Some((Seat::Reserved, Some(5))));
        hall.places.leave(4);
        hall.places.leave(5);
        hall.seat(6, "10.0.0.2", Seat::Reserved, None);
        hall.seat(7, "10.0.0.2", Seat::Reserved, None);
        assert_eq!(hall.find("10.0.0.4"), None);
        hall.places.leave(3);
        assert_eq!(hall.find("10.0.0.4"), Some((Seat::Open, None)));
    }

    #[test]
    fn a_wait_begins_once_and_ends_when_the_client_does_something() {
        let activity = Activity::new();
        assert_eq!(
            activity.waits_since(),
            Some(activity.created),
            "for its first byte"
        );
        activity.has_sent();
        assert_eq!(activity.waits_since(), None);
        activity.wait_for_reading();
        let since = activity.waits_since();
        assert!(since.is_some());
        activity.wait_for_reading();
        activity.wait_for_sending();
        assert_eq!(activity.waits_since(), since, "it still reads nothing");
        activity.has_read();
        activity.has_sent();
        assert_eq!(activity.waits_since(), None);
    }

    #[test]
    fn few_files_make_few_places_unless_more_are_wanted() {
        let room = |n_files, wanted| Room::within(n_files, wanted);
        let usual = room(1 << 20, None).expect("room");
        assert_eq!((usual.places, usual.reserved), (4096, 32));
        for n_files in [18, 64, 200, 1000, 4136] {
            let room = room(n_files, None).expect("room");
            assert!(
                room.n_open() <= n_files && room.places >= 8 && room.reserved >= 2,
                "{room:?}"
            );
            assert!(room.n_open() + 1 >= n_files, "no file is left over: {room:?}");
        }
        let exact = room(10_040, Some(10_000)).expect("room");
        assert_eq!((exact.places, exact.n_open()), (10_000, 10_040));
        let error = room(10_039, Some(10_000)).expect_err("one file too few");
        let message = "10000 connections need 10040 more open files, and the process may have 10039 more";
        assert_eq!(error.to_string(), message);
        let error = room(17, None).expect_err("no server");
        let message = "8 connections need 18 more open files, and the process may have 17 more";
        assert_eq!(error.to_string(), message);
    }
}
