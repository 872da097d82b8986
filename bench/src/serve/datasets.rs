//! Workloads that are drawn: questions about shared documents, chats, answers in the form of a schema.

use serde_json::{Map, Value, json};

use super::arguments::{Arguments, Backend};
use super::workload::{self, Ask, Extent, Prompts};
use crate::http::BenchError;
use crate::random::Random;

/// A request is `--rag-documents-per-request` documents in the order in which they were found, then its
/// question.
pub(super) fn rag(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Vec<Ask>, BenchError> {
    let data = &arguments.data;
    let (n_documents, n_wanted) = (data.rag_documents, data.rag_documents_per_request);
    if n_wanted > n_documents {
        return Err(BenchError::Check(format!(
            "--rag-documents-per-request is {n_wanted}, --rag-documents only {n_documents}"
        )));
    }
    let documents: Result<Vec<String>, BenchError> = (0..n_documents)
        .map(|_| prompts.draw(data.rag_document_len, Extent::Part, random))
        .collect();
    let documents = documents?;
    let asks = (0..arguments.num_prompts).map(|_| {
        let found = by_popularity(n_documents as usize, n_wanted as usize, data.rag_zipf, random);
        let question = prompts.draw(data.rag_question_len, Extent::Part, random)?;
        let texts = found.iter().map(|i| documents[*i].as_str());
        let parts: Vec<&str> = texts.chain([question.as_str()]).collect();
        Ok(prompts.ask(parts.join("\n\n"), data.rag_output_len))
    });
    asks.collect()
}

/// `n_wanted` of `n` things, none twice; the thing of rank r is drawn in proportion to 1 / r^`exponent`.
pub(crate) fn by_popularity(n: usize, n_wanted: usize, exponent: f64, random: &mut Random) -> Vec<usize> {
    let mut weights: Vec<f64> = (1..=n).map(|rank| (rank as f64).powf(-exponent)).collect();
    let draw = |_| {
        let mut left = random.unit() * weights.iter().sum::<f64>();
        let below = |weight: &f64| {
            left -= weight;
            *weight > 0.0 && left < 0.0
        };
        // Rounding may leave a little beyond the last one.
        let drawn = weights.iter().position(below);
        let drawn = drawn.or_else(|| weights.iter().rposition(|weight| *weight > 0.0));
        let drawn = drawn.expect("no more are wanted than there are");
        weights[drawn] = 0.0;
        drawn
    };
    (0..n_wanted).map(draw).collect()
}

/// All chats begin with the same text, before the first question.
pub(super) fn multi_turn(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Vec<Vec<Ask>>, BenchError> {
    let data = &arguments.data;
    let system = prompts.draw(data.multi_turn_system_len, Extent::Part, random)?;
    let mut turn = |turn: u32| {
        let question = prompts.draw(data.multi_turn_question_len, Extent::Part, random)?;
        let prompt = match turn {
            0 => format!("{system}\n\n{question}"),
            _ => question,
        };
        Ok(prompts.ask(prompt, data.multi_turn_output_len))
    };
    let mut chat = |_| (0..data.multi_turn_turns).map(&mut turn).collect();
    (0..data.multi_turn_chats).map(&mut chat).collect()
}

/// A text and the wish for an object that describes it. The objects are bounded, so that an answer ends by
/// itself.
pub(super) fn json_schema(
    arguments: &Arguments,
    prompts: &Prompts,
    random: &mut Random,
) -> Result<Vec<Ask>, BenchError> {
    let chats = [
        Backend::ArboraChat,
        Backend::LlamaServerChat,
        Backend::LmdeployChat,
        Backend::SglangOaiChat,
        Backend::VllmChat,
    ];
    if !chats.contains(&arguments.backend) {
        let message = "json-schema asks by response_format: choose one of the -chat backends";
        return Err(BenchError::Check(message.to_owned()));
    }
    let schemas: Vec<Value> = (0..arguments.data.json_schemas).map(|_| schema(random)).collect();
    let mut asks = workload::random_asks(arguments, prompts, random)?;
    for (ask, schema) in asks.iter_mut().zip(schemas.iter().cycle()) {
        ask.prompt.push_str("\n\nDescribe this as JSON.");
        let format = json!({
            "type": "json_schema",
            "json_schema": { "name": "description", "strict": true, "schema": schema },
        });
        // An object is complete when it is closed.
        ask.fields = Map::from_iter([
            ("response_format".to_owned(), format),
            ("ignore_eos".to_owned(), json!(false)),
        ]);
    }
    Ok(asks)
}

fn schema(random: &mut Random) -> Value {
    let n = 3 + random.below(4);
    let mut properties = Map::new();
    while properties.len() < n {
        let (name, kind) = (random.text(1), random.below(5));
        let property = match kind {
            0 => json!({ "type": "string", "maxLength": 24 }),
            1 => json!({ "type": "integer", "minimum": 0, "maximum": 9999 }),
            2 => json!({ "type": "boolean" }),
            3 => json!({ "enum": [random.text(1), random.text(2), random.text(3)] }),
            _ => json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 4 }),
        };
        properties.insert(name, property);
    }
    let required: Vec<&String> = properties.keys().collect();
    json!({ "type": "object", "required": required, "additionalProperties": false, "properties": properties })
}

/// Whether `answer` is an object with exactly the names that `ask` wants; `None` where it wants no object.
pub(super) fn is_wanted_object(ask: &Ask, answer: &str) -> Option<bool> {
    let required = ask.fields.get("response_format")?["json_schema"]["schema"]["required"].as_array()?;
    let names: Vec<&str> = required.iter().filter_map(Value::as_str).collect();
    let object: Option<Map<String, Value>> = serde_json::from_str(answer).ok();
    Some(object.is_some_and(|object| {
        object.len() == names.len() && names.iter().all(|name| object.contains_key(*name))
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::arguments::tests::parse;
    use super::super::workload::Load;
    use super::*;

    fn load(words: &str) -> Result<Load, BenchError> {
        let words: Vec<&str> = words.split_whitespace().collect();
        let arguments = parse(&words).expect("valid");
        let prompts = Prompts::load(None).expect("nothing is read");
        workload::load(&arguments, &prompts, &mut Random(arguments.seed))
    }

    #[test]
    fn requests_share_whole_documents_and_no_question() {
        let load = load(
            "--dataset-name rag --num-prompts 40 --rag-documents 5 --rag-document-len 30 \
             --rag-documents-per-request 2 --rag-question-len 6 --rag-output-len 9",
        )
        .expect("possible");
        let (mut documents, mut questions) = (BTreeSet::new(), BTreeSet::new());
        for ask in load.chats.iter().flatten() {
            let parts: Vec<&str> = ask.prompt.split("\n\n").collect();
            assert_eq!(parts.len(), 3);
            assert_ne!(parts[0], parts[1], "no document twice");
            documents.extend(parts[..2].iter().map(ToString::to_string));
            questions.insert(parts[2].to_owned());
            assert_eq!(ask.output_len, 9);
        }
        assert_eq!((documents.len(), questions.len()), (5, 40));
    }

    #[test]
    fn more_documents_than_there_are_is_an_error() {
        let words = "--dataset-name rag --rag-documents 2 --rag-documents-per-request 3";
        let error = load(words).expect_err("impossible").to_string();
        assert!(error.contains('3') && error.contains('2'), "{error}");
    }

    #[test]
    fn popularity_follows_the_exponent() {
        let mut random = Random(4);
        let mut counts = [0_usize; 4];
        for _ in 0..20_000 {
            counts[by_popularity(4, 1, 1.0, &mut random)[0]] += 1;
        }
        // 1, 1/2, 1/3, 1/4 of their sum, 25/12.
        for (rank, n) in counts.into_iter().enumerate() {
            let expected = 20_000.0 * 12.0 / 25.0 / (rank + 1) as f64;
            assert!((n as f64 - expected).abs() < 0.06 * expected, "{counts:?}");
        }
        let all: BTreeSet<usize> = by_popularity(9, 9, 2.0, &mut random).into_iter().collect();
        assert_eq!(all.len(), 9);
    }

    #[test]
    fn chats_begin_alike_and_go_on_by_themselves() {
        let load = load(
            "--dataset-name multi-turn --multi-turn-chats 3 --multi-turn-turns 4 \
             --multi-turn-system-len 20 --multi-turn-question-len 5",
        )
        .expect("possible");
        assert_eq!(load.chats.len(), 3);
        let systems: BTreeSet<&str> = load
            .chats
            .iter()
            .map(|chat| chat[0].prompt.split_once("\n\n").expect("two parts").0)
            .collect();
        assert_eq!(systems.len(), 1);
        let later = load.chats.iter().flat_map(|chat| &chat[1..]);
        let later: BTreeSet<&str> = later.map(|ask| ask.prompt.as_str()).collect();
        assert_eq!(later.len(), 9);
        assert!(later.iter().all(|question| question.split(' ').count() == 5));
    }

    #[test]
    fn schemas_are_for_chats_and_answers_are_compared_with_them() {
        let words = "--dataset-name json-schema --num-prompts 6 --json-schemas 2 --random-input-len 9";
        assert!(load(words).is_err(), "the default backend completes texts");
        let load = load(&format!("{words} --backend arbora-chat")).expect("possible");
        let asks: Vec<&Ask> = load.chats.iter().flatten().collect();
        let schemas: BTreeSet<String> = asks
            .iter()
            .map(|ask| ask.fields["response_format"].to_string())
            .collect();
        assert_eq!((asks.len(), schemas.len()), (6, 2));
        let schema = &asks[0].fields["response_format"]["json_schema"]["schema"];
        let names = schema["required"].as_array().expect("a list");
        let whole = names
            .iter()
            .map(|name| (name.as_str().expect("a name").to_owned(), json!(1)));
        let whole = Value::Object(whole.collect()).to_string();
        assert_eq!(is_wanted_object(asks[0], &whole), Some(true));
        assert_eq!(is_wanted_object(asks[0], "{}"), Some(false));
        assert_eq!(is_wanted_object(asks[0], &whole[..whole.len() - 1]), Some(false));
        assert_eq!(is_wanted_object(&Ask::default(), &whole), None);
    }
}
