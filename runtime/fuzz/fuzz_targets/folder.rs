//! Model folders with edits anywhere: an error or a model, never a panic. The input is a list of edits to a
//! small valid folder, since bytes of one's own hardly ever get past the first brace. From `runtime/`:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none folder -- -max_total_time=60
//! ```

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use arbora_kernels::reference::ReferenceBackend;
use arbora_runtime::model::ModelFile;
use arbora_runtime::model::decoder::ForwardLimits;
use libfuzzer_sys::fuzz_target;

const FILES: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("../../../tests/golden/families/qwen2/config.json")),
    ("tokenizer.json", include_bytes!("../../../tests/golden/families/qwen2/tokenizer.json")),
    ("model.safetensors", include_bytes!("../../../tests/golden/families/qwen2/model.safetensors")),
];

/// Of its own for each process that fuzzes.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("arbora-fuzz-folder-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for models");
    folder
});

/// Edits of six bytes: which file, what is done, where (two bytes), with what (two bytes).
fn apply(edits: &[u8], files: &mut [Vec<u8>; 3]) {
    for edit in edits.chunks_exact(6) {
        let file = &mut files[usize::from(edit[0]) % 3];
        if file.is_empty() {
            continue;
        }
        let at = usize::from(u16::from_le_bytes([edit[2], edit[3]])) % file.len();
        match edit[1] % 5 {
            0 => file[at] = edit[4],
            1 => file.insert(at, edit[4]),
            2 => file.truncate(at),
            3 => drop(file.drain(at..file.len().min(at + usize::from(edit[4])))),
            // A piece of another place, such as a number where a name was.
            _ => {
                let from = usize::from(edit[5]) * 7 % file.len();
                let piece: Vec<u8> = file[from..].iter().take(usize::from(edit[4] % 32)).copied().collect();
                file.splice(at..at, piece);
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut files = FILES.map(|(_, bytes)| bytes.to_vec());
    apply(input, &mut files);
    for ((name, _), bytes) in FILES.iter().zip(&files) {
        std::fs::write(FOLDER.join(name), bytes).expect("room for a small file");
    }
    let Ok(model) = ModelFile::open(&FOLDER) else { return };
    if let Ok(tokenizer) = model.tokenizer() {
        assert!(tokenizer.stop_token_ids().iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
    }
    let limits = ForwardLimits {
        max_rows: 2,
        max_logit_rows: 1,
    };
    let context = model.config().context.min(64);
    let _ = model.load_decoder(&mut ReferenceBackend::new(), context, limits);
});
