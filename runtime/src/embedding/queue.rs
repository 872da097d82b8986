//! The texts that wait to be encoded, and which of them make up the next batch.
//!
//! A batch is filled text by text. Each comes from the tenant that had the fewest tokens encoded so far
//! (start time fair queueing), so that one text of a tenant waits for at most a batch beside another one's
//! thousands. A tenant that comes back after a pause starts where the others are: it is owed nothing for the
//! pause.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::Sender;

use super::Answer;
use super::handle::Place;
use crate::model::encoder::EncodedText;

/// A request whose texts wait.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) tenant: usize,
    pub(super) texts: VecDeque<EncodedText>,
    /// Texts of it that were taken.
    pub(super) n_taken: usize,
    pub(super) reply: Sender<Answer>,
    pub(super) place: Arc<Place>,
}

/// A text of a batch.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) text: EncodedText,
    pub(super) text_idx: usize,
    pub(super) reply: Sender<Answer>,
    /// Given back when the last text of the request is encoded.
    pub(super) _place: Arc<Place>,
}

#[derive(Debug, Default)]
struct Tenant {
    jobs: VecDeque<Job>,
    /// Tokens it had encoded, and those it had no claim to while it paused.
    n_served: u64,
}

/// Everything that waits.
#[derive(Debug)]
pub(super) struct Queue {
    tenants: Vec<Tenant>,
    /// What the tenant served last had before.
    now: u64,
}

impl Queue {
    pub(super) fn new(n_tenants: usize) -> Queue {
        Queue {
            tenants: std::iter::repeat_with(Tenant::default).take(n_tenants).collect(),
            now: 0,
        }
    }

    pub(super) fn push(&mut self, job: Job) {
        let tenant = &mut self.tenants[job.tenant];
        if tenant.jobs.is_empty() {
            tenant.n_served = tenant.n_served.max(self.now);
        }
        tenant.jobs.push_back(job);
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.tenants.iter().all(|tenant| tenant.jobs.is_empty())
    }

    /// Forgets all that waits: whoever waits for it finds the channel closed.
    pub(super) fn clear(&mut self) {
        self.tenants.iter_mut().for_each(|tenant| tenant.jobs.clear());
    }

    /// Moves the next texts, together at most `max_rows` tokens, to `batch`; none only where nothing waits.
    /// Requests that nobody waits for any more are dropped.
    pub(super) fn fill(&mut self, max_rows: usize, batch: &mut Vec<Picked>) {
        let mut n_rows = 0;
        for tenant in &mut self.tenants {
            tenant.jobs.retain(|job| !job.reply.is_closed());
        }
        loop {
            let waiting = self.tenants.iter_mut().filter(|tenant| !tenant.jobs.is_empty());
            let Some(tenant) = waiting.min_by_key(|tenant| tenant.n_served) else {
                return;
            };
            let job = tenant.jobs.front_mut().expect("one waits");
            let n_tokens = job.texts.front().expect("a job has a text").ids.len();
            if n_rows + n_tokens > max_rows && n_rows > 0 {
                return;
            }
            n_rows += n_tokens;
            self.now = tenant.n_served;
            tenant.n_served += n_tokens as u64;
            batch.push(Picked {
                text: job.texts.pop_front().expect("looked at"),
                text_idx: job.n_taken,
                reply: job.reply.clone(),
                _place: Arc::clone(&job.place),
            });
            job.n_taken += 1;
            if job.texts.is_empty() {
                tenant.jobs.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::embedding::handle::testing::place;

    fn job(tenant: usize, lengths: &[usize]) -> (Job, Receiver<Answer>) {
        let (reply, answers) = channel(lengths.len() + 1);
        let text = |length: &usize| EncodedText::of_ids(vec![1; *length]);
        let job = Job {
            tenant,
            texts: lengths.iter().map(text).collect(),
            n_taken: 0,
            reply,
            place: place(),
        };
        (job, answers)
    }

    fn lengths(queue: &mut Queue, max_rows: usize) -> Vec<usize> {
        let mut batch = Vec::new();
        queue.fill(max_rows, &mut batch);
        batch.iter().map(|picked| picked.text.ids.len()).collect()
    }

    #[test]
    fn a_batch_is_filled_in_order_up_to_its_rows() {
        let mut queue = Queue::new(1);
        let (first, _first) = job(0, &[5, 6, 7]);
        let (second, _second) = job(0, &[1, 30]);
        queue.push(first);
        queue.push(second);
        assert_eq!(lengths(&mut queue, 12), [5, 6]);
        assert_eq!(lengths(&mut queue, 12), [7, 1]);
        assert_eq!(lengths(&mut queue, 12), [30], "a text alone always fits");
        assert!(queue.is_empty());
        assert_eq!(lengths(&mut queue, 12), [0; 0]);
    }

    #[test]
    fn tenants_take_turns_by_tokens() {
        let mut queue = Queue::new(2);
        let (flood, _flood) = job(0, &[10; 100]);
        queue.push(flood);
        assert_eq!(lengths(&mut queue, 40), [10; 4]);
        let (light, _light) = job(1, &[4, 4, 4, 4, 4]);
        queue.push(light);
        // It starts where the other is, and then gets as many tokens.
        assert_eq!(lengths(&mut queue, 40), [4, 4, 4, 10, 4, 4, 10]);
    }

    #[test]
    fn a_request_that_nobody_waits_for_is_dropped_and_its_place_given_back() {
        let mut queue = Queue::new(1);
        let (left, answers) = job(0, &[3, 3]);
        let place = Arc::downgrade(&left.place);
        queue.push(left);
        drop(answers);
        assert_eq!(lengths(&mut queue, 40), [0; 0]);
        assert!(queue.is_empty() && place.upgrade().is_none());
    }
}
