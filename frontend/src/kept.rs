//! Responses that clients may ask for again and go on from, in memory, bounded in bytes and time.
//!
//! ```text
//! response ─► turns: those of the responses before it, shared with them, and its own
//!             turn:  the client's items, then the model's
//! ```
//!
//! Each API key has its own: what another key kept is not there. Where the bytes run out, the key that holds
//! most loses its oldest response. What a turn takes is counted as long as any response holds it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::AbortHandle;

/// What an entry takes besides its text, about.
const ENTRY_BYTES: usize = 256;

/// Bounds of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptLimits {
    /// Most bytes of all responses together.
    pub bytes: usize,
    /// A response is forgotten so long after it was kept.
    pub time_to_live: Duration,
}

/// The responses of all API keys.
#[derive(Debug)]
pub struct KeptResponses {
    limits: KeptLimits,
    owners: Mutex<HashMap<Option<usize>, Owner>>,
}

/// Those of one key.
#[derive(Debug, Default)]
struct Owner {
    responses: HashMap<String, Entry>,
    /// Oldest first; may name some that are gone.
    order: VecDeque<String>,
    /// Where an item is found by its id.
    items: HashMap<String, Weak<Turn>>,
    bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Entry {
    response: Arc<KeptResponse>,
    since: Instant,
    work: Work,
}

/// Whether a response is still being made.
#[derive(Debug)]
enum Work {
    /// Nobody works on it.
    Over,
    /// Somebody does, and cannot be stopped yet.
    Begun,
    /// Somebody does.
    Running(AbortHandle),
}

/// What is known of a response when it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// All there will ever be.
    Whole,
    /// Nothing yet: it is being made while nobody waits for it.
    Begins,
    /// All of one that began so. Where it was stopped or forgotten in the meantime, that holds.
    Ends,
}

/// A response that is kept.
#[derive(Debug)]
pub struct KeptResponse {
    /// The response as JSON.
    pub body: String,
    /// What was said up to its end, oldest first.
    pub turns: Vec<Arc<Turn>>,
    _charge: Charge,
}

/// What a client said and what the model answered.
#[derive(Debug)]
pub struct Turn {
    items: Vec<Item>,
    /// How many of them are the client's.
    n_input: usize,
    _charge: Charge,
}

#[derive(Debug)]
struct Item {
    id: String,
    json: String,
}

/// Bytes that are counted as long as it is there.
#[derive(Debug)]
struct Charge {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Charge {
    fn new(bytes: usize, total: &Arc<AtomicUsize>) -> Self {
        total.fetch_add(bytes, Ordering::Relaxed);
        Charge {
            bytes,
            total: Arc::clone(total),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Turn {
    fn new((input, output): (&[Value], &[Value]), total: &Arc<AtomicUsize>) -> Self {
        let items = input.iter().chain(output).map(|item| Item {
            id: item["id"].as_str().unwrap_or_default().to_owned(),
            json: item.to_string(),
        });
        let items: Vec<Item> = items.collect();
        let bytes = items
            .iter()
            .map(|item| 2 * item.id.len() + item.json.len() + ENTRY_BYTES);
        Turn {
            n_input: input.len(),
            _charge: Charge::new(bytes.sum::<usize>() + ENTRY_BYTES, total),
            items,
        }
    }

    /// All items.
    pub fn items(&self) -> impl Iterator<Item = Value> {
        self.items.iter().map(Item::value)
    }

    /// Those of the client.
    pub fn input(&self) -> impl Iterator<Item = Value> {
        self.items[..self.n_input].iter().map(Item::value)
    }
}

impl Item {
    fn value(&self) -> Value {
        serde_json::from_str(&self.json).expect("it was written as JSON")
    }
}

impl KeptResponses {
    /// Nothing yet.
    pub fn new(limits: KeptLimits) -> Self {
        KeptResponses {
            limits,
            owners: Mutex::default(),
        }
    }

    /// Keeps a response of `owner`: its `body`, the turns before it, and what its own turn said. One that is
    /// kept under this id already is replaced.
    pub fn keep(
        &self,
        (owner, id): (Option<usize>, &str),
        body: &Value,
        (past, input, output): (&[Arc<Turn>], &[Value], &[Value]),
        (now, stage): (Instant, Stage),
    ) {
        let mut owners = self.owners();
        let kept = owners.entry(owner).or_default();
        let before = kept.remove(id);
        if stage == Stage::Ends
            && before
                .as_ref()
                .is_none_or(|entry| matches!(entry.work, Work::Over))
        {
            if let Some(entry) = before {
                kept.insert(id, entry);
            }
            return;
        }
        let turn = Arc::new(Turn::new((input, output), &kept.bytes));
        let body = body.to_string();
        let n_bytes = body.len() + 3 * id.len() + ENTRY_BYTES + (past.len() + 1) * size_of::<Arc<Turn>>();
        let response = KeptResponse {
            _charge: Charge::new(n_bytes, &kept.bytes),
            body,
            turns: past.iter().cloned().chain([turn]).collect(),
        };
        let entry = Entry {
            response: Arc::new(response),
            since: now,
            work: match stage {
                Stage::Whole | Stage::Ends => Work::Over,
                Stage::Begins => Work::Begun,
            },
        };
        kept.insert(id, entry);
        for kept in owners.values_mut() {
            while kept
                .oldest()
                .is_some_and(|since| now >= since + self.limits.time_to_live)
            {
                kept.forget_oldest();
            }
        }
        loop {
            let held = |kept: &&mut Owner| kept.bytes.load(Ordering::Relaxed);
            let total: usize = owners.values_mut().map(|kept| held(&kept)).sum();
            let holds_most = owners.values_mut().filter(|kept| !kept.responses.is_empty());
            match holds_most.max_by_key(held) {
                Some(kept) if total > self.limits.bytes => kept.forget_oldest(),
                _ => break,
            }
        }
    }

    /// The response of `owner` with this id.
    pub fn find(&self, owner: Option<usize>, id: &str, now: Instant) -> Option<Arc<KeptResponse>> {
        let owners = self.owners();
        let entry = owners.get(&owner)?.responses.get(id)?;
        let is_fresh = now < entry.since + self.limits.time_to_live;
        is_fresh.then(|| Arc::clone(&entry.response))
    }

    /// The item of any response of `owner` with this id.
    pub fn item(&self, owner: Option<usize>, id: &str) -> Option<Value> {
        let turn = self.owners().get(&owner)?.items.get(id)?.upgrade()?;
        let item = turn.items.iter().find(|item| item.id == id)?;
        Some(item.value())
    }

    /// Forgets the response of `owner` with this id; returns whether there was one.
    pub fn forget(&self, owner: Option<usize>, id: &str) -> bool {
        let mut owners = self.owners();
        let removed = owners.get_mut(&owner).and_then(|kept| kept.remove(id));
        if let Some(Work::Running(work)) = removed.as_ref().map(|entry| &entry.work) {
            work.abort();
        }
        removed.is_some()
    }

    /// Says how the work on a response that began aside is ended. Where that was wanted already, it ends.
    pub fn set_work(&self, owner: Option<usize>, id: &str, work: AbortHandle) {
        let mut owners = self.owners();
        let entry = owners.get_mut(&owner).and_then(|kept| kept.responses.get_mut(id));
        match entry {
            Some(entry) if matches!(entry.work, Work::Begun) => entry.work = Work::Running(work),
            // Over already, which ends nothing, or forgotten.
            _ => work.abort(),
        }
    }

    /// Ends the work on the response of `owner` with this id, if there is some; its body is what `amend`
    /// makes of it then.
    pub fn stop(&self, owner: Option<usize>, id: &str, amend: impl FnOnce(&str) -> String) {
        let mut owners = self.owners();
        let Some(kept) = owners.get_mut(&owner) else {
            return;
        };
        let Some(entry) = kept.responses.get_mut(id) else {
            return;
        };
        match std::mem::replace(&mut entry.work, Work::Over) {
            Work::Over => return,
            Work::Begun => {}
            Work::Running(work) => work.abort(),
        }
        let body = amend(&entry.response.body);
        let turns = entry.response.turns.clone();
        entry.response = Arc::new(KeptResponse {
            _charge: Charge::new(body.len() + ENTRY_BYTES, &kept.bytes),
            body,
            turns,
        });
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<Option<usize>, Owner>> {
        // What is kept is whole between any two statements, but for what may be forgotten at any time.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    /// Since when its oldest response is kept.
    fn oldest(&mut self) -> Option<Instant> {
        while let Some(id) = self.order.front() {
            match self.responses.get(id) {
                Some(entry) => return Some(entry.since),
                None => drop(self.order.pop_front()),
            }
        }
        None
    }

    fn forget_oldest(&mut self) {
        if self.oldest().is_some()
            && let Some(id) = self.order.pop_front()
        {
            self.remove(&id);
        }
    }

    fn insert(&mut self, id: &str, entry: Entry) {
        if let Some(turn) = entry.response.turns.last() {
            let items = turn.items.iter();
            self.items
                .extend(items.map(|item| (item.id.clone(), Arc::downgrade(turn))));
        }
        self.responses.insert(id.to_owned(), entry);
        self.order.push_back(id.to_owned());
    }

    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.responses.remove(id)?;
        self.order.retain(|other| other != id);
        if let Some(turn) = entry.response.turns.last() {
            for item in &turn.items {
                self.items.remove(&item.id);
            }
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn kept(bytes: usize) -> KeptResponses {
        KeptResponses::new(KeptLimits {
            bytes,
            time_to_live: HOUR,
        })
    }

    /// Keeps a response with one item of `n_bytes`, behind `past`.
    fn keep(
        kept: &KeptResponses,
        place: (Option<usize>, &str),
        n_bytes: usize,
        past: &[Arc<Turn>],
        now: Instant,
    ) {
        let item = json!({"id": format!("msg_{}", place.1), "text": "x".repeat(n_bytes)});
        kept.keep(
            place,
            &json!({"id": place.1}),
            (past, &[item], &[]),
            (now, Stage::Whole),
        );
    }

    fn bytes(kept: &KeptResponses, owner: Option<usize>) -> usize {
        kept.owners()
            .get(&owner)
            .map_or(0, |kept| kept.bytes.load(Ordering::Relaxed))
    }

    #[test]
    fn a_response_is_its_keys_alone_and_for_an_hour() {
        let (kept, now) = (kept(1 << 20), Instant::now());
        keep(&kept, (Some(0), "a"), 10, &[], now);
        assert_eq!(kept.find(Some(0), "a", now).expect("kept").body, r#"{"id":"a"}"#);
        assert!(kept.find(Some(1), "a", now).is_none() && kept.item(Some(1), "msg_a").is_none());
        assert_eq!(kept.item(Some(0), "msg_a").expect("kept")["text"], "xxxxxxxxxx");
        assert!(!kept.forget(Some(1), "a"));
        assert!(kept.find(Some(0), "a", now + HOUR).is_none());
        keep(&kept, (Some(1), "b"), 10, &[], now + HOUR);
        assert_eq!(bytes(&kept, Some(0)), 0, "what is over takes nothing");
        assert!(kept.forget(Some(1), "b") && !kept.forget(Some(1), "b"));
        assert_eq!(bytes(&kept, Some(1)), 0);
        assert!(kept.item(Some(1), "msg_b").is_none());
    }

    #[test]
    fn turns_are_shared_and_counted_as_long_as_anybody_holds_them() {
        let (kept, now) = (kept(1 << 20), Instant::now());
        keep(&kept, (None, "a"), 5000, &[], now);
        let one = bytes(&kept, None);
        let first = kept.find(None, "a", now).expect("kept");
        keep(&kept, (None, "b"), 10, &first.turns, now);
        assert!(bytes(&kept, None) < one + 2000, "the first turn is not copied");
        drop(first);
        assert!(kept.forget(None, "a"));
        assert!(
            bytes(&kept, None) > 5000,
            "the second response still holds the first turn"
        );
        let second = kept.find(None, "b", now).expect("kept");
        assert_eq!(second.turns.iter().flat_map(|turn| turn.items()).count(), 2);
        drop(second);
        assert!(kept.forget(None, "b"));
        assert_eq!(bytes(&kept, None), 0);
    }

    #[test]
    fn what_was_stopped_or_forgotten_stays_so() {
        let (kept, now) = (kept(1 << 20), Instant::now());
        let say = |id: &str, status: &str, stage| {
            kept.keep((None, id), &json!(status), (&[], &[], &[]), (now, stage));
        };
        let body = |id: &str| kept.find(None, id, now).map(|response| response.body.clone());
        for id in ["a", "b", "c"] {
            say(id, "begun", Stage::Begins);
        }
        kept.stop(None, "b", |_| "stopped".to_owned());
        assert!(kept.forget(None, "c"));
        for id in ["a", "b", "c"] {
            say(id, "whole", Stage::Ends);
        }
        assert_eq!(body("a").as_deref(), Some("\"whole\""));
        assert_eq!(body("b").as_deref(), Some("stopped"));
        assert_eq!(body("c"), None);
        kept.stop(None, "a", |_| "stopped".to_owned());
        assert_eq!(
            body("a").as_deref(),
            Some("\"whole\""),
            "nobody worked on it any more"
        );
    }

    #[test]
    fn who_holds_most_loses_the_oldest() {
        let (kept, now) = (kept(20_000), Instant::now());
        keep(&kept, (Some(1), "quiet"), 1000, &[], now);
        for i in 0..50 {
            keep(&kept, (Some(0), &format!("r{i}")), 1000, &[], now);
            let total = bytes(&kept, Some(0)) + bytes(&kept, Some(1));
            assert!(total <= 20_000, "{total} bytes");
        }
        assert!(kept.find(Some(1), "quiet", now).is_some());
        assert!(kept.find(Some(0), "r0", now).is_none() && kept.find(Some(0), "r49", now).is_some());
        keep(&kept, (Some(0), "large"), 30_000, &[], now);
        assert!(kept.find(Some(0), "large", now).is_none(), "it alone is too much");
        assert!(bytes(&kept, Some(0)) <= 20_000);
    }
}
