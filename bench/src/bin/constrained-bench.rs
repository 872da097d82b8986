//! `constrained-bench`: times compilation, masks and advances of the grammar engine. One JSON request a line
//! on stdin, one JSON reply a line on stdout, in order: `init`, `compile` (a `schema`, or the text of another
//! `kind`), `walk`, `wander`, `quit`. A bad request is answered with `{"ok":false,"error":…}`.

use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use arbora_constrained::{
    Constraint, Grammar, GrammarCache, Limits, PropertyOrder, SchemaOptions, TokenMask, Vocabulary,
    Whitespace,
};
use serde_json::{Value, json};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of the cache that repeated schemas are found in.
const CACHE_BYTES: usize = 256 << 20;
/// Bytes of one request line.
const MAX_LINE_BYTES: u64 = 64 << 20;

#[derive(Default)]
struct State {
    vocabulary: Option<Arc<Vocabulary>>,
    tokenizer: Option<tokenizers::Tokenizer>,
    whitespace: Whitespace,
    grammar: Option<Grammar>,
    cache: Option<GrammarCache>,
}

fn main() -> ExitCode {
    match serve(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell if stderr is gone too.
            let _ = writeln!(io::stderr(), "constrained-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(input: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    let mut state = State::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let n_bytes = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if n_bytes == 0 {
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let request: Result<Value, _> = serde_json::from_slice(&line);
        let reply = match request {
            Err(error) => Err(format!("the request is not JSON: {error}")),
            Ok(request) => match request["op"].as_str() {
                Some("init") => state.init(&request),
                Some("compile") => state.compile(&request),
                Some("walk") => state.walk(&request),
                Some("wander") => state.wander(&request),
                Some("quit") => return Ok(()),
                _ => Err("`op` is none of init, compile, walk, wander, quit".to_owned()),
            },
        };
        let reply = reply.unwrap_or_else(|error| json!({ "ok": false, "error": error }));
        writeln!(output, "{reply}")?;
        output.flush()?;
    }
}

impl State {
    fn init(&mut self, request: &Value) -> Result<Value, String> {
        let begin = Instant::now();
        let path = request["vocab"].as_str().ok_or("`vocab` is missing")?;
        let n_vocab = request["n_vocab"].as_u64().filter(|n| *n <= 1 << 24);
        let n_vocab = n_vocab.ok_or("`n_vocab` is missing or above 2^24")? as usize;
        let eos = request["eos"].as_u64().and_then(|eos| u32::try_from(eos).ok());
        let eos = eos.ok_or("`eos` is missing")?;
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let mut tokens: Vec<Option<Vec<u8>>> = vec![None; n_vocab];
        for line in text.lines() {
            let token: Value = serde_json::from_str(line).map_err(|error| format!("{path}: {error}"))?;
            let id = token["id"]
                .as_u64()
                .ok_or_else(|| format!("{path}: a token without an id"))?;
            let bytes = token["hex"].as_str().and_then(unhex);
            let bytes = bytes.ok_or_else(|| format!("{path}: token {id} has no bytes"))?;
            let slot = tokens
                .get_mut(id as usize)
                .ok_or_else(|| format!("{path}: token {id} is too large"))?;
            *slot = (token["special"] != Value::Bool(true)).then_some(bytes);
        }
        let vocabulary = Vocabulary::new(tokens, &[eos]).map_err(|error| error.to_string())?;
        self.tokenizer = match request["tokenizer"].as_str() {
            None | Some("") => None,
            Some(path) => {
                Some(tokenizers::Tokenizer::from_file(path).map_err(|error| format!("{path}: {error}"))?)
            }
        };
        let vocabulary = Arc::new(vocabulary);
        self.cache = Some(GrammarCache::new(vocabulary.clone(), CACHE_BYTES));
        self.vocabulary = Some(vocabulary);
        self.whitespace = whitespace(&request["options"], Whitespace::Any);
        self.grammar = None;
        Ok(json!({
            "ok": true,
            "name": "arbora",
            "version": env!("CARGO_PKG_VERSION"),
            "init_us": begin.elapsed().as_micros() as u64,
        }))
    }

    fn compile(&mut self, request: &Value) -> Result<Value, String> {
        let vocabulary = self.vocabulary.as_ref().ok_or("`init` comes first")?;
        let schema = request["schema"].as_str().ok_or("`schema` is missing")?;
        let options = SchemaOptions {
            whitespace: whitespace(&request["options"], self.whitespace),
            order: order(&request["options"])?,
            ..SchemaOptions::default()
        };
        let constraint = match request["kind"].as_str() {
            None | Some("json_schema") => Constraint::JsonSchema { schema, options },
            Some("gbnf") => Constraint::Gbnf(schema),
            Some("ebnf") => Constraint::Ebnf {
                text: schema,
                root: "root",
            },
            Some("lark") => Constraint::Lark {
                text: schema,
                options,
            },
            Some("regex") => Constraint::Regex(schema),
            Some("structural_tag") => Constraint::StructuralTag {
                text: schema,
                options,
            },
            Some(kind) => return Err(format!("`kind` is `{kind}`, which is no constraint")),
        };
        let limits = Limits::default();
        self.grammar = None;
        let begin = Instant::now();
        let grammar = Grammar::compile(vocabulary, &constraint, &limits);
        let compile_us = begin.elapsed().as_nanos() as f64 / 1e3;
        let grammar = grammar.map_err(|error| error.to_string())?;
        let n_bytes = grammar.n_bytes();
        self.grammar = Some(grammar);
        let mut again_us = 0.0;
        if let Some(cache) = self.cache.as_ref().filter(|_| request["again"] == true) {
            let ask = || {
                let grammar = cache.compile(&constraint, &limits);
                grammar
                    .map(|grammar| grammar.matcher().mask())
                    .map_err(|error| error.to_string())
            };
            ask()?;
            let begin = Instant::now();
            let mask = ask();
            again_us = begin.elapsed().as_nanos() as f64 / 1e3;
            mask?;
        }
        Ok(json!({ "ok": true, "compile_us": compile_us, "again_us": again_us, "n_bytes": n_bytes }))
    }

    /// A walk of up to `n` random allowed tokens, the same for the same `seed`.
    fn wander(&mut self, request: &Value) -> Result<Value, String> {
        let grammar = self.grammar.as_ref().ok_or("no grammar was compiled")?;
        let n = request["n"].as_u64().ok_or("`n` is missing")?;
        let mut random = request["seed"].as_u64().ok_or("`seed` is missing")?;
        let mut matcher = grammar.matcher();
        let (mut mask_ns, mut adv_ns) = (vec![], vec![]);
        for _ in 0..n {
            let begin = Instant::now();
            let mask = matcher.mask();
            mask_ns.push(begin.elapsed().as_nanos() as u64);
            let eos = grammar.vocabulary().eos();
            let allowed = (0..mask.n_vocab()).filter(|token| mask.allows(*token) && !eos.contains(token));
            let allowed: Vec<u32> = allowed.collect();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let Some(token) = allowed.get((random >> 33) as usize % allowed.len().max(1)) else {
                break;
            };
            let begin = Instant::now();
            matcher.advance(*token).map_err(|error| error.to_string())?;
            adv_ns.push(begin.elapsed().as_nanos() as u64);
        }
        let n_bytes = grammar.n_bytes();
        Ok(json!({ "ok": true, "mask_ns": mask_ns, "adv_ns": adv_ns, "n_bytes": n_bytes }))
    }

    fn walk(&mut self, request: &Value) -> Result<Value, String> {
        let grammar = self.grammar.as_ref().ok_or("no grammar was compiled")?;
        let tokens = request["tokens"].as_array().ok_or("`tokens` is missing")?;
        let tokens: Option<Vec<u32>> = tokens
            .iter()
            .map(|token| u32::try_from(token.as_u64()?).ok())
            .collect();
        let tokens = tokens.ok_or("`tokens` holds something that is no token")?;
        let wants_hash = request["want"]
            .as_array()
            .is_some_and(|want| want.contains(&json!("hash")));
        let begin = Instant::now();
        let mut matcher = grammar.matcher();
        let new_ns = begin.elapsed().as_nanos() as u64;
        let (mut mask_ns, mut adv_ns, mut allowed, mut hash) = (vec![], vec![], vec![], vec![]);
        let (mut n_accepted, mut has_eos) = (0, false);
        for at in 0..=tokens.len() {
            let begin = Instant::now();
            let mask = matcher.mask();
            mask_ns.push(begin.elapsed().as_nanos() as u64);
            allowed.push(mask.n_allowed());
            if wants_hash {
                hash.push(format!("{:08x}", crc32(&mask)));
            }
            let Some(token) = tokens.get(at) else {
                has_eos = grammar.vocabulary().eos().iter().any(|eos| mask.allows(*eos));
                break;
            };
            if !mask.allows(*token) {
                break;
            }
            let begin = Instant::now();
            matcher.advance(*token).map_err(|error| error.to_string())?;
            adv_ns.push(begin.elapsed().as_nanos() as u64);
            n_accepted += 1;
        }
        let n_forced = self.n_forced(grammar, &tokens[..n_accepted]);
        Ok(json!({
            "ok": true, "accepted": n_accepted, "eos": has_eos, "mask_ns": mask_ns, "adv_ns": adv_ns,
            "allowed": allowed, "hash": hash, "ff": n_forced, "new_ns": new_ns, "n_bytes": grammar.n_bytes(),
        }))
    }

    /// How many of `tokens` a draft of forced text would have proposed.
    fn n_forced(&self, grammar: &Grammar, tokens: &[u32]) -> usize {
        /// Committed tokens that the tokenizer sees before the forced text.
        const N_RECENT: usize = 4;
        let Some(tokenizer) = &self.tokenizer else {
            return 0;
        };
        let tokenise = |text: &[u8]| match std::str::from_utf8(text) {
            Ok(text) => tokenizer
                .encode_fast(text, false)
                .map_or(vec![], |found| found.get_ids().to_vec()),
            Err(_) => Vec::new(),
        };
        let (mut matcher, mut at, mut n_forced) = (grammar.matcher(), 0, 0);
        while at < tokens.len() {
            let recent = &tokens[at.saturating_sub(N_RECENT)..at];
            let draft = matcher.forced(recent, tokenise);
            let n_right = draft
                .iter()
                .zip(&tokens[at..])
                .take_while(|(a, b)| a == b)
                .count();
            n_forced += n_right;
            // The model's own forward yields the token after the draft too.
            let end = tokens.len().min(at + n_right + 1);
            for token in &tokens[at..end] {
                if matcher.advance(*token).is_err() {
                    return n_forced;
                }
            }
            at = end;
        }
        n_forced
    }
}

/// Any order of members, as JSON Schema has it, unless the options say `"order": "schema"`.
fn order(options: &Value) -> Result<PropertyOrder, String> {
    match options["order"].as_str() {
        None | Some("any") => Ok(PropertyOrder::Any),
        Some("schema") => Ok(PropertyOrder::Schema),
        Some(other) => Err(format!("`order` is `{other}`, not `any` or `schema`")),
    }
}

fn whitespace(options: &Value, default: Whitespace) -> Whitespace {
    match options["any_whitespace"].as_bool() {
        Some(true) => Whitespace::Any,
        Some(false) => Whitespace::None,
        None => default,
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let pairs = digits
        .chunks(2)
        .map(|pair| Some((*pair.first()? << 4 | *pair.get(1)?) as u8));
    pairs.collect()
}

/// CRC-32 of the mask's bits as little-endian words of 32.
fn crc32(mask: &TokenMask) -> u32 {
    let mut words = vec![0u32; (mask.n_vocab() as usize).div_ceil(32)];
    mask.write_bits(&mut words);
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(requests: &str) -> Vec<Value> {
        let mut out = Vec::new();
        serve(&mut requests.as_bytes(), &mut out).expect("memory is always writable");
        let lines = std::str::from_utf8(&out).expect("JSON is text").lines();
        lines
            .map(|line| serde_json::from_str(line).expect("a reply is JSON"))
            .collect()
    }

    #[test]
    fn bad_requests_are_answered_and_the_next_one_is_served() {
        let found = replies(
            "{\n[]\n{\"op\":\"walk\"}\n{\"op\":\"init\",\"vocab\":\"/nowhere\"}\n{\"op\":\"quit\"}\n{}\n",
        );
        assert_eq!(found.len(), 4);
        assert!(
            found
                .iter()
                .all(|reply| reply["ok"] == false && reply["error"].is_string())
        );
    }

    #[test]
    fn the_hash_is_the_usual_crc_32() {
        let tokens = (0..32).map(|_| Some(b"a".to_vec()));
        let vocabulary = Arc::new(Vocabulary::new(tokens, &[]).expect("32 tokens"));
        let grammar = Grammar::compile_choice(&vocabulary, &["a"], &Limits::default()).expect("one choice");
        let mask = grammar.matcher().mask();
        // CRC-32 of four bytes 0xff.
        assert_eq!((mask.n_allowed(), crc32(&mask)), (32, 0xFFFF_FFFF));
    }
}
