//! The JSON of Text Generation Inference (TGI): requests, answers, and errors in its shape.

pub mod request;
pub mod response;
