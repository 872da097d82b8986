//! Log-probabilities in the shapes that clients know.
//!
//! ```text
//! chat         {content: [{token, logprob, bytes, top_logprobs: [{token, logprob, bytes}]}]}
//! completions  {tokens, token_logprobs, top_logprobs: [{token: logprob}], text_offset}
//! prompts      [null, {id: {logprob, rank, decoded_token}}, ...]        vLLM's `prompt_logprobs`
//! ```
//!
//! All are of the model itself, before temperature, penalties, bias or a grammar. Tokens are shown as they
//! are spelled, control tokens too. The stop token that ends an answer is listed in completions, whose
//! clients count on one entry for each token that was drawn, and left out in chats.

use std::sync::Arc;

use arbora_runtime::request::{LogprobsWanted, RowLogprobs, TokenLogprob};
use arbora_runtime::tokenizer::Tokenizer;

use crate::wire::response::{
    ChatLogprobs, ChatToken, ChatTokenLogprobs, PromptLogprobs, PromptTokenLogprob, TextLogprobs,
};

/// What stands for minus infinity, which JSON does not have. OpenAI's number.
const IMPOSSIBLE: f32 = -9999.0;

/// Writes down the log-probabilities of one request.
#[derive(Debug)]
pub struct LogprobWriter {
    tokenizer: Arc<Tokenizer>,
    wanted: LogprobsWanted,
    /// Characters that each choice's text has so far.
    offsets: Vec<usize>,
}

impl LogprobWriter {
    /// A writer for `n_choices` choices.
    pub fn new(tokenizer: Arc<Tokenizer>, wanted: LogprobsWanted, n_choices: usize) -> Self {
        LogprobWriter {
            tokenizer,
            wanted,
            offsets: vec![0; n_choices],
        }
    }

    /// Whether those of the prompt are to come.
    pub fn awaits_prompt(&self) -> bool {
        self.wanted.prompt.is_some()
    }

    /// Those of a chat's answer, or of a part of it.
    pub fn chat(&self, rows: &[RowLogprobs]) -> Option<ChatLogprobs> {
        self.wanted.output?;
        let content = rows.iter().map(|row| ChatTokenLogprobs {
            token: self.chat_token(&row.token),
            top_logprobs: row.top.iter().map(|token| self.chat_token(token)).collect(),
        });
        Some(ChatLogprobs {
            content: content.collect(),
            refusal: None,
        })
    }

    /// Those of a completion's text, or of the next part of it. `first` is a prompt's first token, of which
    /// the model says nothing.
    pub fn text(&mut self, choice: usize, first: Option<u32>, rows: &[RowLogprobs]) -> Option<TextLogprobs> {
        let n_top = self.wanted.output?;
        let mut out = TextLogprobs::default();
        if let Some(token) = first {
            self.put(choice, token, &mut out);
            out.token_logprobs.push(None);
            out.top_logprobs.push(None);
        }
        for row in rows {
            self.put(choice, row.token.token, &mut out);
            out.token_logprobs.push(Some(finite(row.token.logprob)));
            // Clients expect the token itself among them.
            let listed = row.top.iter().take(n_top).chain([&row.token]);
            let listed = listed.map(|token| (self.text_of(token.token), finite(token.logprob)));
            out.top_logprobs.push(Some(listed.collect()));
        }
        Some(out)
    }

    /// Those of a prompt by token id.
    pub fn prompt(&self, rows: &[RowLogprobs]) -> PromptLogprobs {
        let one = |token: &TokenLogprob| {
            let shown = PromptTokenLogprob {
                logprob: finite(token.logprob),
                rank: token.rank,
                decoded_token: lossy(self.tokenizer.token_bytes(token.token)),
            };
            (token.token, shown)
        };
        let told = rows
            .iter()
            .map(|row| Some(row.top.iter().chain([&row.token]).map(one).collect()));
        std::iter::once(None).chain(told).collect()
    }

    fn put(&mut self, choice: usize, token: u32, out: &mut TextLogprobs) {
        out.tokens.push(self.text_of(token));
        out.text_offset.push(self.offsets[choice]);
        if !self.tokenizer.is_special(token) {
            let begins = |byte: &&u8| !(0x80..0xC0).contains(*byte);
            self.offsets[choice] += self.tokenizer.token_bytes(token).iter().filter(begins).count();
        }
    }

    fn chat_token(&self, token: &TokenLogprob) -> ChatToken {
        let bytes = self.tokenizer.token_bytes(token.token);
        ChatToken {
            token: lossy(bytes),
            logprob: finite(token.logprob),
            bytes: bytes.to_vec(),
        }
    }

    /// Half a character is spelled as OpenAI does it: `bytes:\xe2\x82`.
    fn text_of(&self, token: u32) -> String {
        let bytes = self.tokenizer.token_bytes(token);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                let hex = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
                std::iter::once("bytes:".to_owned()).chain(hex).collect()
            }
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The number that stands for a log-probability in JSON.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u32 = 0xC3;

    fn writer(output: usize) -> LogprobWriter {
        let wanted = LogprobsWanted {
            output: Some(output),
            ..LogprobsWanted::default()
        };
        LogprobWriter::new(Arc::new(Tokenizer::of_bytes(256)), wanted, 1)
    }

    fn row(token: u32, logprob: f32, top: &[(u32, f32)]) -> RowLogprobs {
        let told = |(token, logprob)| TokenLogprob {
            token,
            logprob,
            rank: 1,
        };
        RowLogprobs {
            token: told((token, logprob)),
            top: top.iter().copied().map(told).collect(),
            listed: Vec::new(),
        }
    }

    fn json(value: impl serde::Serialize) -> String {
        serde_json::to_string(&value).expect("serializable")
    }

    #[test]
    fn a_chats_are_openais_byte_for_byte() {
        let rows = [row(u32::from(b'a'), -0.5, &[(HALF, -0.25)])];
        assert_eq!(
            json(writer(1).chat(&rows)),
            r#"{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[{"token":"�","logprob":-0.25,"bytes":[195]}]}],"refusal":null}"#
        );
    }

    #[test]
    fn a_completions_are_lists_of_one_length_with_offsets_in_characters() {
        let mut writer = writer(1);
        let rows = [
            row(HALF, -1.0, &[(u32::from(b'b'), -0.5)]),
            row(0xA9, f32::NEG_INFINITY, &[]),
        ];
        assert_eq!(
            json(writer.text(0, Some(u32::from(b'x')), &rows)),
            r#"{"tokens":["x","bytes:\\xc3","bytes:\\xa9"],"token_logprobs":[null,-1.0,-9999.0],"top_logprobs":[null,{"b":-0.5,"bytes:\\xc3":-1.0},{"bytes:\\xa9":-9999.0}],"text_offset":[0,1,2]}"#
        );
        let next = writer.text(0, None, &[row(u32::from(b'y'), 0.0, &[])]);
        assert_eq!(
            next.expect("wanted").text_offset,
            [2],
            "the two halves are one character"
        );
    }

    #[test]
    fn a_prompts_are_vllms() {
        let rows = [row(u32::from(b'a'), -2.0, &[(u32::from(b'b'), -0.5)])];
        assert_eq!(
            json(writer(0).prompt(&rows)),
            r#"[null,{"97":{"logprob":-2.0,"rank":1,"decoded_token":"a"},"98":{"logprob":-0.5,"rank":1,"decoded_token":"b"}}]"#
        );
    }
}
