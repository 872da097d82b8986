//! Tokenizers from a `tokenizer.json`, the file format of Hugging Face's `tokenizers`.
//!
//! What the file asks for is either done exactly or refused by name; nothing in it is passed over that would
//! change a token. Its patterns run here, in linear time, not in a backtracking engine.

use serde::Deserialize;
use tokenizers::models::bpe::{Merges, Vocab};

use super::bytes::ByteAlphabet;
use super::normalize::{Lead, Normalizer, SPACE_MARK, Step};
use super::split::{Pattern, Splitter, Stage};
use super::{Parts, Spelling, TokenKind, Tokenizer, TokenizerError, bad_entry};
use crate::model::metadata::Strings;

/// Most stages of cutting and steps of normalization.
const MAX_STAGES: usize = 16;

/// What the files beside `tokenizer.json` say.
#[derive(Clone, Debug)]
pub struct JsonSettings<'a> {
    /// Name of the token that starts a sequence.
    pub bos: Option<&'a str>,
    /// Name of the token that ends one.
    pub eos: Option<&'a str>,
    /// Name of the token that fills up rows; one that the vocabulary has not is no token.
    pub pad: Option<&'a str>,
    /// Whether a prompt starts with BOS; where absent, `tokenizer.json` says.
    pub add_bos: Option<bool>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Rows of the model's embedding; ids are below it.
    pub n_vocab: usize,
}

#[derive(Deserialize)]
struct KindOnly {
    model: Kind,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerJson>,
    pre_tokenizer: Option<PreTokenizerJson>,
    post_processor: Option<PostProcessorJson>,
    model: Bpe,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: Vocab,
    merges: Vec<Merge>,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum NormalizerJson {
    Sequence {
        normalizers: Vec<NormalizerJson>,
    },
    #[serde(rename = "NFC")]
    FormC,
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: PatternJson,
        content: String,
    },
}

#[derive(Deserialize)]
enum PatternJson {
    String(String),
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizerJson {
    Sequence {
        pretokenizers: Vec<PreTokenizerJson>,
    },
    ByteLevel {
        #[serde(default = "yes")]
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Split {
        pattern: PatternJson,
        behavior: String,
        #[serde(default)]
        invert: bool,
    },
    Digits {
        #[serde(default)]
        individual_digits: bool,
    },
    Metaspace {
        replacement: String,
        prepend_scheme: Option<String>,
        add_prefix_space: Option<bool>,
        #[serde(default = "yes")]
        split: bool,
    },
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessorJson {
    Sequence { processors: Vec<PostProcessorJson> },
    ByteLevel {},
    TemplateProcessing { single: Vec<TemplatePart> },
}

#[derive(Deserialize)]
enum TemplatePart {
    SpecialToken { id: String },
    Sequence {},
}

/// What is to be done with text before the merges.
#[derive(Default)]
struct Preparation {
    normalizer: Normalizer,
    splitter: Splitter,
    is_byte_level: bool,
}

impl Tokenizer {
    /// Builds the tokenizer that the bytes of a `tokenizer.json` describe.
    pub fn from_json(json: &[u8], settings: &JsonSettings<'_>) -> Result<Tokenizer, TokenizerError> {
        let kind = serde_json::from_slice::<KindOnly>(json)?.model.kind;
        if let Some(found) = kind.filter(|kind| kind != "BPE") {
            return Err(TokenizerError::UnsupportedModel { found });
        }
        let file: File = serde_json::from_slice(json)?;
        refuse_in_model(&file.model)?;
        let mut preparation = Preparation::default();
        preparation.normalizer.steps = steps(file.normalizer)?;
        preparation.pre_tokenize(file.pre_tokenizer)?;
        let spelling = match (preparation.is_byte_level, file.model.byte_fallback) {
            (true, false) => Spelling::ByteLevel(Box::new(ByteAlphabet::new())),
            (false, true) => Spelling::SentencePiece,
            (_, fallback) => return Err(unsupported("byte_fallback", &fallback)),
        };
        let first_token = first_token(file.post_processor)?;
        let (tokens, kinds) = token_table(&file.model.vocab, &file.added_tokens, settings.n_vocab)?;
        let id_of = |name: Option<&str>| match name {
            None => Ok(None),
            Some(name) => special_id(&tokens, &kinds, name).map(Some),
        };
        let eos = id_of(settings.eos)?;
        let bos = id_of(settings.bos.or(first_token.as_deref()))?;
        if let Some(first) = &first_token
            && id_of(Some(first))? != bos
        {
            return Err(unsupported("post_processor", first));
        }
        let mut stop_token_ids = settings.eos_token_ids.clone();
        if let Some(&beyond) = stop_token_ids.iter().find(|&&id| id as usize >= settings.n_vocab) {
            return Err(unsupported("eos_token_id", &beyond));
        }
        stop_token_ids.extend(eos);
        let is_made = |id: u32| matches!(kinds[id as usize], TokenKind::Normal | TokenKind::UserDefined);
        let found_normalized = file.added_tokens.iter().filter(|token| token.normalized);
        Tokenizer::assemble(Parts {
            found_normalized: found_normalized.map(|token| token.id).collect(),
            vocabulary: file
                .model
                .vocab
                .into_iter()
                .filter(|(_, id)| is_made(*id))
                .collect(),
            merges: pairs(file.model.merges)?,
            ignore_merges: file.model.ignore_merges,
            normalizer: preparation.normalizer,
            splitter: preparation.splitter,
            spelling,
            bos,
            eos,
            pad: settings
                .pad
                .and_then(|name| special_id(&tokens, &kinds, name).ok()),
            add_bos: settings.add_bos.unwrap_or(first_token.is_some()),
            stop_token_ids,
            tokens,
            kinds,
        })
    }
}

fn unsupported(what: &'static str, value: &dyn std::fmt::Display) -> TokenizerError {
    let value = value.to_string();
    TokenizerError::Unsupported { what, value }
}

fn refuse_in_model(model: &Bpe) -> Result<(), TokenizerError> {
    if let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0) {
        return Err(unsupported("dropout", &dropout));
    }
    let affixes = [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ];
    for (what, affix) in affixes {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return Err(unsupported(what, affix));
        }
    }
    Ok(())
}

/// The steps of a normalizer, sequences within sequences laid flat.
fn steps(normalizer: Option<NormalizerJson>) -> Result<Vec<Step>, TokenizerError> {
    let mut steps = Vec::new();
    let mut open: Vec<NormalizerJson> = normalizer.into_iter().collect();
    while let Some(next) = open.pop() {
        match next {
            NormalizerJson::Sequence { normalizers } => open.extend(normalizers.into_iter().rev()),
            NormalizerJson::FormC => steps.push(Step::FormC),
            NormalizerJson::Prepend { prepend } => steps.push(Step::Prepend(prepend)),
            NormalizerJson::Replace { pattern, content } => match pattern {
                PatternJson::String(from) if !from.is_empty() => steps.push(Step::Replace(from, content)),
                PatternJson::String(other) | PatternJson::Regex(other) => {
                    return Err(unsupported("normalizer.Replace.pattern", &other));
                }
            },
        }
        if steps.len() > MAX_STAGES {
            return Err(unsupported("normalizers", &format!("more than {MAX_STAGES}")));
        }
    }
    Ok(steps)
}

impl Preparation {
    fn pre_tokenize(&mut self, pre_tokenizer: Option<PreTokenizerJson>) -> Result<(), TokenizerError> {
        let mut open: Vec<PreTokenizerJson> = pre_tokenizer.into_iter().collect();
        while let Some(next) = open.pop() {
            if self.is_byte_level {
                // Whatever followed would see the byte alphabet instead of text.
                return Err(unsupported("pretokenizers", &"something after ByteLevel"));
            }
            match next {
                PreTokenizerJson::Sequence { pretokenizers } => open.extend(pretokenizers.into_iter().rev()),
                leaf => self.stage(leaf)?,
            }
            if self.splitter.stages.len() > MAX_STAGES {
                return Err(unsupported("pretokenizers", &format!("more than {MAX_STAGES}")));
            }
        }
        Ok(())
    }

    fn stage(&mut self, leaf: PreTokenizerJson) -> Result<(), TokenizerError> {
        let stages = &mut self.splitter.stages;
        match leaf {
            PreTokenizerJson::Sequence { .. } => unreachable!("sequences are laid flat"),
            PreTokenizerJson::ByteLevel {
                add_prefix_space,
                use_regex,
            } => {
                if add_prefix_space {
                    return Err(unsupported("add_prefix_space", &true));
                }
                if use_regex {
                    stages.push(Stage::gpt_2());
                }
                self.is_byte_level = true;
            }
            PreTokenizerJson::Split {
                pattern,
                behavior,
                invert,
            } => {
                if behavior != "Isolated" || invert {
                    return Err(unsupported(
                        "Split.behavior",
                        &format!("{behavior}, invert {invert}"),
                    ));
                }
                let pattern = match pattern {
                    PatternJson::Regex(pattern) => pattern,
                    PatternJson::String(text) => escape(&text),
                };
                stages.push(Stage::Pattern(Pattern::new(&pattern)?));
            }
            PreTokenizerJson::Digits { individual_digits } => stages.push(match individual_digits {
                true => Stage::Digits,
                false => Stage::DigitRuns,
            }),
            PreTokenizerJson::Metaspace {
                replacement,
                prepend_scheme,
                add_prefix_space,
                split,
            } => {
                if replacement != SPACE_MARK || !stages.is_empty() || self.normalizer.marks.is_some() {
                    return Err(unsupported("Metaspace", &replacement));
                }
                self.normalizer.marks = Some(match (prepend_scheme.as_deref(), add_prefix_space) {
                    (Some("always"), _) | (None, None | Some(true)) => Lead::Always,
                    (Some("first"), _) => Lead::First,
                    (Some("never"), _) | (None, Some(false)) => Lead::Never,
                    (Some(other), _) => return Err(unsupported("prepend_scheme", &other)),
                });
                if split {
                    stages.push(Stage::Marks);
                }
            }
        }
        Ok(())
    }
}

/// A text as the pattern of itself.
fn escape(text: &str) -> String {
    let escaped = text
        .chars()
        .map(|character| format!(r"\x{{{:x}}}", u32::from(character)));
    escaped.collect()
}

/// The token that is put before a text, where there is one. Anything put after it is refused.
fn first_token(post_processor: Option<PostProcessorJson>) -> Result<Option<String>, TokenizerError> {
    let mut found = None;
    let mut open: Vec<PostProcessorJson> = post_processor.into_iter().collect();
    while let Some(next) = open.pop() {
        let single = match next {
            PostProcessorJson::Sequence { processors } => {
                open.extend(processors);
                continue;
            }
            PostProcessorJson::ByteLevel {} => continue,
            PostProcessorJson::TemplateProcessing { single } => single,
        };
        let name = match single.as_slice() {
            [TemplatePart::Sequence {}] => continue,
            [TemplatePart::SpecialToken { id }, TemplatePart::Sequence {}] => id.clone(),
            _ => {
                return Err(unsupported(
                    "TemplateProcessing",
                    &"more than one token before the text",
                ));
            }
        };
        if found.replace(name).is_some() {
            return Err(unsupported("post_processor", &"two templates"));
        }
    }
    Ok(found)
}

/// Texts and kinds by id; ids that no token has are unused.
fn token_table(
    vocabulary: &Vocab,
    added: &[Added],
    n_vocab: usize,
) -> Result<(Strings, Vec<TokenKind>), TokenizerError> {
    let named = vocabulary
        .iter()
        .map(|(text, id)| (*id, text.as_str(), TokenKind::Normal));
    let kind = |token: &Added| match token.special {
        true => TokenKind::Control,
        false => TokenKind::UserDefined,
    };
    let extra = added
        .iter()
        .map(|token| (token.id, token.content.as_str(), kind(token)));
    let largest = named
        .clone()
        .chain(extra.clone())
        .map(|(id, _, _)| id as usize)
        .max();
    let n_tokens = largest.map_or(0, |id| id.saturating_add(1));
    if n_tokens > n_vocab {
        return Err(TokenizerError::BadEntry {
            what: "token id",
            idx: n_tokens - 1,
            text: n_tokens.saturating_sub(1).to_string(),
            reason: "is beyond the rows of the embedding",
        });
    }
    let mut table: Vec<(&str, TokenKind)> = vec![("", TokenKind::Unused); n_tokens];
    for (id, text, kind) in named {
        let (idx, entry) = (id as usize, &mut table[id as usize]);
        if entry.1 != TokenKind::Unused {
            return Err(bad_entry("token", idx, text, "has an id that another token has"));
        }
        *entry = (text, kind);
    }
    for token in added {
        if token.single_word || token.lstrip || token.rstrip {
            return Err(unsupported("single_word, lstrip or rstrip", &token.content));
        }
    }
    for (id, text, kind) in extra {
        let (idx, entry) = (id as usize, &mut table[id as usize]);
        if entry.1 != TokenKind::Unused && entry.0 != text {
            return Err(bad_entry(
                "added token",
                idx,
                text,
                "has an id that another token has",
            ));
        }
        *entry = (text, kind);
    }
    let (texts, kinds): (Vec<&str>, Vec<TokenKind>) = table.into_iter().unzip();
    Ok((texts.into_iter().collect(), kinds))
}

fn special_id(tokens: &Strings, kinds: &[TokenKind], name: &str) -> Result<u32, TokenizerError> {
    let is_it = |(idx, text): &(usize, &str)| *text == name && kinds[*idx] != TokenKind::Unused;
    match tokens.iter().enumerate().find(is_it) {
        Some((idx, _)) => Ok(idx as u32),
        None => Err(unsupported("bos_token or eos_token", &name)),
    }
}

fn pairs(merges: Vec<Merge>) -> Result<Merges, TokenizerError> {
    let pair = |(idx, merge)| match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Text(text) => match text.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(bad_entry("merge", idx, &text, "is no pair")),
        },
    };
    merges.into_iter().enumerate().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::tokenizer::SpecialTokens;

    const SETTINGS: JsonSettings<'static> = JsonSettings {
        bos: None,
        eos: None,
        pad: None,
        add_bos: None,
        eos_token_ids: Vec::new(),
        n_vocab: 400,
    };

    fn added(id: u32, content: &str, special: bool, normalized: bool) -> Json {
        json!({"id": id, "content": content, "special": special, "normalized": normalized,
            "single_word": false, "lstrip": false, "rstrip": false})
    }

    /// Byte level, a few merges, three added tokens.
    fn byte_level() -> Json {
        let alphabet = ByteAlphabet::new();
        let mut vocab = serde_json::Map::new();
        for byte in 0..=255u8 {
            vocab.insert(alphabet.char_of(byte).to_string(), json!(byte));
        }
        let merges = ["t h", "th e", "\u{120} the", "\u{120} \u{120}", "1 2"];
        for (idx, merge) in merges.iter().enumerate() {
            vocab.insert(merge.replace(' ', ""), json!(256 + idx));
        }
        json!({
            "added_tokens": [
                added(261, "<|end|>", true, false),
                added(262, "<tool>", false, false),
                added(263, "the\u{e9}", false, true),
            ],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true, "trim_offsets": true},
            "post_processor": null,
            "decoder": null,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        })
    }

    fn build(json: &Json) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_json(json.to_string().as_bytes(), &SETTINGS)
    }

    const TEXTS: [&str; 14] = [
        "",
        " ",
        "the the  the",
        "a\n\n  b \t c ",
        "<|end|>the<tool> the\u{e9}",
        "the\u{65}\u{301}",
        "12 1234 x12",
        "don't we'LL",
        "\u{1F642}\u{0}\u{7f}",
        "  <tool>  ",
        "\u{a0}nbsp \u{2003}em",
        "(a)[b]{c}!?",
        "日本 語",
        "9\u{663}\u{2167}\u{bd}",
    ];

    /// Compares with the crate's own pipeline, which backtracks and is right about short texts.
    #[track_caller]
    fn same_as_the_crate(json: &Json) {
        let ours = build(json).expect("ours");
        let theirs = tokenizers::Tokenizer::from_bytes(json.to_string()).expect("theirs");
        for text in TEXTS {
            let expected = theirs.encode(text, false).expect("encodes");
            let found = ours.encode(text, SpecialTokens::Parse).expect("encodes");
            assert_eq!(found, expected.get_ids(), "{text:?}");
        }
    }

    #[test]
    fn every_way_of_cutting_gives_the_tokens_of_the_crate() {
        same_as_the_crate(&byte_level());
        let stages = [
            json!([]),
            json!([{"type": "Digits", "individual_digits": true}]),
            json!([{"type": "Digits", "individual_digits": false}]),
            json!([{"type": "Split", "pattern": {"String": "th"}, "behavior": "Isolated", "invert": false}]),
            json!([{"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)|\\s+"},
                    "behavior": "Isolated", "invert": false}]),
            json!([{"type": "Split", "pattern": {"Regex": "[a-h]+"}, "behavior": "Isolated", "invert": false},
                   {"type": "Digits", "individual_digits": true}]),
        ];
        for before in stages {
            for use_regex in [true, false] {
                let mut json = byte_level();
                let mut all = before.as_array().expect("a list").clone();
                all.push(json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex, "trim_offsets": true}));
                json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": all});
                same_as_the_crate(&json);
            }
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Json), expected: &str| {
            let mut json = byte_level();
            change(&mut json);
            let error = build(&json).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        };
        let split = |pattern: &str, behavior: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})
        };
        refused(
            &|json| json["model"]["type"] = json!("Unigram"),
            "`Unigram` is not supported",
        );
        refused(&|json| json["normalizer"] = json!({"type": "NFKC"}), "NFKC");
        refused(
            &|json| json["pre_tokenizer"] = json!({"type": "Whitespace"}),
            "Whitespace",
        );
        refused(
            &|json| json["pre_tokenizer"] = json!({"type": "ByteLevel"}),
            "add_prefix_space",
        );
        refused(&|json| json["pre_tokenizer"] = Json::Null, "byte_fallback");
        refused(
            &|json| json["pre_tokenizer"] = split("a(?=b)", "Isolated"),
            "look-around",
        );
        refused(
            &|json| json["pre_tokenizer"] = split("(a)\\1", "Isolated"),
            "backreferences",
        );
        refused(
            &|json| json["pre_tokenizer"] = split("a?+", "Isolated"),
            "possessive",
        );
        refused(&|json| json["pre_tokenizer"] = split("a", "Removed"), "Removed");
        refused(
            &|json| json["pre_tokenizer"] = split("(\\w{1000}){1000}", "Isolated"),
            "cannot use the pattern",
        );
        refused(
            &|json| json["post_processor"] = json!({"type": "BertProcessing"}),
            "BertProcessing",
        );
        refused(&|json| json["model"]["dropout"] = json!(0.1), "`dropout`");
        refused(
            &|json| json["model"]["end_of_word_suffix"] = json!("</w>"),
            "`end_of_word_suffix`",
        );
        refused(&|json| json["model"]["merges"] = json!(["t"]), "is no pair");
        refused(
            &|json| json["model"]["merges"] = json!(["x yz"]),
            "building the merges",
        );
        refused(
            &|json| json["model"]["vocab"]["zz"] = json!(7),
            "has an id that another token has",
        );
        refused(
            &|json| json["model"]["vocab"]["zz"] = json!(400),
            "beyond the rows of the embedding",
        );
        refused(
            &|json| json["model"]["vocab"]["zz"] = json!(u32::MAX),
            "beyond the rows",
        );
        refused(&|json| json["model"]["vocab"]["zz"] = json!(-1), "invalid value");
        refused(&|json| json["added_tokens"][0]["rstrip"] = json!(true), "rstrip");
        refused(
            &|json| json["added_tokens"][0]["id"] = json!(5),
            "has an id that another token has",
        );
        for cut in [1, 1000, 2500] {
            let text = byte_level().to_string();
            Tokenizer::from_json(&text.as_bytes()[..cut], &SETTINGS).expect_err("cut short");
        }
        let unknown = JsonSettings {
            eos: Some("</s>"),
            ..SETTINGS
        };
        let error =
            Tokenizer::from_json(byte_level().to_string().as_bytes(), &unknown).expect_err("no such token");
        assert!(error.to_string().contains("</s>"), "{error}");
    }

    #[test]
    fn a_pad_token_is_one_of_the_vocabulary_or_none() {
        let pad = |pad| {
            let settings = JsonSettings { pad, ..SETTINGS };
            let tokenizer = Tokenizer::from_json(byte_level().to_string().as_bytes(), &settings);
            tokenizer.expect("good").pad()
        };
        assert_eq!(pad(Some("<|end|>")), Some(261));
        assert_eq!(pad(Some("<pad>")), None, "the model does well without");
        assert_eq!(pad(None), None);
    }

    #[test]
    fn bos_comes_from_the_template_or_the_settings() {
        let mut json = byte_level();
        json["post_processor"] = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
        let tokenizer = build(&json).expect("good");
        assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (Some(261), true));
        let off = JsonSettings {
            add_bos: Some(false),
            ..SETTINGS
        };
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), &off).expect("good");
        assert!(!tokenizer.add_bos());
        json["post_processor"]["single"] =
            json!([{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|end|>"}}]);
        let error = build(&json).expect_err("something behind the text").to_string();
        assert!(error.contains("TemplateProcessing"), "{error}");
    }
}
