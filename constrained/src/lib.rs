//! Grammar-constrained decoding: JSON Schema, regular expressions, choices, grammars as text, structural tags
//! and tool calls as token masks and forced text.
//!
//! A grammar says which texts are allowed; a matcher follows one output through it and says, before each
//! token, which tokens may come next. Nothing that violates the grammar is ever allowed, and whatever would
//! not be enforced is refused when the grammar is compiled, with its place and keyword. The crate sees bytes
//! and token numbers only: no tokenizer, no model, no I/O, no thread, no clock.
//!
//! * [`Vocabulary`] holds a model's tokens as bytes.
//! * [`Constraint`] says what is asked for, and of which kind it is: JSON Schema, a regular expression,
//!   choices, a grammar in GBNF, EBNF or Lark, a structural tag, tool calls, free text before one of them, or
//!   one of several.
//! * [`Grammar`] is compiled once, is immutable and cheap to clone; [`GrammarCache`] keeps the ones asked for
//!   lately.
//! * [`Matcher`] is one output: [`Matcher::mask`], [`Matcher::advance`], [`Matcher::rollback`], and
//!   [`Matcher::forced`] for text that must come whatever the model wants. A clone is a fork.
//! * [`Limits`] bounds both; the error of what exceeds one names it.
//! * [`SchemaOptions`] says how schemas are read and JSON is written.
//!
//! ```
//! use std::sync::Arc;
//! use arbora_constrained::{Grammar, Limits, SchemaOptions, Vocabulary};
//!
//! // Every byte is a token, and token 256 ends the text.
//! let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]);
//! let vocabulary = Arc::new(Vocabulary::new(tokens, &[256])?);
//! let schema = r#"{"type": "integer", "minimum": 10, "maximum": 19}"#;
//! let options = SchemaOptions::default();
//! let grammar = Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default())?;
//!
//! let mut matcher = grammar.matcher();
//! assert_eq!(matcher.mask().ids(), Some(&[u32::from(b'1')][..]));
//! matcher.advance(u32::from(b'1'))?;
//! assert!(!matcher.is_accepting());
//! matcher.advance(u32::from(b'7'))?;
//! assert_eq!(matcher.mask().ids(), Some(&[256][..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! How it works: everything is translated to one graph of nodes. Its leaves are byte automata and JSON
//! strings; objects and arrays stay single nodes. A state of a running grammar is a set of readings (leaf,
//! place in it, stack of what is still to come); states, stacks and transitions are built when an output
//! first reaches them and kept with the grammar, so later outputs find them. A mask is the union of what each
//! leaf allows, which is found out once for all grammars of a vocabulary that have an equal leaf, and of the
//! tokens that go on after the leaf, which are followed through the stack.
//!
//! What the output looks like: members come in the schema's order, extra ones last, or with
//! [`PropertyOrder::Any`] in any; a character that can stand for itself in a string does; integers have
//! neither point nor exponent where they are listed or the type is `integer`; other listed numbers are
//! written as the schema writes them; zero has no sign; numbers with a bound other than zero, a divisor or
//! values kept out have no exponent. This is a choice among spellings of a value, not a restriction of
//! values, with these exceptions:
//!
//! * A number ends: it has at most 21 digits before the point, 22 behind it and 3 in the exponent, which
//!   holds what JavaScript and Python write and every integer of 64 bits, and more where the schema's own
//!   numbers need them. Of a divisor that needs too large an automaton, the first thousand multiples on
//!   either side of zero are written, or those next to the bound.
//! * A format may be enforced more narrowly than its standard has it.
//! * Where a name is written twice the last value counts. Where members must be counted, or differ, no name
//!   that is not declared is written twice; such objects have at most 4,096 of those, and arrays of distinct
//!   items as many items.
//! * What can be read in very many ways with distinct items is only followed in 64 of them.
//!
//! Items that must be distinct, and names, are compared as they are written (`memory.rs`, `distinct.rs`):
//! what would equal an earlier one cannot be completed. Schemas that must not hold become conditions on the
//! members of an object (`object.rs`), which add up where alternatives would multiply.
//!
//! What is refused of JSON Schema: `uniqueItems` where it does not show that there are as many distinct items
//! as there must be; `unevaluated*`, `uniqueItems` and inexact formats where they are negated; and references
//! out of the document. A dialect that the document does not explain is read as the drafts agree, and what
//! some of them do not know may not be negated. `tests/suite/refused.txt` shows what that means for the
//! official test suite.
//!
//! Two options change what a schema means. [`AdditionalProperties::Closed`] keeps out members that a schema
//! which names some does not name, unless it says something of the others; schemas of one object close it
//! together (`schema/closed.rs`). [`Enforcement::Relaxed`] leaves out what would be refused, or would exceed
//! a limit, so that the grammar allows more and never less; [`Grammar::relaxed`] tells what
//! (`schema/relax.rs`). Each tool says for itself whether it is relaxed.
//!
//! Regular expressions are read as ECMA-262 has them in schemas, as Python's in Lark, and elsewhere as Rust's
//! with what Python has besides. All have look-ahead and look-behind, `(?P<name>…)`, flags, `\A`, `\Z`, `\b`,
//! comments, Unicode's properties. `\d`, `\w` and `\b` are of ASCII; `\s` is ASCII's white space, in schemas
//! ECMA-262's, which has Unicode's too. `(?u)` asks for Unicode in each. `(?i)` ignores the case of all
//! letters by Unicode's simple case folding, and as in ECMA-262 only with `(?u)` takes a letter of ASCII for
//! one beyond (`k` and the Kelvin sign). `$` and `\Z` are the end of the text, never the place before a
//! newline at its end. Schemas search for a pattern, all others match it from end to end. Refused by name and
//! place: back-references, recursion, conditions, atomic groups and possessive repetitions whose parts have
//! several lengths, what two of the three syntaxes read differently, and whose automaton would exceed a
//! limit. Of the format `regex` texts with up to five groups open at once are allowed, without names and
//! back-references.
//!
//! Grammars as text, each dialect named by the caller:
//!
//! * GBNF ([`Grammar::compile_gbnf`]): rules, literals, classes, `.`, groups, `|`, `* + ? {m} {m,} {m,n}`,
//!   `<token>`, `<[7]>` and their negation by `!`.
//! * XGrammar's EBNF ([`Grammar::compile_ebnf`]): the same with its own escapes and layout, `Token`,
//!   `ExcludeToken` and `Regex`; no look-ahead of rules, no `TagDispatch`, no rule attributes.
//! * Lark as llguidance has it ([`Grammar::compile_lark`]): rules, terminals with `&` and `~`, regular
//!   expressions, ranges, tokens, `%ignore`, `%import common.X`, `%llguidance`, `%json`, `%lark`, `%regex`,
//!   and the attributes of rules; no priorities, parametric rules or other directives. There is no lexer: a
//!   text is accepted when any way of reading it fits. The text that `stop` finds is part of the output.
//!
//! A rule in Lark with `max_tokens` ends once so many tokens have begun within it, wherever it is, but within
//! no character; [`Matcher::temperature`] is what its `temperature` asks for. [`GrammarSyntax::of`] tells
//! Lark from EBNF where a client sends either.
//!
//! A regular expression in a grammar may look around within its own text; where it would depend on what
//! stands before or behind it, it is refused.
//!
//! Left recursion works in all of them. Rules that are used must be defined and derive something.
//!
//! Structural tags ([`Grammar::compile_structural_tag`]) and tool calls ([`Grammar::compile_tools`]) mix free
//! text with constrained parts. Free text is UTF-8 without special tokens; its markers may be text or special
//! tokens, which [`Vocabulary::with_special`] names.
//!
//! Costs: a state known already costs a lookup, a new one the work on its readings
//! and one pass over the vocabulary. Each grammar keeps at most `max_lazy_states` states and
//! `max_cache_bytes` bytes; beyond that its tables start anew and running matchers move over. What grammars
//! share is kept by the vocabulary, bounded by [`Vocabulary::with_cache_bytes`]; [`Grammar::n_bytes`] and
//! [`Vocabulary::n_cache_bytes`] tell what is held. The tables are behind one lock per grammar, taken once
//! per call, and what is shared behind one per vocabulary, held for single look-ups. Where the schema's text
//! is nested, recursion is bounded by `max_source_depth`; nothing recurses over the output.

mod ahead;
mod all_but;
mod alphabet;
mod array;
mod beginnings;
mod cache;
mod classes;
mod closure;
mod constraint;
mod counts;
mod decimal;
mod dfa;
mod distinct;
mod distinct_masks;
mod divisor;
mod ebnf;
mod error;
mod extent;
mod fill;
mod free_text;
mod grammar;
mod grammar_cache;
mod hash;
mod history;
mod ir;
mod json;
mod keys;
mod lengths;
mod limits;
mod mark;
mod mask;
mod matcher;
mod memory;
mod minimal;
mod nesting;
mod number;
mod object;
mod open;
mod parting;
mod pattern;
mod pieces;
mod plenty;
mod portable;
mod records;
mod rivals;
mod rows;
mod schema;
mod stacks;
mod step;
mod suffixes;
mod sweep;
mod tables;
mod tags;
mod text;
mod tokens;
mod tools;
mod trie;
mod vocabulary;
mod walk;

pub use constraint::Constraint;
pub use ebnf::GrammarSyntax;
pub use error::{CompileError, MatchError, VocabularyError};
pub use grammar::Grammar;
pub use grammar_cache::GrammarCache;
pub use limits::Limits;
pub use mask::TokenMask;
pub use matcher::Matcher;
pub use schema::{
    AdditionalProperties, Draft, Enforcement, FormatPolicy, PropertyOrder, Relaxed, SchemaOptions, Whitespace,
};
pub use tools::{CallFormat, ParallelCalls, Tool, ToolChoice, ToolSpec};
pub use vocabulary::Vocabulary;
