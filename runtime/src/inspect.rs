//! Questions about the cache and the running requests that the engine answers between two steps.
//!
//! One question is open at a time, and every answer is bounded: whoever looks, however often, delays a step
//! by at most one small answer.

use arbora_radix::{Namespace, NodeView};

use crate::cache::PrefixCache;
use crate::explain::Explanation;
use crate::request::RequestId;
use crate::sequence::{Sequence, Sequences, Stage};

/// Most nodes of one picture of the tree.
pub const MAX_NODES: usize = 2000;
/// Most requests asked about at once.
pub const MAX_REQUESTS: usize = 64;
/// Tokens shown at either end of a node.
pub const SHOWN_TOKENS: usize = 12;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// The tree: those of its nodes that would be given up last.
    Tree {
        /// Most nodes, up to [`MAX_NODES`].
        max_nodes: usize,
    },
    /// Why these requests found what they found, up to [`MAX_REQUESTS`].
    Requests(Vec<RequestId>),
    /// The requests in the engine, those that were accepted first, up to [`MAX_REQUESTS`].
    InFlight {
        /// Most requests.
        max_requests: usize,
    },
    /// What a prompt would find now.
    Prompt {
        /// The part of the cache to look at.
        namespace: Namespace,
        /// At least one token, at most a context.
        tokens: Vec<u32>,
    },
}

/// The answer to an [`Inspection`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// The tree.
    Tree(CacheView),
    /// An explanation per request asked about; absent where it never started or is forgotten.
    Requests(Vec<Option<Explanation>>),
    /// The requests in the engine, in the order in which they were accepted.
    InFlight(Vec<InFlightRequest>),
    /// What the prompt would find.
    Prompt(Explanation),
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlightRequest {
    /// Which one.
    pub id: RequestId,
    /// `waiting`, `prefill` or `decode`.
    pub stage: &'static str,
    /// Tokens of its prompt.
    pub n_prompt: usize,
    /// Tokens whose keys and values exist, of prompt and output.
    pub n_computed: usize,
    /// Tokens of its output so far.
    pub n_output: usize,
    /// Tokens its output may have.
    pub max_tokens: usize,
}

impl InFlightRequest {
    fn new(sequence: &Sequence) -> Self {
        let request = sequence.request();
        InFlightRequest {
            id: request.id,
            stage: match sequence.stage {
                Stage::Waiting => "waiting",
                Stage::Prefill => "prefill",
                Stage::Decode => "decode",
            },
            n_prompt: sequence.n_prompt,
            n_computed: sequence.n_computed,
            n_output: sequence.n_output(),
            max_tokens: request.max_tokens,
        }
    }
}

/// A picture of the cache between two steps: `n_free + n_cached + owned = n_total`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheView {
    /// Nodes of the tree, parents before their children.
    pub nodes: Vec<NodeView>,
    /// Nodes of the tree that are not shown.
    pub n_nodes_left_out: usize,
    /// Pages of those.
    pub n_pages_left_out: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Pages of the pool.
    pub n_total: usize,
    /// Pages nobody holds.
    pub n_free: usize,
    /// Pages in the tree.
    pub n_cached: usize,
    /// Of those, pages no running sequence needs.
    pub n_evictable: usize,
}

/// Why a question is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// Another one is open.
    #[error("another question is being answered")]
    Busy,
    /// The engine has ended.
    #[error("the engine has ended")]
    Over,
    /// It asks for too much, or for nothing.
    #[error("{what} must be in [1, {limit}], got {value}")]
    OutOfRange {
        /// What is counted.
        what: &'static str,
        /// The count.
        value: usize,
        /// The largest allowed.
        limit: usize,
    },
}

impl Inspection {
    /// Looks at the cache and those who use it.
    pub(crate) fn answer(&self, cache: &PrefixCache, sequences: &Sequences) -> Inspected {
        match self {
            Inspection::Tree { max_nodes } => {
                let tables = sequences
                    .iter()
                    .filter_map(|(_, sequence)| sequence.table.as_ref());
                Inspected::Tree(cache.view(tables, *max_nodes))
            }
            Inspection::Requests(ids) => {
                let explanations = ids.iter().map(|id| cache.explanation_of(*id).cloned());
                Inspected::Requests(explanations.collect())
            }
            Inspection::InFlight { max_requests } => {
                let mut all: Vec<&Sequence> = sequences.iter().map(|(_, sequence)| sequence).collect();
                all.sort_unstable_by_key(|sequence| sequence.number);
                all.truncate(*max_requests);
                Inspected::InFlight(all.into_iter().map(InFlightRequest::new).collect())
            }
            Inspection::Prompt { namespace, tokens } => Inspected::Prompt(cache.explain(namespace, tokens)),
        }
    }

    /// Checks that the answer is bounded.
    pub(crate) fn validate(&self, context: usize) -> Result<(), InspectError> {
        let (what, value, limit) = match self {
            Inspection::Tree { max_nodes } => ("nodes", *max_nodes, MAX_NODES),
            Inspection::Requests(ids) => ("requests", ids.len(), MAX_REQUESTS),
            Inspection::InFlight { max_requests } => ("requests", *max_requests, MAX_REQUESTS),
            Inspection::Prompt { tokens, .. } => ("prompt tokens", tokens.len(), context),
        };
        match (1..=limit).contains(&value) {
            true => Ok(()),
            false => Err(InspectError::OutOfRange { what, value, limit }),
        }
    }
}
