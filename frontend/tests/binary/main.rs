//! The binary itself, where standard error, signals, threads, memory or the model's file are not as they
//! should be. It says so in a line, or goes on; it never panics and never hangs.

mod models;
mod server;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use server::{Server, kill, next_line, until};

const BINARY: &str = env!("CARGO_BIN_EXE_arbora");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/families/qwen2.gguf");
/// The user that owns nothing.
const NOBODY: &str = "65534";

fn arbora() -> Command {
    let mut command = Command::new(BINARY);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// `arbora serve` with the smallest model there is.
fn serve(mut command: Command, port: u16) -> Command {
    command
        .args(["serve", "--model", MODEL, "--threads", "1", "--kv-pages", "64"])
        .args(["--log", "debug", "--port", &port.to_string()]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Ended by itself, with one line that begins like this, because of what it was told to serve.
fn refused(output: &Output, beginning: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{}: {said}", output.status);
    let lines: Vec<&str> = said.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].starts_with(beginning), "{said}");
}

#[test]
fn a_full_disk_under_the_log_costs_lines_and_nothing_else() {
    let full = OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let server = Server::start_mute(full);
    for _ in 0..20 {
        server.provoke_a_line();
    }
    server.completes("");
    until("a count", || {
        server.metric("arbora_log_lines_dropped_total") >= 20
    });
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_log_whose_reader_is_gone_costs_lines_and_nothing_else() {
    let (server, log) = Server::start(&mut serve(arbora(), 0));
    drop(log);
    for _ in 0..20 {
        server.provoke_a_line();
    }
    server.completes("");
    until("a count", || {
        server.metric("arbora_log_lines_dropped_total") >= 20
    });
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting() {
    let (server, log) = Server::start(&mut serve(arbora(), 0));
    // A pipe holds 64 KiB, and a line with a time and a message is longer than 44 bytes.
    for _ in 0..1600 {
        server.provoke_a_line();
    }
    server.completes("");
    server.signal("QUIT");
    server.completes("");
    assert_eq!(server.stop().code(), Some(0));
    drop(log);
}

#[test]
fn signals_that_ask_for_no_end_do_not_end_a_server() {
    let (server, mut log) = Server::start(&mut serve(arbora(), 0));
    for (signal, expected) in [
        // First, before anything is asked: a request is over for its client before it is for the engine.
        ("QUIT", "what runs"),
        ("HUP", "SIGHUP is ignored"),
        ("USR1", "SIGUSR1 is ignored"),
        ("USR2", "SIGUSR2 is ignored"),
    ] {
        server.signal(signal);
        let line = next_line(&mut log, expected);
        if signal == "QUIT" {
            for field in ["in_flight=0", "running=0", "waiting=0", "pages_free="] {
                assert!(line.contains(field), "{line}");
            }
        }
        server.completes("");
    }
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_signal_while_the_model_is_fetched_takes_the_downloader_along() {
    for signal in ["INT", "TERM", "HUP", "QUIT"] {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| folder.path().join(name);
        let pid = at("pid");
        // A pip that has started another process, and waits for it.
        let script = format!(
            "#!/bin/sh\nPATH=/usr/bin:/bin\nsleep 1000 &\necho $! > {0}.new\nmv {0}.new {0}\nwait\n",
            pid.display()
        );
        fs::write(at("python3"), script).expect("writable");
        fs::set_permissions(at("python3"), fs::Permissions::from_mode(0o755)).expect("ours");
        let mut pull = arbora();
        pull.args(["pull", "smollm2:135m"]).stderr(Stdio::null());
        pull.env("PATH", folder.path()).env("XDG_CACHE_HOME", at("cache"));
        let mut pull = pull.spawn().expect("the binary runs");
        until("a downloader", || pid.exists());
        let sleeper = fs::read_to_string(&pid).expect("a number").trim().to_owned();
        kill(signal, pull.id());
        assert_eq!(pull.wait().expect("ours").code(), Some(130), "{signal}");
        until("the downloader's end", || {
            let stat = fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
            // Gone, or not yet taken note of by whoever inherited it.
            stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
        });
        let left = fs::read_dir(at("cache/arbora/models/smollm2-135m")).expect("a folder");
        let left: Vec<_> = left.map(|entry| entry.expect("readable").file_name()).collect();
        assert_eq!(left, [".lock"], "{signal}");
    }
}

/// What follows, as the user that owns nothing.
fn as_nobody() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    command
}

/// The binary under a limit on the threads of its user. The superuser has none, so it becomes nobody.
fn with_threads(n: usize, folder: &Path) -> Command {
    let limit = format!("--nproc={n}:{n}");
    let is_root = fs::metadata("/proc/self").expect("Linux").uid() == 0;
    let mut command = match is_root {
        true => {
            let mut command = as_nobody();
            command.args(["prlimit", &limit]);
            command
        }
        false => {
            let mut command = Command::new("prlimit");
            command.arg(&limit);
            command
        }
    };
    // Where that user may run it from.
    let (binary, model) = (folder.join("arbora"), folder.join("model.gguf"));
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("ours");
    if !binary.exists() {
        fs::copy(BINARY, &binary).expect("room for the binary");
        fs::copy(MODEL, &model).expect("room for the model");
    }
    command
        .arg(binary)
        .args(["serve", "--threads", "1", "--kv-pages", "64", "--port", "0"]);
    command.arg("--model").arg(model).current_dir(folder);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Whether it comes to serve, which is its end, or how it ended and what it said.
fn serves(command: &mut Command) -> Result<(), (ExitStatus, String)> {
    const SERVES: &str = "serving at http://";
    let mut child = command.spawn().expect("it runs");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains(SERVES) && log.read_line(&mut said).expect("text") > 0 {}
    drop(child.kill());
    let status = child.wait().expect("ours");
    match said.contains(SERVES) {
        true => Ok(()),
        false => Err((status, said)),
    }
}

#[test]
fn without_threads_a_start_ends_in_a_line_and_a_running_server_needs_no_more() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let n_needed = (1..=64).find(|&n| {
        let Err((status, said)) = serves(&mut with_threads(n, folder.path())) else {
            return true;
        };
        assert_eq!(status.code(), Some(1), "{n} threads: {said}");
        let last = said.lines().last().expect("a line");
        assert!(
            last.starts_with("arbora: cannot start thread '"),
            "{n} threads: {said}"
        );
        assert!(last.contains("ulimit -u"), "{n} threads: {said}");
        assert!(!said.contains("panicked"), "{n} threads: {said}");
        false
    });
    if fs::metadata("/proc/self").expect("Linux").uid() != 0 {
        // Another process of this user may take a thread at any time.
        return;
    }
    let n_needed = n_needed.expect("64 threads are enough");
    assert!(n_needed > 4, "it has as many threads from the start");
    // Threads that only load the model end at one time or another, and count until they have.
    let (server, _log) = Server::start(&mut with_threads(n_needed + 4, folder.path()));
    let process = server.child.id().to_string();
    let mut limit = as_nobody();
    limit.args(["prlimit", "--pid", &process, "--nproc=1:1"]);
    let limited = limit.status();
    assert!(limited.expect("there is a prlimit").success());
    for idx in 0..5 {
        server.completes(&format!(", \"regex\": \"[ab]{{{}}}\"", idx + 1));
        let compressed = gzip(b"{\"prompt\": \"a\", \"max_tokens\": 1}");
        let answer = server.post("/v1/completions", "content-encoding: gzip\r\n", &compressed);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // Long enough to be encoded aside, and too long for the model.
        let long = format!("{{\"prompt\": \"{}\"}}", "a ".repeat(20_000));
        let answer = server.post("/v1/completions", "", long.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(server.stop().code(), Some(0));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn a_pool_beyond_the_memory_there_is_ends_in_a_line() {
    for (option, value) in [("--kv-memory", "1048576GiB"), ("--kv-pages", "1000000000000")] {
        let mut command = arbora();
        command.args(["serve", "--model", MODEL, "--port", "0", option, value]);
        let output = command.output().expect("the binary runs");
        refused(&output, "arbora: the model's weights take ");
        assert!(said(&output).contains("--kv-memory"), "{}", said(&output));
    }
}

#[test]
fn keys_that_are_not_there_cannot_be_kept_apart() {
    let output = arbora()
        .args(["serve", "--model", MODEL, "--port", "0", "--isolate-keys"])
        .output();
    refused(
        &output.expect("the binary runs"),
        "arbora: --isolate-keys keeps API keys apart and there is none",
    );
}

/// `bytes` with what is behind the only place that holds `name` changed.
fn patched(mut bytes: Vec<u8>, name: &str, behind: usize, to: &[u8]) -> Vec<u8> {
    let mut places = bytes.windows(name.len()).enumerate();
    let is_it = |(_, window): &(usize, &[u8])| *window == name.as_bytes();
    let (at, _) = places.find(is_it).expect("it is in the file");
    let start = at + name.len() + behind;
    bytes[start..start + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn a_model_that_cannot_be_served_ends_in_a_line_before_the_port_is_opened() {
    const TENSOR: &str = "blk.1.ffn_down.weight";
    let folder = tempfile::tempdir().expect("a temporary directory");
    let good = fs::read(MODEL).expect("readable");
    let (dimensions, kind) = (4, 4 + 2 * 8);
    for (bytes, option, expected) in [
        // The string behind the key has 4 bytes of its type and 8 of its length.
        (
            patched(good.clone(), "general.architecture", 12, b"qwen9"),
            None,
            "architecture `qwen9` is not supported",
        ),
        (
            patched(good.clone(), TENSOR, dimensions, &8u64.to_le_bytes()),
            None,
            "tensor `blk.1.ffn_down.weight` has shape [8, ",
        ),
        (
            patched(good.clone(), TENSOR, kind, &19u32.to_le_bytes()),
            None,
            "tensor `blk.1.ffn_down.weight` is stored as IQ1_S",
        ),
        (
            patched(good.clone(), "blk.1.ffn_dow", 0, b"m"),
            None,
            "tensor `blk.1.ffn_dowm.weight` is not expected",
        ),
        (good[..good.len() / 2].to_vec(), None, "tensor `"),
        (b"GGUM".to_vec(), None, "not a GGUF file"),
        (
            good.clone(),
            Some(["--context", "1000000"]),
            "a context of 1000000 tokens: the model was made for 1 to ",
        ),
        (
            good.clone(),
            Some(["--kv-memory", "1048576GiB"]),
            "the model's weights take ",
        ),
        (
            good.clone(),
            Some(["--quantize", "q5_1"]),
            "--quantize must be one of q8_0, q4_0, q4_k, got 'q5_1'",
        ),
    ] {
        let path = folder.path().join("model.gguf");
        fs::write(&path, bytes).expect("writable");
        let mut command = arbora();
        command
            .args(["serve", "--threads", "1", "--port", "0", "--model"])
            .arg(&path);
        let output = command
            .args(option.iter().flatten())
            .output()
            .expect("the binary runs");
        refused(&output, &format!("arbora: {expected}"));
        assert!(!said(&output).contains("serving at"), "{}", said(&output));
    }
    for (model, expected) in [
        (
            "no/such/model.gguf",
            "no model file or folder at no/such/model.gguf",
        ),
        ("no-such-alias", "'no-such-alias' is neither a file or folder"),
    ] {
        let output = arbora().args(["serve", "--port", "0", "--model", model]).output();
        refused(&output.expect("the binary runs"), &format!("arbora: {expected}"));
    }
    let packed = folder.path().join("packed");
    fs::create_dir(&packed).expect("writable");
    let gptq = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/packed/gptq/");
    fs::copy(
        gptq.to_owned() + "model.safetensors",
        packed.join("model.safetensors"),
    )
    .expect("a small file");
    let config = fs::read_to_string(gptq.to_owned() + "config.json").expect("text");
    fs::write(
        packed.join("config.json"),
        config.replace("\"bits\": 4", "\"bits\": 3"),
    )
    .expect("writable");
    let output = arbora()
        .args(["serve", "--port", "0", "--model"])
        .arg(&packed)
        .output();
    let expected = "arbora: `quantization_config.bits` = 3 is not supported";
    refused(&output.expect("the binary runs"), expected);
}

#[test]
fn a_port_that_is_taken_is_found_out_before_the_model_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let output = arbora()
        .args(["serve", "--port", &port, "--model", "no/such/model.gguf"])
        .output();
    let said = said(&output.expect("the binary runs"));
    assert!(
        said.starts_with(&format!("arbora: cannot listen on 127.0.0.1:{port}: ")),
        "{said}"
    );
}

#[test]
fn a_model_is_quantized_into_a_file_that_is_served() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let granite = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/families/granite.gguf"
    );
    let out = folder.path().join("quantized.gguf");
    let quantize = || {
        arbora()
            .args(["quantize", granite, "--type", "q4_0"])
            .arg(&out)
            .output()
            .expect("it runs")
    };
    let output = quantize();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("quantized.gguf has "), "{}", said(&output));
    refused(&quantize(), "arbora: writing ");
    let generated = |model: &std::path::Path, quantize: &[&str]| {
        let mut command = arbora();
        command.args([
            "generate",
            "--raw",
            "--temperature",
            "0",
            "--max-tokens",
            "8",
            "--threads",
            "1",
        ]);
        let output = command
            .args(quantize)
            .arg("--model")
            .arg(model)
            .arg("a b")
            .stdout(Stdio::piped())
            .output();
        let output = output.expect("the binary runs");
        assert!(output.status.success(), "{}", said(&output));
        output.stdout
    };
    let expected = generated(granite.as_ref(), &["--quantize", "q4_0"]);
    assert!(!expected.is_empty());
    assert_eq!(generated(&out, &[]), expected);
    let inspected = arbora()
        .args(["inspect"])
        .arg(&out)
        .stdout(Stdio::piped())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(
        text.contains("quantization          Q4_0") && text.contains("will it run           it fits"),
        "{text}"
    );
}

#[test]
fn weights_that_are_no_numbers_are_named_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("model.gguf");
    let mut bytes = fs::read(MODEL).expect("readable");
    let end = bytes.len();
    bytes[end - 64..].fill(0xff);
    fs::write(&path, bytes).expect("writable");
    let mut command = arbora();
    command
        .args(["serve", "--port", "0", "--kv-pages", "64", "--model"])
        .arg(path);
    refused(&command.output().expect("the binary runs"), "arbora: tensor `");
}

#[test]
fn a_closed_output_ends_a_command_without_a_backtrace() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let commands: [&[&str]; 5] = [
        &["--help"],
        &["inspect", MODEL],
        &["pull", MODEL],
        &["models"],
        &[
            "generate",
            "--model",
            MODEL,
            "--threads",
            "1",
            "--raw",
            "--max-tokens",
            "9",
            "a",
        ],
    ];
    for arguments in commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = arbora();
        command.args(arguments).env("XDG_CACHE_HOME", folder.path());
        let output = command.stdout(writer).output().expect("the binary runs");
        let said = said(&output);
        assert!(output.status.code().is_some(), "{arguments:?}: {}", output.status);
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        assert!(said.lines().count() <= 1, "{arguments:?}: {said}");
    }
}

#[test]
fn what_is_sent_to_the_collector_is_in_no_log() {
    let collector = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1/traces", collector.local_addr().expect("bound"));
    let received = std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().expect("the server connects");
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        // The head is enough.
        while !received.windows(4).any(|end| end == b"\r\n\r\n") {
            let n = stream.read(&mut buffer).expect("a request");
            assert!(n > 0, "a whole head");
            received.extend_from_slice(&buffer[..n]);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-answer: geheim\r\n\r\n{}")
            .expect("the server reads");
        String::from_utf8_lossy(&received).into_owned()
    });
    let mut command = arbora();
    command.args([
        "serve",
        "--model",
        MODEL,
        "--threads",
        "1",
        "--kv-pages",
        "64",
        "--port",
        "0",
    ]);
    command.args(["--log", "trace", "--otlp-traces-endpoint", &url]);
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=sesame");
    let (server, mut log) = Server::start(&mut command);
    let log = std::thread::spawn(move || {
        let mut said = String::new();
        log.read_to_string(&mut said).expect("text");
        said
    });
    server.completes("");
    assert_eq!(server.stop().code(), Some(0));
    assert!(
        received.join().expect("no panic").contains("sesame"),
        "it was sent"
    );
    let said = log.join().expect("no panic");
    assert!(!said.contains("sesame") && !said.contains("geheim"), "{said}");
    assert!(said.contains("stopped"), "{said}");
}

#[test]
fn texts_become_lines_of_json_and_a_command_that_a_model_is_not_for_ends_in_a_line() {
    const ENCODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/encoders/bert");
    let run = |arguments: &[&str]| {
        let mut command = arbora();
        command.args(arguments).args(["--threads", "1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.output().expect("the binary runs")
    };
    let output = run(&[
        "embed",
        "--model",
        ENCODER,
        "--dimensions",
        "3",
        "a text",
        "another",
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    for (i, line) in lines.lines().enumerate() {
        let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(json["index"], i);
        assert_eq!(json["embedding"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(lines.lines().count(), 2);
    let long = "fox ".repeat(99);
    refused(
        &run(&["embed", "--model", ENCODER, &long]),
        "arbora: text 0: the text has ",
    );
    refused(&run(&["embed", "--model", MODEL, "a"]), "arbora: model '");
    refused(&run(&["generate", "--model", ENCODER, "a"]), "arbora: model '");
    refused(
        &run(&["embed", "--model", ENCODER, "--dimensions", "49", "a"]),
        "arbora: --dimensions 49: this model has 1 to 48",
    );
}
