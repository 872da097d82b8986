//! `serve`: load on a running server, with the flags and the metrics of SGLang's `bench_serving`.
//!
//! ```text
//! duration            from just before the first request to the end of the last answer, seconds
//! completed, failed   answers that came whole; the rest, each with its error
//! total_input_tokens  what the server counted in the prompts of completed requests (`usage`)
//! total_output_tokens what it counted in their outputs
//! request_throughput  completed / duration; input_, output_ and total_throughput likewise by tokens
//! latency (E2E)       from sending a request, connecting included, to the last event of its stream; the
//!                     wait for a free place under --max-concurrency is not in it
//! TTFT                from sending to the first piece of text; of an answer not streamed, its latency
//! TPOT                (latency - TTFT) / (output tokens - 1), one value per request of two tokens or more
//! ITL                 the time between two pieces of text, divided by the tokens in the later one and
//!                     counted once for each of them; values of all requests in one list
//! concurrency         sum of latencies / duration: how many requests were open on average
//! accept_length       tokens per decoding step where the server drafts: its own `avg_spec_accept_length`, or
//!                     output tokens / (output tokens - accepted drafts) from `usage`
//! cache_hit_rate      cached prompt tokens / prompt tokens, over the requests whose usage tells; of
//!                     `multi-turn` by turns too (cache_hit_rate_by_turn)
//! hit_requests        completed requests of which any prompt token was cached
//! later_ttft          TTFT of the turns after the first
//! request_goodput     requests that keep to every bound of --goodput / duration; good_share is their part of
//!                     all requests, failed ones included. vLLM's definition: an output of one token has no
//!                     TPOT and keeps to any
//! valid_objects       answers to `json-schema` that are objects with exactly the names wanted
//! max_output_tokens_per_s, max_concurrent_requests
//!                     the fullest of the whole seconds since the first request
//! ```
//!
//! Only completed requests count. Percentiles interpolate between neighbours, the deviation is that of the
//! population. A figure without a value is `null`, where SGLang prints 0.
//!
//! How many tokens a piece of text has: what its `usage` adds, where pieces carry one; else one, if there are
//! as many pieces as output tokens; else what `--tokenizer` makes of it; else one, and the report says so.
//!
//! What differs from SGLang's: its `random` cuts prompts from a data set of chats, here they are random
//! words; it takes input lengths from its own tokenizer, here they are the server's; the same seed draws
//! other numbers. As there, the first prompt is in the server's cache after the warm-up unless
//! `--flush-cache` empties it.

mod arguments;
mod breakdown;
mod datasets;
mod files;
mod load;
mod metrics;
mod report;
mod wire;
mod workload;

use std::io::Write;
use std::time::Duration;

use serde_json::Value;

pub(crate) use self::arguments::Arguments;
use self::arguments::Backend;
use self::breakdown::Breakdown;
pub(crate) use self::datasets::by_popularity;
pub(crate) use self::files::Line as TraceLine;
use self::load::Run;
use self::metrics::Metrics;
use self::report::Measured;
use self::wire::{Api, Client};
use self::workload::{Ask, Load, Prompts};
use crate::http::{self, BenchError, Target};
use crate::machine;
use crate::random::Random;

/// A burst of requests makes the last one wait for all others.
const READ_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// A warm-up needs no long output.
const WARMUP_OUTPUT_LEN: u32 = 32;

/// Sends the load and prints the report to `out`. Fails when no request completed.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let url = arguments.url();
    let target = Target {
        authority: http::authority(&url)?,
        api_key: arguments.api_key.as_deref(),
        read_timeout: READ_TIMEOUT,
    };
    let (model, date) = model(arguments, target)?;
    let client = Client {
        target,
        api: Api::of(arguments.backend, arguments.dataset_name),
        model: &model,
        options: arguments,
    };
    let mut random = Random(arguments.seed);
    let prompts = Prompts::load(arguments.tokenizer.as_deref())?;
    let load = workload::load(arguments, &prompts, &mut random)?;
    let asks: Vec<Ask> = load.chats.concat();
    let run = send(&client, &load, &mut random)?;
    let server_info = server_info(arguments.backend, target)?;
    let measured = Measured {
        metrics: Metrics::of(&run, &prompts, server_info.as_ref()),
        breakdown: Breakdown::of(&run, &asks, &arguments.goodput),
        run,
    };
    let header = report::Header {
        arguments,
        url: &url,
        model: &model,
        machine: machine::describe(),
        date,
        server_info,
    };
    report::print(&header, &measured, out)?;
    if let Some(path) = &arguments.output_file {
        let asks = arguments.output_details.then_some(asks.as_slice());
        report::append(path, &report::line(&header, &measured, asks))?;
    }
    let metrics = &measured.metrics;
    match metrics.first_error() {
        Some(error) if metrics.completed == 0 => {
            let n = metrics.failed();
            Err(BenchError::Check(format!("all {n} requests failed: {error}")))
        }
        _ => Ok(()),
    }
}

/// Warms the server up and sends everything.
fn send(client: &Client<'_>, load: &Load, random: &mut Random) -> Result<Run, BenchError> {
    let arguments = client.options;
    let n = load.chats.len();
    let n_workers = arguments.n_workers(n)?;
    let arrivals = load.arrivals.clone();
    let arrivals = arrivals.unwrap_or_else(|| workload::arrivals(n, arguments.request_rate, random));
    warm_up(client, &load.chats[0][0])?;
    if arguments.flush_cache {
        http::fetch(client.target, "/flush_cache", Some(""))?;
    }
    load::run(client, &load.chats, &arrivals, n_workers)
}

/// `--model`, or the first one the server lists; and the date of its answer.
fn model(arguments: &Arguments, target: Target<'_>) -> Result<(String, Option<String>), BenchError> {
    let listed = http::fetch(target, "/v1/models", None);
    let (head, body) = match (&arguments.model, listed) {
        // A server need not list its models to those who know the name.
        (Some(model), Err(BenchError::Status { .. })) => return Ok((model.clone(), None)),
        (_, listed) => listed?,
    };
    let date = head.header("date").map(str::to_owned);
    if let Some(model) = &arguments.model {
        return Ok((model.clone(), date));
    }
    let models: Value = serde_json::from_str(&body).unwrap_or_default();
    let model = models["data"][0]["id"].as_str().map(str::to_owned);
    let field = "model; name one with --model";
    Ok((model.ok_or(BenchError::Answer { field, body })?, date))
}

/// One after the other, with the first prompt, which is in the server's cache from then on.
fn warm_up(client: &Client<'_>, first: &Ask) -> Result<(), BenchError> {
    let ask = Ask {
        output_len: first.output_len.min(WARMUP_OUTPUT_LEN),
        ..first.clone()
    };
    let n = client.options.warmup_requests;
    let failed: Vec<BenchError> = (0..n).filter_map(|_| client.complete(&[], &ask).err()).collect();
    match failed.first() {
        Some(error) if failed.len() == n as usize => {
            Err(BenchError::Check(format!("the warm-up failed: {error}")))
        }
        _ => Ok(()),
    }
}

/// What SGLang's servers, and those that copy its routes, say of themselves.
fn server_info(backend: Backend, target: Target<'_>) -> Result<Option<Value>, BenchError> {
    if !backend.has_server_info() {
        return Ok(None);
    }
    match http::fetch(target, "/get_server_info", None) {
        Ok((_, body)) => Ok(serde_json::from_str(&body).ok()),
        Err(BenchError::Status { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::{self, JoinHandle};

    use serde_json::json;

    use super::arguments::tests::parse;
    use super::*;

    /// A server that gives each connection the next of `answers`, byte by byte what stands there, and then
    /// closes it; and what it was asked.
    fn scripted(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let served = thread::spawn(move || {
            let serve = |answer: String| {
                let (stream, _) = listener.accept().expect("a client");
                let request = read_request(&stream);
                (&stream).write_all(answer.as_bytes()).expect("the client reads");
                request
            };
            answers.into_iter().map(serve).collect()
        });
        (url, served)
    }

    fn read_request(stream: &TcpStream) -> String {
        let mut reader = BufReader::new(stream);
        let (mut request, mut n_bytes) = (String::new(), 0);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a head");
            if let Some(text) = line.strip_prefix("content-length: ") {
                n_bytes = text.trim().parse().expect("a length");
            }
            request.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; n_bytes];
        reader.read_exact(&mut body).expect("a body");
        request + &String::from_utf8(body).expect("JSON")
    }

    fn plain(status: &str, body: &str) -> String {
        let n_bytes = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {n_bytes}\r\n\r\n{body}")
    }

    fn models() -> String {
        let listed = "HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 27\r\n\r\n";
        format!("{listed}{{\"data\":[{{\"id\":\"a-model\"}}]}}")
    }

    /// Chunks of an event each; no end.
    fn open_stream(events: &[String]) -> String {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = |event: &String| {
            let data = format!("data: {event}\n\n");
            format!("{:x}\r\n{data}\r\n", data.len())
        };
        events
            .iter()
            .map(chunk)
            .fold(head.to_owned(), |all, chunk| all + &chunk)
    }

    fn stream(events: &[String]) -> String {
        open_stream(events) + "0\r\n\r\n"
    }

    fn text(text: &str) -> String {
        json!({ "choices": [{ "text": text }] }).to_string()
    }

    fn usage(prompt: u64, output: u64, cached: u64) -> String {
        json!({ "choices": [], "usage": {
            "prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": { "cached_tokens": cached },
        } })
        .to_string()
    }

    fn done() -> String {
        "[DONE]".to_owned()
    }

    /// One request at a time, so that the script's order is the requests'.
    fn bench(url: &str, words: &str) -> (Result<(), BenchError>, String) {
        let words = format!("--base-url {url} --max-concurrency 1 --warmup-requests 0 {words}");
        let words: Vec<&str> = words.split(' ').collect();
        let mut out = Vec::new();
        let outcome = run(&parse(&words).expect("valid"), &mut out);
        (outcome, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn failures_of_every_kind_are_counted_and_shown_beside_what_completed() {
        let complete = [text("a"), text("b"), usage(7, 2, 3), done()];
        let error = json!({ "error": { "message": "out of pages" } }).to_string();
        let (url, served) = scripted(vec![
            models(),
            stream(&complete),
            plain("503 Busy", "{\"error\": \"too many\"}"),
            stream(&[text("a"), error]),
            open_stream(&[text("a")]),
            stream(&[text("a"), usage(7, 2, 3)]),
            stream(&[text("a"), done()]),
            stream(&["{\"choices\"".to_owned()]),
            plain("404 Not Found", ""),
        ]);
        let file = tempfile();
        let line = format!("--num-prompts 7 --output-file {file} --output-details");
        let (outcome, table) = bench(&url, &line);
        outcome.expect("one completed");
        served.join().expect("the script was played");
        for row in ["; today\n", ", a-model\n", "TTFT", "42.9 %"] {
            assert!(table.contains(row), "{table}");
        }
        let text = fs::read_to_string(&file).expect("a line was written");
        fs::remove_file(&file).expect("it was there");
        let line: Value = serde_json::from_str(&text).expect("one line of JSON");
        assert_eq!((&line["completed"], &line["failed"]), (&json!(1), &json!(6)));
        assert_eq!(
            (&line["total_input_tokens"], &line["total_output_tokens"]),
            (&json!(7), &json!(2))
        );
        assert_eq!(line["output_lens"], json!([2, 0, 0, 0, 0, 0, 0]));
        assert_eq!(line["generated_texts"][0], "ab");
        assert_eq!(line["itls"][0].as_array().map(Vec::len), Some(1));
        assert_eq!(line["errors"][0], "");
        let expected = [
            "503",
            "out of pages",
            "end of file",
            "before [DONE]",
            "no usage",
            "no valid JSON",
        ];
        for (i, expected) in expected.into_iter().enumerate() {
            let error = line["errors"][i + 1].as_str().expect("a text");
            assert!(error.contains(expected), "{i}: {error}");
            assert!(table.contains(expected), "{table}");
        }
    }

    /// A path of this test process alone.
    fn tempfile() -> String {
        let name = format!("arbora-bench-serve-{}.jsonl", std::process::id());
        std::env::temp_dir()
            .join(name)
            .to_str()
            .expect("plain")
            .to_owned()
    }

    #[test]
    fn a_run_without_any_answer_fails_with_the_error() {
        let (url, served) = scripted(vec![
            models(),
            plain("500 No", "broken"),
            plain("500 No", "broken"),
        ]);
        let (outcome, table) = bench(&url, "--backend vllm --num-prompts 2");
        served.join().expect("the script was played");
        let error = outcome.expect_err("nothing completed").to_string();
        assert!(
            error.contains("all 2 requests failed") && error.contains("broken"),
            "{error}"
        );
        assert!(
            table.contains("failed 2 times") && table.contains("no values"),
            "{table}"
        );
    }

    #[test]
    fn requests_say_what_the_flags_say() {
        let whole = json!({
            "choices": [{ "message": { "content": "ab" } }],
            "usage": { "prompt_tokens": 5, "completion_tokens": 2 },
        });
        let whole = plain("200 OK", &whole.to_string());
        let (url, served) = scripted(vec![models(), whole.clone(), plain("200 OK", ""), whole]);
        let words = "--backend vllm-chat --num-prompts 1 --random-output-len 40 --random-range-ratio 1 \
                     --disable-stream --disable-ignore-eos --flush-cache --api-key secret \
                     --extra-request-body {\"temperature\":0.5}";
        let words: Vec<&str> = words.split_whitespace().collect();
        let arguments = [&["--base-url", url.as_str()], words.as_slice()].concat();
        let mut out = Vec::new();
        run(&parse(&arguments).expect("valid"), &mut out).expect("it completes");
        let requests = served.join().expect("the script was played");
        assert!(
            requests
                .iter()
                .all(|request| request.contains("authorization: Bearer secret\r\n"))
        );
        let body = |i: usize| -> Value {
            let (_, body) = requests[i].split_once("\r\n\r\n").expect("a body");
            serde_json::from_str(body).expect("JSON")
        };
        assert!(requests[1].starts_with("POST /v1/chat/completions "));
        assert_eq!(body(1)["max_tokens"], 32, "a warm-up is short");
        assert!(requests[2].starts_with("POST /flush_cache "));
        let sent = body(3);
        assert_eq!(
            (&sent["model"], &sent["max_tokens"]),
            (&json!("a-model"), &json!(40))
        );
        assert_eq!(
            (&sent["temperature"], &sent["stream"]),
            (&json!(0.5), &json!(false))
        );
        assert_eq!(
            (&sent["ignore_eos"], &sent["stream_options"]),
            (&json!(false), &Value::Null)
        );
        assert!(sent["messages"][0]["content"].is_string());
    }

    #[test]
    fn events_that_repeat_the_text_are_told_apart() {
        let event = |text: &str, n: u64| {
            let counts = json!({ "prompt_tokens": 4, "completion_tokens": n, "cached_tokens": 1 });
            json!({ "text": text, "meta_info": counts }).to_string()
        };
        let events = [
            event("one", 1),
            event("one two three", 3),
            event("one two three", 4),
            done(),
        ];
        let info = json!({ "internal_states": [{ "avg_spec_accept_length": 2.0 }] });
        let info = plain("200 OK", &info.to_string());
        let (url, served) = scripted(vec![models(), stream(&events), info]);
        let file = format!("{}.generate", tempfile());
        let line = format!("--backend sglang --num-prompts 1 --output-file {file} --output-details");
        let (outcome, _) = bench(&url, &line);
        outcome.expect("it completes");
        let requests = served.join().expect("the script was played");
        assert!(requests[1].contains("\"max_new_tokens\""), "{}", requests[1]);
        let text = fs::read_to_string(&file).expect("a line was written");
        fs::remove_file(&file).expect("it was there");
        let line: Value = serde_json::from_str(&text).expect("one line of JSON");
        assert_eq!(
            (&line["output_lens"][0], &line["accept_length"]),
            (&json!(4), &json!(2.0))
        );
        assert_eq!(line["generated_texts"][0], "one two three");
        assert_eq!(line["itls"][0].as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&line["cache_hit_rate"], &line["total_cached_tokens"]),
            (&json!(0.25), &json!(1))
        );
    }

    /// The server holds every answer back until it has all requests, so they must be in flight together.
    #[test]
    fn answers_in_any_order_stay_with_their_requests() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let authority = listener.local_addr().expect("bound").to_string();
        let n = 8;
        let served = thread::spawn(move || {
            let accept = |_| {
                let (client, _) = listener.accept().expect("a client");
                let request = read_request(&client);
                let (_, body) = request.split_once("\r\n\r\n").expect("a body");
                let body: Value = serde_json::from_str(body).expect("JSON");
                (body["prompt"].as_str().expect("a text").to_owned(), client)
            };
            let mut clients: Vec<(String, TcpStream)> = (0..n).map(accept).collect();
            clients.sort_by(|(a, _), (b, _)| b.cmp(a));
            for (prompt, mut client) in clients {
                let answer = stream(&[text(&prompt), usage(1, 1, 0), done()]);
                client.write_all(answer.as_bytes()).expect("the client reads");
                // Until it has read and closed.
                let _ = client.read(&mut [0]);
            }
        });
        let options = parse(&[]).expect("valid");
        let client = Client {
            target: Target::from(authority.as_str()),
            api: Api::Completions,
            model: "a-model",
            options: &options,
        };
        let ask = |i: usize| Ask {
            prompt: i.to_string(),
            output_len: 1,
            ..Ask::default()
        };
        let asks: Vec<Ask> = (0..n).map(ask).collect();
        let chats: Vec<Vec<Ask>> = asks.iter().map(|ask| vec![ask.clone()]).collect();
        let run = load::run(&client, &chats, &vec![Duration::ZERO; n], n).expect("threads start");
        served.join().expect("the script was played");
        for (ask, outcome) in asks.iter().zip(&run.outcomes) {
            let answer = outcome.answer.as_ref().expect("it completes");
            assert_eq!(answer.pieces[0].text, ask.prompt);
            assert!(outcome.sent + answer.latency <= run.duration);
        }
    }

    fn body(request: &str) -> Value {
        let (_, body) = request.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).expect("JSON")
    }

    #[test]
    fn a_turn_repeats_what_was_said_and_none_follows_a_failure() {
        for (backend, path) in [("vllm", "completions"), ("vllm-chat", "chat/completions")] {
            let event = |word: &str| {
                json!({ "choices": [{ "text": word, "delta": { "content": word } }] }).to_string()
            };
            let complete = |word: &str| stream(&[event(word), usage(9, 1, 4), done()]);
            let (url, served) = scripted(vec![
                models(),
                complete("one"),
                complete("two"),
                plain("503 Busy", "{}"),
            ]);
            let file = format!("{}.{backend}", tempfile());
            let (outcome, table) = bench(
                &url,
                &format!(
                    "--backend {backend} --dataset-name multi-turn --multi-turn-chats 1 --multi-turn-turns 4 \
                     --multi-turn-system-len 3 --multi-turn-question-len 2 --goodput e2el:60000 ttft:60000 \
                     --output-file {file} --output-details"
                ),
            );
            outcome.expect("two turns completed");
            let requests = served.join().expect("the script was played");
            assert!(
                requests[3].starts_with(&format!("POST /v1/{path} ")),
                "{}",
                requests[3]
            );
            let (first, third) = (body(&requests[1]), body(&requests[3]));
            match backend {
                "vllm" => {
                    let begun = first["prompt"].as_str().expect("a text").to_owned() + "one\n\n";
                    let whole = third["prompt"].as_str().expect("a text");
                    assert!(whole.starts_with(&begun) && whole.contains("two\n\n"), "{whole}");
                }
                _ => {
                    let messages = third["messages"].as_array().expect("a list");
                    let said: Vec<&Value> = messages.iter().map(|message| &message["role"]).collect();
                    assert_eq!(said, ["user", "assistant", "user", "assistant", "user"]);
                    assert_eq!(messages[0], first["messages"][0]);
                    assert_eq!(
                        (&messages[1]["content"], &messages[3]["content"]),
                        (&json!("one"), &json!("two"))
                    );
                }
            }
            for row in [
                "Good requests",
                "50.0 %",
                "Cache hit rate of turn 2",
                "44.4 %",
                "TTFT 2+",
            ] {
                assert!(table.contains(row), "{table}");
            }
            let text = fs::read_to_string(&file).expect("a line was written");
            fs::remove_file(&file).expect("it was there");
            let line: Value = serde_json::from_str(&text).expect("one line of JSON");
            assert_eq!((&line["completed"], &line["failed"]), (&json!(2), &json!(2)));
            assert_eq!(
                (&line["good_share"], &line["turns"]),
                (&json!(0.5), &json!([0, 1, 2, 3]))
            );
            assert!(line["errors"][3].as_str().expect("a text").contains("not sent"));
        }
    }

    #[test]
    fn vectors_are_asked_for_and_counted() {
        let answer = |data: &str| {
            plain(
                "200 OK",
                &format!("{{\"data\": {data}, \"usage\": {{\"prompt_tokens\": 6, \"total_tokens\": 6}}}}"),
            )
        };
        let (url, served) = scripted(vec![
            models(),
            answer("[{\"embedding\": [0.5, 0.5]}]"),
            answer("[]"),
        ]);
        let (outcome, table) = bench(&url, "--backend vllm --dataset-name embeddings --num-prompts 2");
        outcome.expect("one completed");
        let requests = served.join().expect("the script was played");
        assert!(requests[1].starts_with("POST /v1/embeddings "), "{}", requests[1]);
        let sent = body(&requests[1]);
        assert!(sent["input"].is_string() && sent["stream"].is_null() && sent["ignore_eos"].is_null());
        assert!(table.contains("no data[0].embedding"), "{table}");
        assert!(!table.contains("had no text"), "{table}");
    }

    #[test]
    fn objects_are_asked_for_by_their_schema() {
        let answer = json!({
            "choices": [{ "message": { "content": "{}" } }],
            "usage": { "prompt_tokens": 5, "completion_tokens": 2 },
        });
        let (url, served) = scripted(vec![models(), plain("200 OK", &answer.to_string())]);
        let line = "--backend vllm-chat --dataset-name json-schema --num-prompts 1 --disable-stream";
        let (outcome, table) = bench(&url, line);
        outcome.expect("it completes");
        let sent = body(&served.join().expect("the script was played")[1]);
        let schema = &sent["response_format"]["json_schema"]["schema"];
        assert_eq!(
            (&schema["type"], &sent["ignore_eos"]),
            (&json!("object"), &json!(false))
        );
        assert!(table.contains("0 of 1"), "{table}");
    }
}
