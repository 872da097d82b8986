//! Admission of request bodies: memory and processor time that a request may take before it has a place in
//! the engine's queue.
//!
//! ```text
//! received   bytes of bodies, taken as they arrive, shared by the API keys; beyond: 429
//!   small    parsed, rendered and tokenized where it arrived
//!   large    waits for memory, then for a turn: parsed on a worker thread; another turn: tokenized
//! submitted  what the body took is given back; the engine's queue has limits of its own
//! ```
//!
//! Invariants: received bytes and estimated memory of large bodies never exceed their limits, whatever the
//! number of connections; whoever holds a turn waits for nothing; of each tenant one large body at a time
//! stands in the line for memory, and one in the line for turns, so a tenant that sends many delays another
//! by one of its own.
//!
//! What a large body takes is estimated before it is parsed, from its length and an upper bound on the JSON
//! values in it, which are counted as it arrives; those in strings too that may be JSON themselves, as the
//! arguments of earlier calls are.

use std::sync::Arc;
use std::time::Duration;

use arbora_runtime::fair_limit::{FairLimit, Taken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::wire::error::ApiError;
use crate::workers::Workers;

/// Bodies up to this many bytes are parsed and tokenized where they arrive: that takes less than a switch of
/// threads is worth.
const SMALL: usize = 16 << 10;
/// Copies of its text that a request has at most, from the body to the tokens: values, messages, what the
/// template reads, what it writes, and what is marked in it.
const COPIES: usize = 6;
/// Memory of a JSON value and the growth of the list that holds it, in bytes.
const VALUE_BYTES: usize = 192;
/// The memory for large bodies is counted in units of this many bytes.
const UNIT: usize = 1 << 10;
/// Large bodies that are parsed or tokenized at a time: one that takes long does not keep all others waiting.
const N_TURNS: usize = 2;
/// When to come back if too much was received.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How much bodies may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeLimits {
    /// Largest body in bytes.
    pub body: usize,
    /// Memory for all bodies together, in bytes: a third for what was received, the rest for what is made of
    /// it.
    pub memory: usize,
}

impl IntakeLimits {
    /// The memory that bodies of at most `body` bytes need, at least: a text of this length can be read.
    pub fn least_memory(body: usize) -> usize {
        body.saturating_mul(COPIES) / 2 * 3
    }

    fn received(&self) -> usize {
        self.memory / 3
    }

    fn made(&self) -> usize {
        self.memory - self.received()
    }
}

/// The one intake of a server.
#[derive(Debug)]
pub struct Intake {
    limits: IntakeLimits,
    received: Arc<FairLimit>,
    made: Line,
    turns: Line,
    workers: Workers,
}

/// A semaphore at which of each tenant only the first one waits.
#[derive(Debug)]
struct Line {
    free: Arc<Semaphore>,
    heads: Box<[Semaphore]>,
}

impl Line {
    fn new(n: usize, n_tenants: usize) -> Line {
        Line {
            free: Arc::new(Semaphore::new(n)),
            heads: (0..n_tenants).map(|_| Semaphore::new(1)).collect(),
        }
    }

    /// Both semaphores serve in the order of arrival.
    async fn take(&self, tenant: usize, n: u32) -> OwnedSemaphorePermit {
        let head = self.heads[tenant].acquire().await;
        let taken = Arc::clone(&self.free).acquire_many_owned(n).await;
        drop(head);
        taken.expect("the semaphore is never closed")
    }
}

impl Intake {
    /// Nothing received yet, for `n_tenants`; `workers` do what is not done where it arrived.
    ///
    /// # Panics
    /// Where the memory is less than the largest body needs, or nobody is let in.
    pub fn new(limits: IntakeLimits, n_tenants: usize, workers: Workers) -> Intake {
        assert!(
            IntakeLimits::least_memory(limits.body) <= limits.memory,
            "{limits:?}"
        );
        let what = "bytes of request bodies";
        Intake {
            limits,
            received: Arc::new(FairLimit::new(what, limits.received(), n_tenants)),
            made: Line::new(limits.made() / UNIT, n_tenants),
            turns: Line::new(N_TURNS, n_tenants),
            workers,
        }
    }

    /// Largest body in bytes.
    pub fn body_limit(&self) -> usize {
        self.limits.body
    }

    /// Bytes of bodies that are held.
    pub fn n_received(&self) -> usize {
        self.received.n_taken()
    }

    /// A body of `tenant` of which nothing has arrived.
    pub fn open(&self, tenant: usize) -> Arrival {
        Arrival {
            tenant,
            received: Arc::clone(&self.received),
            taken: Vec::new(),
            n_bytes: 0,
            values: ValueCounter::default(),
        }
    }

    /// Waits until there is memory for what is made of a body that has arrived.
    ///
    /// # Errors
    /// Where its values need more than there ever is.
    pub async fn admit(&self, arrival: Arrival) -> Result<Admitted, ApiError> {
        let n_values = arrival.values.n;
        let text = arrival.n_bytes * COPIES;
        let n_units = (text + n_values * VALUE_BYTES).div_ceil(UNIT);
        if n_units * UNIT > self.limits.made() {
            let limit = (self.limits.made() - text) / VALUE_BYTES;
            return Err(ApiError::TooManyValues { n_values, limit });
        }
        let size = match text + n_values * VALUE_BYTES {
            size if size <= SMALL * COPIES => Size::Small,
            _ => Size::Large,
        };
        let made = match size {
            Size::Small => None,
            Size::Large => Some(self.made.take(arrival.tenant, n_units as u32).await),
        };
        Ok(Admitted {
            size,
            arrival,
            _made: made,
        })
    }

    /// Runs `work` on what was admitted: here where that is small, otherwise on a worker thread, when it is
    /// its turn.
    ///
    /// # Errors
    /// Where the work panics, or finds no thread.
    pub async fn run<T: Send + 'static>(
        &self,
        admitted: &Admitted,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if admitted.size == Size::Small {
            return Ok(work());
        }
        self.run_aside(admitted.arrival.tenant, work).await
    }

    /// Runs `work` of `tenant` on a worker thread, when it is its turn.
    ///
    /// # Errors
    /// As for [`Intake::run`].
    pub async fn run_aside<T: Send + 'static>(
        &self,
        tenant: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.turns.take(tenant, 1).await;
        let working = self.workers.run(move || {
            let worked = work();
            drop(turn);
            worked
        });
        Ok(working.await?)
    }
}

/// A body on its way in. What it took is given back when this is dropped.
#[derive(Debug)]
pub struct Arrival {
    tenant: usize,
    received: Arc<FairLimit>,
    taken: Vec<Taken>,
    n_bytes: usize,
    values: ValueCounter,
}

impl Arrival {
    /// Takes what `chunk` needs.
    ///
    /// # Errors
    /// Where too much is held already.
    pub fn take(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let taken = self.received.take(self.tenant, chunk.len());
        let taken = taken.map_err(|no_room| ApiError::QueueFull {
            no_room,
            retry_after: RETRY_AFTER,
        })?;
        self.taken.push(taken);
        self.n_bytes += chunk.len();
        self.values.read(chunk);
        Ok(())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        for taken in self.taken.drain(..) {
            self.received.give_back(self.tenant, taken);
        }
    }
}

/// A body that there is memory for, until this is dropped.
#[derive(Debug)]
pub struct Admitted {
    size: Size,
    arrival: Arrival,
    _made: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

/// Counts the values of a JSON text that comes in parts, at most one too many for each list and object, and
/// those of texts in it that look like JSON.
#[derive(Debug)]
struct ValueCounter {
    n: usize,
    place: Place,
}

/// Where in a JSON text the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Outside,
    /// Behind the quote that opens a string.
    Opened,
    InString,
    /// Behind a backslash.
    Escaped,
    /// In a string that may be JSON: within it, what would be strings is not told from what would not.
    InJson,
    EscapedInJson,
}

impl Default for ValueCounter {
    fn default() -> Self {
        ValueCounter {
            n: 1,
            place: Place::Outside,
        }
    }
}

impl ValueCounter {
    fn read(&mut self, text: &[u8]) {
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            at += 1;
            self.place = match (self.place, byte) {
                (Place::Outside, b'"') => Place::Opened,
                (Place::Outside, byte) => {
                    self.n += usize::from(begins_value(byte));
                    Place::Outside
                }
                (Place::Escaped, _) => Place::InString,
                (Place::EscapedInJson, _) => Place::InJson,
                (Place::Opened | Place::InString | Place::InJson, b'"') => Place::Outside,
                (Place::Opened | Place::InJson, b'\\') => Place::EscapedInJson,
                (Place::InJson, byte) | (Place::Opened, byte @ (b'[' | b'{' | b' ')) => {
                    self.n += usize::from(begins_value(byte));
                    Place::InJson
                }
                (Place::InString, b'\\') => Place::Escaped,
                (Place::Opened | Place::InString, _) => {
                    let ends = memchr::memchr2(b'"', b'\\', &text[at..]);
                    at = ends.map_or(text.len(), |end| at + end);
                    Place::InString
                }
            };
        }
    }
}

/// Whether a value, or a list or object whose first value it is, follows the byte.
fn begins_value(byte: u8) -> bool {
    matches!(byte, b',' | b'[' | b'{')
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::Value;

    use super::*;

    const LIMITS: IntakeLimits = IntakeLimits {
        body: 100_000,
        memory: 3_000_000,
    };

    fn intake(n_tenants: usize) -> Intake {
        Intake::new(LIMITS, n_tenants, Workers::start("work", 1, 1).expect("a thread"))
    }

    fn n_values(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(n_values).sum(),
            Value::Object(members) => members.values().map(n_values).sum(),
            _ => 0,
        }
    }

    fn n_containers(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(n_containers).sum::<usize>(),
            Value::Object(members) => 1 + members.values().map(n_containers).sum::<usize>(),
            _ => 0,
        }
    }

    #[test]
    fn values_are_counted_wherever_a_text_is_cut() {
        for text in [
            "3",
            "[]",
            "[1, 2, 3]",
            r#"{"a": [{}, {"b": "x,y,[{"}], "c\"[,": "\\"}"#,
            r#"["\\", "\"", ",\\\",", "é[", [[[]]]]"#,
        ] {
            let value: Value = serde_json::from_str(text).expect("JSON");
            let bytes = text.as_bytes();
            for cut in 0..=bytes.len() {
                let mut counter = ValueCounter::default();
                counter.read(&bytes[..cut]);
                counter.read(&bytes[cut..]);
                let exact = n_values(&value);
                let most = exact + n_containers(&value);
                assert!(
                    (exact..=most).contains(&counter.n),
                    "{text} at {cut}: {}",
                    counter.n
                );
                assert_eq!(counter.place, Place::Outside);
            }
        }
    }

    #[test]
    fn values_in_strings_that_may_be_json_are_counted_too() {
        let n = |text: &str| {
            let mut counter = ValueCounter::default();
            counter.read(text.as_bytes());
            assert_eq!(counter.place, Place::Outside, "{text}");
            counter.n
        };
        assert_eq!(n(r#"{"arguments": "{\"a\": [1, 2]}"}"#), 2 + 4 - 1);
        assert_eq!(n(r#"{"arguments": " [1,2,3]"}"#), 2 + 3);
        assert_eq!(n(r#"{"arguments": "\n[1,2,3]", "b": ""}"#), 3 + 3);
        assert_eq!(n(r#"{"content": "one, two, [three]"}"#), 2);
    }

    #[test]
    fn what_arrives_is_taken_and_given_back() {
        let intake = intake(1);
        let mut first = intake.open(0);
        first.take(&[b' '; 900_000]).expect("there is room");
        let mut second = intake.open(0);
        second.take(&[b' '; 100_000]).expect("there is room");
        let full = second.take(b" ").expect_err("a third of the memory is used up");
        let ApiError::QueueFull { no_room, .. } = full else {
            panic!("{full:?}");
        };
        assert_eq!(
            (no_room.n_taken, no_room.n_wanted, no_room.limit),
            (1_000_000, 1, 1_000_000)
        );
        drop(first);
        second.take(b" ").expect("there is room again");
        assert_eq!(intake.n_received(), 100_001);
        drop(second);
        assert_eq!(intake.n_received(), 0);
    }

    #[test]
    fn a_tenant_that_sends_much_keeps_no_other_one_out() {
        let intake = intake(2);
        let mut flood = Vec::new();
        loop {
            let mut body = intake.open(0);
            if body.take(&[b' '; 50_000]).is_err() {
                break;
            }
            flood.push(body);
        }
        assert!(flood.len() >= 8, "{}", flood.len());
        intake.open(1).take(&[b' '; 100_000]).expect("its own part");
    }

    fn arrived(intake: &Intake, text: &[u8]) -> Arrival {
        let mut arrival = intake.open(0);
        arrival.take(text).expect("there is room");
        arrival
    }

    #[tokio::test]
    async fn a_large_body_waits_for_memory_and_a_small_one_does_not() {
        let intake = intake(1);
        // 600,000 bytes of memory each; there are 2,000,000.
        let large = vec![b' '; 100_000];
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(intake.admit(arrived(&intake, &large)).await.expect("fits"));
        }
        let mut fourth = std::pin::pin!(intake.admit(arrived(&intake, &large)));
        assert!(fourth.as_mut().now_or_never().is_none(), "it waits");
        let small = intake.admit(arrived(&intake, b"{}")).await.expect("fits");
        assert_eq!(small.size, Size::Small);
        held.pop();
        assert_eq!(fourth.await.expect("fits").size, Size::Large);
    }

    #[tokio::test]
    async fn too_many_values_are_refused_with_the_number_that_is_possible() {
        let intake = intake(1);
        let text = format!("[{}1]", "1,".repeat(20_000));
        let refused = intake.admit(arrived(&intake, text.as_bytes())).await;
        let limit = (2_000_000 - 6 * 40_003) / VALUE_BYTES;
        assert_eq!(
            refused.expect_err("20,001 values in a list").to_string(),
            ApiError::TooManyValues {
                n_values: 20_002,
                limit
            }
            .to_string()
        );
    }

    #[tokio::test]
    async fn a_panic_on_a_worker_fails_that_request_and_the_turn_goes_on() {
        let intake = intake(1);
        let large = arrived(&intake, &[b' '; 50_000]);
        let large = intake.admit(large).await.expect("fits");
        let failed = intake.run(&large, || panic!("on purpose")).await;
        assert_eq!(failed, Err::<(), _>(ApiError::Failed));
        assert_eq!(intake.run(&large, || 5).await, Ok(5));
    }
}
