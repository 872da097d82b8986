//! The JSON of Ollama's API: requests and answers. Streams are lines of JSON, errors a text alone.

pub mod request;
pub mod response;
