//! The JSON of OpenAI's Responses API: requests, the items that they and answers are made of, and answers.

pub mod items;
pub mod request;
pub mod response;
