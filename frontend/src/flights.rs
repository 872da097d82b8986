//! Single-flight: concurrent callers share one computation, which runs on the worker pool in short turns.
//!
//! ```text
//! asked for ─┬─ by somebody before ──────────────────────────────┐
//!            └─ new ─► a place in the queue ─► a turn ─► worked ─► everybody who waits
//!                      nobody waits any more: dropped    goes on to its end, whoever leaves
//! ```
//!
//! Invariants: at most `n_turns` works run, whoever leaves meanwhile; no more wait for a turn than the limit
//! says, which tenants share; no key is in flight when nobody waits and nothing runs.
//!
//! Tenants take turns: of each the one that waits longest stands in the line for a turn, so a tenant that
//! asks for much delays another's work by one of its own. Work that several ask for counts for who asked
//! first.

use std::hash::Hash;
use std::sync::Arc;

use arbora_runtime::fair_limit::{FairLimit, NoRoom, Taken};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::workers::{WorkError, Workers};

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlightError {
    /// The queue is full, or as full of this tenant's works as it may be.
    #[error(transparent)]
    Full(#[from] NoRoom),
    /// It could not be worked.
    #[error(transparent)]
    Work(#[from] WorkError),
}

/// Results of type `V`, each asked for by a key.
pub struct Flights<K, V>(Arc<Shared<K, V>>);

struct Shared<K, V> {
    in_flight: DashMap<K, watch::Sender<Landing<V>>>,
    turns: Arc<Semaphore>,
    /// Whoever of a tenant has its permit stands in the line for a turn.
    heads: Box<[Semaphore]>,
    waiting: FairLimit,
    workers: Workers,
}

/// Nothing while it is on its way.
type Landing<V> = Option<Result<V, FlightError>>;

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Nothing in flight; `workers` do `n_turns` works at a time while as many more wait as `waiting` has
    /// room for.
    pub fn new(n_turns: usize, waiting: FairLimit, workers: Workers) -> Self {
        Flights(Arc::new(Shared {
            in_flight: DashMap::new(),
            turns: Arc::new(Semaphore::new(n_turns)),
            heads: (0..waiting.n_tenants()).map(|_| Semaphore::new(1)).collect(),
            waiting,
            workers,
        }))
    }

    /// What `work` of `tenant` returns for `key`, or what another's work returns that was asked for before.
    ///
    /// # Errors
    /// When too many wait, or the work panicked or found no thread.
    pub async fn join(
        &self,
        key: &K,
        tenant: usize,
        work: impl FnOnce() -> V + Send + 'static,
    ) -> Result<V, FlightError> {
        let mut landing = match self.0.in_flight.entry(key.clone()) {
            Entry::Occupied(place) => place.get().subscribe(),
            Entry::Vacant(place) => {
                let waiting = Waiting::begin(&self.0, tenant)?;
                let (sender, landing) = watch::channel(None);
                place.insert(sender.clone());
                tokio::spawn(Arc::clone(&self.0).fly(key.clone(), sender, waiting, work));
                landing
            }
        };
        // The sender is gone without a word when the server is torn down.
        let landed = landing.wait_for(Option::is_some).await;
        landed
            .ok()
            .and_then(|landed| landed.clone())
            .unwrap_or(Err(FlightError::Work(WorkError::Failed)))
    }

    /// Keys in flight.
    pub fn len(&self) -> usize {
        self.0.in_flight.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K, V> Shared<K, V>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    async fn fly(
        self: Arc<Self>,
        key: K,
        sender: watch::Sender<Landing<V>>,
        waiting: Waiting<K, V>,
        work: impl FnOnce() -> V + Send + 'static,
    ) {
        let Some(turn) = self.turn(&key, &sender, waiting.tenant).await else {
            return;
        };
        drop(waiting);
        let worked = self.workers.run(move || {
            let worked = work();
            drop(turn);
            worked
        });
        let worked = worked.await.map_err(FlightError::Work);
        // Whoever comes now begins anew, and so must find what was worked where it is kept.
        self.in_flight.remove(&key);
        sender.send_replace(Some(worked));
    }

    /// Waits for a turn of `tenant`; none when everybody has left before.
    async fn turn(
        &self,
        key: &K,
        sender: &watch::Sender<Landing<V>>,
        tenant: usize,
    ) -> Option<OwnedSemaphorePermit> {
        // Both semaphores serve in the order of arrival.
        let turn = async {
            let _head = self.heads[tenant].acquire().await;
            Arc::clone(&self.turns).acquire_owned().await
        };
        let mut turn = std::pin::pin!(turn);
        loop {
            tokio::select! {
                turn = &mut turn => return Some(turn.expect("the semaphore is never closed")),
                () = sender.closed() => {
                    // Somebody may have joined in between; under the key's lock nobody can.
                    if self.in_flight.remove_if(key, |_, sender| sender.is_closed()).is_some() {
                        return None;
                    }
                }
            }
        }
    }
}

impl<K, V> std::fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights")
            .field("n_waiting", &self.0.waiting.n_taken())
            .finish_non_exhaustive()
    }
}

/// A place in the queue, given back when dropped.
struct Waiting<K, V> {
    shared: Arc<Shared<K, V>>,
    tenant: usize,
    taken: Option<Taken>,
}

impl<K, V> Waiting<K, V> {
    fn begin(shared: &Arc<Shared<K, V>>, tenant: usize) -> Result<Self, NoRoom> {
        Ok(Waiting {
            taken: Some(shared.waiting.take(tenant, 1)?),
            shared: Arc::clone(shared),
            tenant,
        })
    }
}

impl<K, V> Drop for Waiting<K, V> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.shared.waiting.give_back(self.tenant, taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use tokio::task::JoinHandle;

    use super::*;

    /// Works that wait to be let go, and a count of those that began.
    struct Bench {
        flights: Arc<Flights<u32, u32>>,
        n_begun: Arc<AtomicUsize>,
    }

    impl Bench {
        fn new(max_waiting: usize) -> Bench {
            Bench::of(FairLimit::new("works", max_waiting, 1))
        }

        fn of(waiting: FairLimit) -> Bench {
            Bench {
                flights: Arc::new(Flights::new(
                    1,
                    waiting,
                    Workers::start("work", 1, 1).expect("a thread"),
                )),
                n_begun: Arc::default(),
            }
        }

        /// Somebody who asks for `key`; the work ends when the sender says with what, or panics without.
        fn ask(&self, key: u32) -> (JoinHandle<Result<u32, FlightError>>, mpsc::SyncSender<u32>) {
            self.ask_as(0, key)
        }

        fn ask_as(
            &self,
            tenant: usize,
            key: u32,
        ) -> (JoinHandle<Result<u32, FlightError>>, mpsc::SyncSender<u32>) {
            let (flights, n_begun) = (Arc::clone(&self.flights), Arc::clone(&self.n_begun));
            let (sender, end) = mpsc::sync_channel(1);
            let work = move || {
                n_begun.fetch_add(1, Ordering::SeqCst);
                end.recv().expect("the test lets it go")
            };
            (
                tokio::spawn(async move { flights.join(&key, tenant, work).await }),
                sender,
            )
        }

        async fn until(&self, is_so: impl Fn(&Bench) -> bool) {
            while !is_so(self) {
                tokio::task::yield_now().await;
            }
        }

        fn n_begun(&self) -> usize {
            self.n_begun.load(Ordering::SeqCst)
        }

        fn n_waiting(&self) -> usize {
            self.flights.0.waiting.n_taken()
        }
    }

    #[tokio::test]
    async fn all_who_ask_for_the_same_get_what_was_worked_once() {
        let bench = Bench::new(4);
        let (first, end) = bench.ask(7);
        bench.until(|bench| bench.n_begun() == 1).await;
        let others: Vec<_> = (0..20).map(|_| bench.ask(7)).collect();
        let n_listening = |bench: &Bench| {
            bench
                .flights
                .0
                .in_flight
                .get(&7)
                .map(|place| place.receiver_count())
        };
        bench.until(|bench| n_listening(bench) == Some(21)).await;
        end.send(70).expect("it waits");
        assert_eq!(first.await.expect("no panic"), Ok(70));
        for (other, _) in others {
            assert_eq!(other.await.expect("no panic"), Ok(70));
        }
        assert_eq!(bench.n_begun(), 1);
        assert!(bench.flights.is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_those_in_it_are_served() {
        let bench = Bench::new(2);
        let (running, end) = bench.ask(0);
        bench.until(|bench| bench.n_begun() == 1).await;
        let waiting: Vec<_> = (1..3).map(|key| bench.ask(key)).collect();
        bench.until(|bench| bench.n_waiting() == 2).await;
        let refused = bench.ask(3).0.await.expect("no panic");
        let Err(FlightError::Full(no_room)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((no_room.n_taken, no_room.limit), (2, 2));
        let (joined, _) = bench.ask(1);
        let n_listening = |bench: &Bench| {
            bench
                .flights
                .0
                .in_flight
                .get(&1)
                .map(|place| place.receiver_count())
        };
        bench.until(|bench| n_listening(bench) == Some(2)).await;
        end.send(1).expect("it waits");
        assert_eq!(running.await.expect("no panic"), Ok(1));
        for (asked, end) in waiting {
            end.send(2).expect("it will be begun");
            assert_eq!(asked.await.expect("no panic"), Ok(2));
        }
        assert_eq!(joined.await.expect("no panic"), Ok(2), "who joins needs no place");
        assert_eq!((bench.n_waiting(), bench.n_begun()), (0, 3));
        assert!(bench.flights.is_empty());
    }

    #[tokio::test]
    async fn a_tenant_that_asks_for_much_neither_keeps_another_out_nor_delays_it_by_more_than_one() {
        let bench = Bench::of(FairLimit::new("works", 32, 2));
        let (running, running_end) = bench.ask_as(0, 0);
        bench.until(|bench| bench.n_begun() == 1).await;
        let flood: Vec<_> = (1..30).map(|key| bench.ask_as(0, key)).collect();
        // Its own 2 and half of the shared 28.
        let n_refused = || flood.iter().filter(|(asked, _)| asked.is_finished()).count();
        bench.until(|_| n_refused() == 29 - 16).await;
        let (other, other_end) = bench.ask_as(1, 99);
        bench.until(|bench| bench.n_waiting() == 17).await;
        other_end.send(9).expect("it will be begun");
        running_end.send(1).expect("it waits");
        assert_eq!(running.await.expect("no panic"), Ok(1));
        // Whose turn it is was settled before the other one came; after it the other one's turn is settled.
        flood[0].1.send(2).expect("it will be begun");
        assert_eq!(other.await.expect("no panic"), Ok(9));
        bench.until(|bench| bench.n_begun() == 4).await;
        assert_eq!(bench.n_waiting(), 16 - 2, "one more of the flood runs");
        for (asked, end) in flood {
            // Nobody receives where the work was refused or is done.
            let is_let_go = end.send(3).is_ok();
            let answer = asked.await.expect("no panic");
            assert!(!is_let_go || answer == Ok(3), "{answer:?}");
        }
        assert_eq!((bench.n_waiting(), bench.n_begun()), (0, 18));
        assert!(bench.flights.is_empty());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_begun() {
        let bench = Bench::new(4);
        let (running, end) = bench.ask(0);
        bench.until(|bench| bench.n_begun() == 1).await;
        let (left, _) = bench.ask(1);
        bench.until(|bench| bench.n_waiting() == 1).await;
        left.abort();
        bench.until(|bench| bench.n_waiting() == 0).await;
        assert_eq!(bench.flights.len(), 1, "only what runs");
        end.send(1).expect("it waits");
        assert_eq!(running.await.expect("no panic"), Ok(1));
        assert_eq!(bench.n_begun(), 1);
        assert!(bench.flights.is_empty());
    }

    #[tokio::test]
    async fn what_has_begun_keeps_its_turn_when_everybody_leaves() {
        let bench = Bench::new(4);
        let (left, end) = bench.ask(0);
        bench.until(|bench| bench.n_begun() == 1).await;
        left.abort();
        assert!(left.await.expect_err("it was aborted").is_cancelled());
        let (next, next_end) = bench.ask(1);
        bench.until(|bench| bench.n_waiting() == 1).await;
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.n_begun(), 1, "the only turn is taken");
        let (back, _) = bench.ask(0);
        let n_listening = |bench: &Bench| {
            bench
                .flights
                .0
                .in_flight
                .get(&0)
                .map(|place| place.receiver_count())
        };
        bench.until(|bench| n_listening(bench) == Some(1)).await;
        end.send(5).expect("it waits");
        assert_eq!(back.await.expect("no panic"), Ok(5), "who comes back finds it");
        next_end.send(6).expect("it will be begun");
        assert_eq!(next.await.expect("no panic"), Ok(6));
        assert_eq!(bench.n_begun(), 2);
        assert!(bench.flights.is_empty());
    }

    #[tokio::test]
    async fn a_panic_fails_those_who_asked_for_it_and_nobody_else() {
        let bench = Bench::new(4);
        let (failing, end) = bench.ask(0);
        let (other, other_end) = bench.ask(1);
        bench.until(|bench| bench.n_begun() == 1).await;
        drop(end);
        assert_eq!(
            failing.await.expect("the task lives"),
            Err(FlightError::Work(WorkError::Failed))
        );
        other_end.send(9).expect("it will be begun");
        assert_eq!(other.await.expect("no panic"), Ok(9));
        let (again, end) = bench.ask(0);
        end.send(3).expect("it will be begun");
        assert_eq!(again.await.expect("no panic"), Ok(3));
        assert!(bench.flights.is_empty());
    }
}
