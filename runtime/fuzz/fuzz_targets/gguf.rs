//! Model files of any bytes: an error or a header, never a panic. From `runtime/`, with the stable toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none gguf -- -max_len=65536 -max_total_time=60
//! ```

#![no_main]

use arbora_runtime::model::config::DecoderConfig;
use arbora_runtime::model::gguf::Gguf;
use arbora_runtime::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(gguf) = Gguf::read(input, input.len() as u64) else { return };
    for tensor in gguf.tensors.iter() {
        let end = tensor.offset + tensor.n_bytes.unwrap_or(1);
        assert!(end <= input.len() as u64, "{tensor:?} is not in the file");
    }
    let _ = DecoderConfig::from_gguf(&gguf);
    if let Ok(tokenizer) = Tokenizer::from_metadata(&gguf.metadata) {
        assert!(tokenizer.stop_token_ids().iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
    }
});
