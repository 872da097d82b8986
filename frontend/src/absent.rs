//! Routes that clients of other servers know and this one does not have: their 404 says what is missing.

use crate::wire::error::ApiError;

/// What a path begins with, and what is said of it.
const ABSENT: [(&str, &str); 16] = [
    (
        "/v1/moderations",
        "Moderation is not supported: no model of this server classifies texts.",
    ),
    (
        "/v1/images",
        "Images are not supported: models of this server read and write text.",
    ),
    (
        "/v1/audio",
        "Audio is not supported: models of this server read and write text.",
    ),
    (
        "/v1/videos",
        "Videos are not supported: models of this server read and write text.",
    ),
    (
        "/v1/realtime",
        "Realtime sessions are not supported; use POST /v1/responses with 'stream'.",
    ),
    ("/v1/files", "Files are not supported: send texts in requests."),
    (
        "/v1/batches",
        "Batches are not supported: send requests one by one, with 'priority' where they can wait.",
    ),
    (
        "/v1/fine_tuning",
        "Fine-tuning is not supported: models are served as they are.",
    ),
    (
        "/v1/assistants",
        "Assistants are not supported; use POST /v1/responses.",
    ),
    (
        "/v1/threads",
        "Threads are not supported; use POST /v1/responses.",
    ),
    (
        "/v1/vector_stores",
        "Vector stores are not supported; use POST /v1/embeddings.",
    ),
    (
        "/api/create",
        "Models are not created here: start the server with '--model'.",
    ),
    (
        "/api/copy",
        "Models are not copied here: 'aliases' in the configuration gives one further names.",
    ),
    ("/api/push", "Models are not pushed from here."),
    (
        "/api/delete",
        "Models are not deleted here: an operator's POST /models/unload unloads one.",
    ),
    (
        "/api/blobs",
        "Files of models are not sent here: start the server with '--model'.",
    ),
];

/// The error that a request for `path` gets, which no route is for.
pub(crate) fn error(path: &str) -> ApiError {
    let is_it = |(beginning, _): &&(&str, &str)| {
        let rest = path.strip_prefix(*beginning);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match ABSENT.iter().find(is_it) {
        Some((_, what)) => ApiError::NotOffered { what },
        None => ApiError::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_under_a_route_is_missing_with_it_and_nothing_else() {
        for (path, is_known) in [
            ("/v1/images", true),
            ("/v1/images/generations", true),
            ("/v1/imagesque", false),
            ("/api/create", true),
            ("/nowhere", false),
        ] {
            let found = error(path);
            assert_eq!(found != ApiError::NotFound, is_known, "{path}: {found}");
        }
    }
}
