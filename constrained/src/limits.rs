//! What a grammar may cost. Every limit has a name, and the name is in the error of the request that hits it.

/// Bounds on compiling and on running one grammar; the defaults suit a server that reads strangers' schemas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of schema, regex or grammar text.
    pub max_source_bytes: usize,
    /// Nesting of the source text, and chains of references within it.
    pub max_source_depth: usize,
    /// Rules of a grammar's text.
    pub max_rules: usize,
    /// Nodes of the compiled grammar.
    pub max_nodes: usize,
    /// States of one byte automaton.
    pub max_automaton_states: usize,
    /// Alternatives that `anyOf`, `oneOf`, `if`, `not` and `dependent*` of one schema multiply out to.
    pub max_branches: usize,
    /// Units of work while compiling; one is about the cost of one automaton edge. One regular expression may
    /// take a quarter of it.
    pub max_compile_work: u64,
    /// Containers, and parts of a text grammar's rules, open at once in the output. Masks keep an output
    /// within it, and begin nothing that could not be completed there. Where an output can be read in several
    /// ways that go on alike, the one with the fewest open counts.
    pub max_output_depth: u32,
    /// Ways in which one place of the output may begin.
    pub max_readings: usize,
    /// Lazily built states kept by one grammar; beyond it the tables start anew.
    pub max_lazy_states: usize,
    /// Bytes of masks and transitions kept by one grammar; beyond it the tables start anew.
    pub max_cache_bytes: usize,
    /// Bytes that are looked ahead for forced text.
    pub max_forced_bytes: usize,
    /// Spaces and tabs that may begin a line of JSON.
    pub max_indent: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_source_bytes: 1 << 20,
            max_source_depth: 96,
            max_rules: 10_000,
            max_nodes: 200_000,
            max_automaton_states: 8_192,
            max_branches: 256,
            max_compile_work: 18_000_000,
            max_output_depth: 256,
            max_readings: 16_384,
            max_lazy_states: 50_000,
            max_cache_bytes: 64 << 20,
            max_forced_bytes: 512,
            max_indent: 128,
        }
    }
}
