//! Grammar-constrained decoding (JSON Schema, regex, EBNF) as token masks and forced text.
//!
//! Nothing lives here yet: requests that ask for constrained output are refused by the frontend with a 400
//! that names the field. The crate exists so that its place in the dependency graph is fixed: it depends on
//! no other crate of the workspace.
