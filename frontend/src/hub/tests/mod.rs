//! The hub's client against a server that misbehaves.

mod server;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use server::{COMMIT, Fault, Server, sha256};

use super::*;
use crate::checked::Integrity;
use crate::log::LogWriter;

fn fetching(format: LoadFormat) -> Fetching {
    Fetching {
        hub: HubKind::HuggingFace,
        format,
        integrity: Integrity::WhenChanged,
        log: LogWriter::start(std::io::sink()).expect("a thread"),
        interrupted: Arc::default(),
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    server: Server,
    /// Long, so that a busy machine breaks nothing; short where a test waits for it.
    silence: Duration,
}

impl Fixture {
    fn new(files: &[(&str, Vec<u8>)]) -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let server = Server::new(files);
        Fixture {
            folder,
            server,
            silence: Duration::from_secs(60),
        }
    }

    fn hub(&self) -> Hub {
        self.hub_with(|_| {})
    }

    fn hub_with(&self, change: impl FnOnce(&mut HubSettings)) -> Hub {
        let mut settings = HubSettings {
            kind: HubKind::HuggingFace,
            endpoint: format!("http://{}", self.server.address),
            token: Some("secret".to_owned()),
            cache: self.folder.path().join("hub"),
            offline: false,
        };
        change(&mut settings);
        let patience = Patience {
            tries: 3,
            pause: Duration::ZERO,
            silence: self.silence,
        };
        Hub::with_patience(settings, patience)
    }

    fn resolve(&self, model: &str) -> Result<PathBuf, HubError> {
        let model = model.parse().expect("a model's name");
        self.hub().resolve(&model, &fetching(LoadFormat::Auto))
    }

    /// Names below the model's folder, of files and links.
    fn left(&self) -> Vec<String> {
        let root = self.folder.path().join("hub/models--owner--model");
        let cache = HubCache::new(root.clone());
        let mut files = cache.files(&root);
        files.sort();
        files
    }
}

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(|i| (i * 31).to_le_bytes()).collect()
}

fn one_file() -> Fixture {
    Fixture::new(&[("model.gguf", weights())])
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", sha256(bytes))
}

#[test]
fn names_of_models_are_told_from_other_texts() {
    let model: HubModel = "owner/na.me-1_x@refs/pr/7:sub/model.gguf"
        .parse()
        .expect("a model");
    assert_eq!(
        (model.id.as_str(), model.revision.as_str()),
        ("owner/na.me-1_x", "refs/pr/7")
    );
    assert_eq!(model.file.as_deref(), Some("sub/model.gguf"));
    let model: HubModel = "owner/name".parse().expect("a model");
    assert_eq!((model.revision.as_str(), model.file), ("main", None));
    let long = format!("owner/{}", "x".repeat(97));
    for text in [
        "",
        "name",
        "/name",
        "owner/",
        "a/b/c",
        "../name",
        "owner/..",
        "./name",
        "-o/name",
        "owner/name@",
        "a b/c",
        "owner/name@../x",
        "owner/name:",
        "owner/name:../x",
        "owner/name:/x",
        "owner/name:a//b",
        "owner/name:a%2e",
        long.as_str(),
    ] {
        assert_eq!(text.parse::<HubModel>(), Err(()), "{text:?}");
    }
}

#[test]
fn one_gguf_file_is_fetched_once_into_the_shared_layout() {
    let f = one_file();
    let path = f.resolve("owner/model").expect("fetched");
    assert_eq!(std::fs::read(&path).expect("readable"), weights());
    let link = format!("snapshots/{COMMIT}/model.gguf");
    assert!(path.ends_with(&link));
    assert_eq!(f.left(), [blob(&weights()), "refs/main".to_owned(), link]);
    assert_eq!(f.resolve("owner/model").expect("cached"), path);
    assert_eq!(f.server.ranges("model.gguf").len(), 1, "once");
    assert!(
        f.server
            .log()
            .iter()
            .all(|(.., token)| token.as_deref() == Some("Bearer secret"))
    );
    let cached = HubCache::new(f.folder.path().join("hub")).models();
    assert_eq!(cached.len(), 1);
    assert_eq!(
        (cached[0].id.as_str(), cached[0].n_bytes),
        ("owner/model", 400_000)
    );
    assert!(!cached[0].is_incomplete);
}

#[test]
fn a_folder_is_what_loading_needs_and_no_more() {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#.to_vec();
    let f = Fixture::new(&[
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("generation_config.json", b"{  }".to_vec()),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one".to_vec()),
        ("model-2.safetensors", b"two".to_vec()),
        ("additional_chat_templates/tool_use.jinja", b"tools".to_vec()),
        ("additional_chat_templates/old/tool_use.jinja", b"never".to_vec()),
        ("pytorch_model.bin", b"never".to_vec()),
        ("extra/model-3.safetensors", b"never".to_vec()),
    ]);
    let path = f.resolve("owner/model").expect("fetched");
    let mut files = HubCache::new(PathBuf::new()).files(&path);
    files.sort();
    let expected = [
        "additional_chat_templates/tool_use.jinja",
        "config.json",
        "generation_config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(files, expected);
    let offline = f.hub_with(|settings| settings.offline = true);
    let model = "owner/model".parse().expect("a model");
    let resolve = |hub: &Hub| hub.resolve(&model, &fetching(LoadFormat::Auto));
    assert_eq!(resolve(&offline).expect("cached"), path);
    std::fs::remove_file(path.join("model-2.safetensors")).expect("writable");
    let error = resolve(&offline).expect_err("a shard is gone").to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn made_up_weights_fetch_no_weights() {
    let f = Fixture::new(&[
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", b"big".to_vec()),
    ]);
    let model = "owner/model".parse().expect("a model");
    let path = f
        .hub()
        .resolve(&model, &fetching(LoadFormat::Dummy))
        .expect("fetched");
    assert_eq!(HubCache::new(PathBuf::new()).files(&path), ["config.json"]);
}

#[test]
fn several_files_need_a_choice_and_unknown_ones_are_named() {
    let f = Fixture::new(&[("a.gguf", b"aaaaaaaa".to_vec()), ("b.gguf", b"bbbbbbbb".to_vec())]);
    let error = f.resolve("owner/model").expect_err("two files").to_string();
    assert!(
        error.contains("owner/model:a.gguf, owner/model:b.gguf"),
        "{error}"
    );
    assert!(
        f.resolve("owner/model:b.gguf")
            .expect("chosen")
            .ends_with("b.gguf")
    );
    let error = f
        .resolve("owner/model:c.gguf")
        .expect_err("no such file")
        .to_string();
    assert!(error.contains("owner/model@main:c.gguf"), "{error}");
    let error = f.resolve("owner/other").expect_err("no such model").to_string();
    assert!(error.contains("the hub has no model owner/other"), "{error}");
    let nothing = Fixture::new(&[("README.md", b"hello".to_vec())]);
    let error = nothing
        .resolve("owner/model")
        .expect_err("nothing to load")
        .to_string();
    assert!(error.contains("neither a GGUF file nor config.json"), "{error}");
}

#[test]
fn answers_that_will_not_change_end_it_at_once_and_leave_nothing() {
    for (fault, expected) in [
        (Fault::Status(401), "set HF_TOKEN"),
        (Fault::Status(403), "set HF_TOKEN"),
        (Fault::Status(404), "the hub has no model.gguf"),
        (Fault::Status(416), "answered 416"),
        (Fault::Redirect("http://[".to_owned()), "makes no sense"),
    ] {
        let f = one_file();
        f.server.fail("GET", "model.gguf", std::slice::from_ref(&fault));
        let error = f.resolve("owner/model").expect_err("refused").to_string();
        assert!(error.contains(expected), "{fault:?}: {error}");
        assert_eq!(f.left(), Vec::<String>::new(), "{fault:?}");
        assert_eq!(f.server.ranges("model.gguf").len(), 1, "{fault:?}");
    }
    for etag in [None, Some("../../escape"), Some("short"), Some("")] {
        let f = one_file();
        f.server
            .fail("HEAD", "model.gguf", &[Fault::Etag(etag.map(str::to_owned))]);
        let error = f.resolve("owner/model").expect_err("refused").to_string();
        assert!(error.contains("makes no sense"), "{etag:?}: {error}");
        assert_eq!(f.left(), Vec::<String>::new());
    }
    let f = one_file();
    f.server.fail("GET", "/main", &[Fault::Bytes(b"<html>".to_vec())]);
    assert!(
        f.resolve("owner/model")
            .expect_err("no listing")
            .to_string()
            .contains("makes no sense")
    );
    let listing = br#"{"sha":"../..","siblings":[]}"#.to_vec();
    f.server.fail("GET", "/main", &[Fault::Bytes(listing)]);
    assert!(
        f.resolve("owner/model")
            .expect_err("no commit")
            .to_string()
            .contains("is no commit")
    );
}

#[test]
fn a_passing_failure_is_tried_again_and_a_lasting_one_reported() {
    let f = one_file();
    f.server
        .fail("GET", "/main", &[Fault::Status(503), Fault::Status(429)]);
    f.server.fail("HEAD", "model.gguf", &[Fault::Status(500)]);
    f.server
        .fail("GET", "model.gguf", &[Fault::Status(503), Fault::Cut(0)]);
    f.resolve("owner/model").expect("fetched in the end");
    let f = one_file();
    f.server.fail("GET", "model.gguf", &vec![Fault::Status(503); 3]);
    let error = f.resolve("owner/model").expect_err("never there").to_string();
    assert!(error.contains("answered 503 for model.gguf"), "{error}");
    assert_eq!(f.left(), Vec::<String>::new());
}

#[test]
fn a_cut_or_silent_connection_goes_on_where_it_was() {
    for fault in [Fault::Cut as fn(usize) -> Fault, Fault::Stall] {
        let mut f = one_file();
        f.silence = Duration::from_millis(500);
        let faults = [
            fault(1000),
            fault(2000),
            fault(0),
            fault(3000),
            fault(0),
            fault(4000),
        ];
        f.server.fail("GET", "model.gguf", &faults);
        let path = f.resolve("owner/model").expect("fetched in the end");
        assert_eq!(std::fs::read(&path).expect("readable"), weights());
        let ranges = f.server.ranges("model.gguf");
        assert_eq!(ranges[1].as_deref(), Some("bytes=1000-"));
        assert_eq!(ranges.last().expect("seven").as_deref(), Some("bytes=10000-"));
    }
}

#[test]
fn what_an_interruption_left_is_continued_by_the_next_try() {
    let f = one_file();
    f.server.fail(
        "GET",
        "model.gguf",
        &[Fault::Cut(5000), Fault::Cut(0), Fault::Cut(0), Fault::Cut(0)],
    );
    let error = f.resolve("owner/model").expect_err("cut off").to_string();
    assert!(error.contains("after 5000 bytes"), "{error}");
    assert_eq!(f.left(), [blob(&weights()) + ".incomplete"]);
    assert!(HubCache::new(f.folder.path().join("hub")).models()[0].is_incomplete);
    let path = f.resolve("owner/model").expect("fetched");
    assert_eq!(std::fs::read(&path).expect("readable"), weights());
    assert_eq!(
        f.server.ranges("model.gguf").last(),
        Some(&Some("bytes=5000-".to_owned()))
    );
    assert!(
        !f.left().iter().any(|name| name.contains("incomplete")),
        "{:?}",
        f.left()
    );
}

#[test]
fn what_an_earlier_try_left_never_prevents_a_fetch() {
    let left: [(&str, &[u8]); 2] = [
        ("no beginning of it", &[7; 5000]),
        ("longer than it", &[7; 500_000]),
    ];
    for (what, bytes) in left {
        let f = one_file();
        let blobs = f.folder.path().join("hub/models--owner--model/blobs");
        std::fs::create_dir_all(&blobs).expect("writable");
        std::fs::write(blobs.join(sha256(&weights()) + ".incomplete"), bytes).expect("writable");
        let path = f.resolve("owner/model").expect(what);
        assert_eq!(std::fs::read(&path).expect("readable"), weights(), "{what}");
    }
}

#[test]
fn a_cached_file_whose_bytes_changed_is_fetched_again_or_refused() {
    let f = one_file();
    let path = f.resolve("owner/model").expect("fetched");
    let mut damaged = weights();
    damaged[70..99].fill(0);
    std::fs::write(&path, &damaged).expect("writable");
    let model: HubModel = "owner/model".parse().expect("a model");
    let offline = f.hub_with(|settings| settings.offline = true);
    let error = offline
        .resolve(&model, &fetching(LoadFormat::Auto))
        .expect_err("damaged");
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    f.resolve("owner/model").expect("fetched");
    assert_eq!(std::fs::read(&path).expect("readable"), weights());
    offline
        .resolve(&model, &fetching(LoadFormat::Auto))
        .expect("whole again");
}

#[test]
fn a_server_without_ranges_starts_again() {
    let f = one_file();
    f.server
        .fail("GET", "model.gguf", &[Fault::Cut(5000), Fault::WholeFile]);
    let path = f.resolve("owner/model").expect("fetched");
    assert_eq!(std::fs::read(&path).expect("readable"), weights());
}

#[test]
fn wrong_bytes_and_wrong_lengths_are_removed() {
    let mut wrong = weights();
    wrong[77] ^= 1;
    let mut long = weights();
    long.push(0);
    for (bytes, expected) in [
        (wrong, "SHA-256"),
        (long, "400001 bytes, the hub announced 400000"),
    ] {
        let f = one_file();
        f.server.fail("GET", "model.gguf", &[Fault::Bytes(bytes)]);
        let error = f.resolve("owner/model").expect_err("wrong").to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(f.left(), Vec::<String>::new());
        f.resolve("owner/model").expect("the next one is right");
    }
    let f = one_file();
    f.server.fail(
        "GET",
        "model.gguf",
        &vec![Fault::Bytes(weights()[..9].to_vec()); 4],
    );
    let error = f.resolve("owner/model").expect_err("short").to_string();
    assert!(error.contains("of 400000 bytes"), "{error}");
}

#[test]
fn redirects_are_followed_but_the_token_stays_at_home() {
    let other = Server::new(&[("model.gguf", weights())]);
    let f = one_file();
    let elsewhere = format!("http://{}/owner/model/resolve/{COMMIT}/model.gguf", other.address);
    f.server
        .fail("HEAD", "model.gguf", &[Fault::Redirect(elsewhere.clone())]);
    f.server.fail("GET", "model.gguf", &[Fault::Redirect(elsewhere)]);
    let path = f.resolve("owner/model").expect("fetched");
    assert_eq!(std::fs::read(&path).expect("readable"), weights());
    let there = other.log();
    assert_eq!(there.len(), 1, "{there:?}");
    assert_eq!((there[0].0.as_str(), &there[0].3), ("GET", &None));
    let f = one_file();
    let local = format!("/owner/model/resolve/{COMMIT}/model.gguf");
    f.server
        .fail("GET", "model.gguf", &vec![Fault::Redirect(local); 20]);
    let error = f.resolve("owner/model").expect_err("in circles").to_string();
    assert!(error.contains("too many redirects"), "{error}");
}

#[test]
fn offline_nothing_is_asked_and_a_dead_hub_leaves_what_is_cached() {
    let f = one_file();
    let model: HubModel = "owner/model".parse().expect("a model");
    let fetching = fetching(LoadFormat::Auto);
    let offline = f.hub_with(|settings| settings.offline = true);
    let error = offline
        .resolve(&model, &fetching)
        .expect_err("not there")
        .to_string();
    assert!(error.contains("owner/model@main is not in"), "{error}");
    assert!(f.server.log().is_empty(), "nothing was asked");
    let path = f.resolve("owner/model").expect("fetched");
    let n_asked = f.server.log().len();
    assert_eq!(offline.resolve(&model, &fetching).expect("cached"), path);
    assert_eq!(f.server.log().len(), n_asked);
    // A port that was bound and closed again: nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port");
    let dead = f.hub_with(|settings| settings.endpoint = format!("http://{gone}"));
    assert_eq!(dead.resolve(&model, &fetching).expect("cached"), path);
    let other: HubModel = "owner/other".parse().expect("a model");
    let error = dead.resolve(&other, &fetching).expect_err("no hub").to_string();
    assert!(error.contains("no answer for model owner/other"), "{error}");
}

#[test]
fn an_interrupt_ends_a_download_that_stalls() {
    let mut f = one_file();
    f.silence = Duration::from_millis(500);
    f.server.fail("GET", "model.gguf", &vec![Fault::Stall(100); 50]);
    let fetching = fetching(LoadFormat::Auto);
    let interrupted = Arc::clone(&fetching.interrupted);
    let model = "owner/model".parse().expect("a model");
    std::thread::scope(|scope| {
        let (server, flag) = (&f.server, &interrupted);
        scope.spawn(move || {
            while server.ranges("model.gguf").is_empty() {
                std::thread::yield_now();
            }
            flag.store(true, Ordering::Relaxed);
        });
        let error = f.hub().resolve(&model, &fetching).expect_err("interrupted");
        assert!(matches!(error, HubError::Interrupted), "{error}");
    });
}

#[test]
fn a_quantization_is_fetched_with_all_its_parts_at_a_time() {
    let part = |number: usize| format!("big-Q8_0-0000{number}-of-00005.gguf");
    let names: Vec<String> = (1..=5).map(part).collect();
    let mut files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| (name.as_str(), vec![i as u8; 1000 + i]))
        .collect();
    files.push(("small-Q4_K_M.gguf", b"small".to_vec()));
    let f = Fixture::new(&files);
    let path = f.resolve("owner/model:q8_0").expect("fetched");
    assert!(path.ends_with(part(1)), "{path:?}");
    for (name, bytes) in &files[..5] {
        assert_eq!(
            &std::fs::read(path.with_file_name(name)).expect("readable"),
            bytes
        );
    }
    assert!(
        f.server.ranges("small-Q4_K_M.gguf").is_empty(),
        "nobody asked for it"
    );
    let offline = f.hub_with(|settings| settings.offline = true);
    let model = "owner/model:Q8_0".parse().expect("a model");
    let resolve = |hub: &Hub| hub.resolve(&model, &fetching(LoadFormat::Auto));
    assert_eq!(resolve(&offline).expect("cached"), path);
    std::fs::remove_file(path.with_file_name(part(4))).expect("it is there");
    let error = resolve(&offline).expect_err("a part is gone").to_string();
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(
        f.resolve("owner/model")
            .expect("the usual one")
            .ends_with("small-Q4_K_M.gguf")
    );
    let error = f
        .resolve("owner/model:Q3_K_S")
        .expect_err("no such file")
        .to_string();
    let expected = "owner/model has no GGUF file in Q3_K_S; it has \
                    owner/model:big-Q8_0-00001-of-00005.gguf, owner/model:small-Q4_K_M.gguf";
    assert_eq!(error, expected);
}

#[test]
fn one_broken_part_ends_it_and_the_others_are_kept() {
    let part = |number: usize| format!("m-0000{number}-of-00003.gguf");
    let names: Vec<String> = (1..=3).map(part).collect();
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes().to_vec()))
        .collect();
    let f = Fixture::new(&files);
    f.server.fail("GET", &names[1], &[Fault::Status(403)]);
    let error = f
        .resolve("owner/model")
        .expect_err("a part is refused")
        .to_string();
    assert!(
        error.contains("answered 403 for m-00002-of-00003.gguf"),
        "{error}"
    );
    f.resolve("owner/model").expect("the next try has the rest");
    for name in &names {
        let n_asked = f.server.ranges(name).len();
        assert!(
            n_asked == 1 || *name == names[1] && n_asked == 2,
            "{name}: {n_asked}"
        );
    }
}

#[test]
fn a_model_without_room_on_the_disk_is_refused_before_a_byte_comes() {
    let f = one_file();
    let size = 1u64 << 60;
    let listing = format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"model.gguf","size":{size}}}]}}"#);
    f.server
        .fail("GET", "/main", &[Fault::Bytes(listing.into_bytes())]);
    let error = f.resolve("owner/model").expect_err("an exbibyte").to_string();
    assert!(
        error.starts_with("no space for owner/model@main on the disk of ")
            && error.contains(&size.to_string()),
        "{error}"
    );
    assert!(f.server.ranges("model.gguf").is_empty());
    assert_eq!(f.left(), Vec::<String>::new());
}

#[test]
fn modelscope_is_asked_in_its_own_words_and_its_hashes_are_checked() {
    let f = one_file();
    let hub = f.hub_with(|settings| (settings.kind, settings.token) = (HubKind::ModelScope, None));
    let model: HubModel = "owner/model".parse().expect("a model");
    let resolve = || hub.resolve(&model, &fetching(LoadFormat::Auto));
    f.server
        .fail("GET", "model.gguf", &[Fault::Bytes(vec![0; 400_000])]);
    let error = resolve().expect_err("other bytes").to_string();
    assert!(error.contains("SHA-256"), "{error}");
    let path = resolve().expect("fetched");
    assert_eq!(std::fs::read(&path).expect("readable"), weights());
    let asked: Vec<String> = f
        .server
        .log()
        .into_iter()
        .map(|(method, path, ..)| method + " " + &path)
        .collect();
    let listing = "GET /api/v1/models/owner/model/repo/files?Revision=master&Recursive=true";
    let file = "GET /models/owner/model/resolve/master/model.gguf";
    assert_eq!(asked, [listing, file, listing, file]);
    let n_asked = f.server.log().len();
    assert_eq!(resolve().expect("cached"), path);
    assert_eq!(f.server.log().len(), n_asked + 1, "only the listing");
    f.server
        .fail("GET", "/files", &[Fault::Bytes(b"{\"Code\": 10010}".to_vec())]);
    let error = resolve().expect_err("no listing").to_string();
    assert!(error.contains("makes no sense"), "{error}");
}
