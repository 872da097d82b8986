//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shape; the first in TGI's too.

use std::sync::Arc;

use arbora_runtime::tokenizer::Tokenizer;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{App, conversation, tgi};
use crate::body::RequestBody;
use crate::prompt::PromptEncoder;
use crate::wire::error::ApiError;
use crate::wire::tokens::{DetokenizeRequest, DetokenizeResponse, Text, TokenizeBody, TokenizeResponse};

/// The tokens of a text or of a rendered chat; of a body with `inputs` in TGI's words.
pub async fn tokenize(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    let (request, admitted) = body.parse(&app, TokenizeBody::parse).await?;
    let request = match request {
        TokenizeBody::Vllm(request) => request,
        TokenizeBody::Tgi(request) => {
            let tokens = tgi::tokenize(&app, &admitted, request).await?;
            return Ok(Json(tokens).into_response());
        }
    };
    let served = &app.models.find(request.model.as_deref()).await?;
    let tokens = match request.text {
        Text::Plain { text, bos } => {
            // How long a text is may be asked of any.
            let encode = move |encoder: &PromptEncoder| encoder.text(&text, bos, usize::MAX);
            app.encode(served, &admitted, encode).await?
        }
        Text::Chat(conversation) => {
            conversation::prompt((&app, served), &admitted, conversation)
                .await?
                .tokens
        }
    };
    let spelled =
        |id: &u32| String::from_utf8_lossy(served.encoder.tokenizer().token_bytes(*id)).into_owned();
    let answer = TokenizeResponse {
        count: tokens.len(),
        max_model_len: served.engine.context(),
        token_strs: request.with_strings.then(|| tokens.iter().map(spelled).collect()),
        tokens,
    };
    Ok(Json(answer).into_response())
}

/// The text of tokens, control tokens spelled out.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    body: RequestBody,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let (request, _admitted) = body.parse(&app, DetokenizeRequest::parse).await?;
    let served = &app.models.find(request.model.as_deref()).await?;
    let tokenizer = served.encoder.tokenizer();
    if let Some((position, token)) = unknown(&request.tokens, tokenizer) {
        let n_vocab = tokenizer.n_vocab();
        let message = format!("'tokens[{position}]' is {token}, the vocabulary has {n_vocab} tokens.");
        return Err(ApiError::invalid(format!("tokens[{position}]"), message));
    }
    let bytes = request
        .tokens
        .iter()
        .flat_map(|&id| tokenizer.token_bytes(id))
        .copied();
    let bytes: Vec<u8> = bytes.collect();
    Ok(Json(DetokenizeResponse {
        prompt: String::from_utf8_lossy(&bytes).into_owned(),
    }))
}

/// What a client without the model's files has to know of its tokenizer, by the names that they have in a
/// `tokenizer_config.json`; besides, the ids of the tokens.
pub async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = &app.models.find(None).await?;
    let tokenizer = served.encoder.tokenizer();
    let name = |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.token_bytes(id)));
    let (bos, eos, pad) = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
    Ok(Json(json!({
        // The class that reads any `tokenizer.json`.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.n_vocab(),
        "model_max_length": served.engine.context(),
        "add_bos_token": tokenizer.add_bos(),
        "bos_token": name(bos),
        "bos_token_id": bos,
        "eos_token": name(eos),
        "eos_token_id": eos,
        "pad_token": name(pad),
        "pad_token_id": pad,
        "chat_template": served.encoder.template_source(),
    })))
}

fn unknown(tokens: &[u32], tokenizer: &Tokenizer) -> Option<(usize, u32)> {
    let is_unknown = |(_, token): &(usize, u32)| *token as usize >= tokenizer.n_vocab();
    tokens.iter().copied().enumerate().find(is_unknown)
}
