//! Small GGUF files for tests.

use super::metadata::Value;

/// Builds a GGUF file entry by entry; nothing stops it from writing nonsense.
#[derive(Clone, Default)]
pub(crate) struct GgufWriter {
    keys: Vec<u8>,
    pub(crate) n_keys: u64,
    tensors: Vec<u8>,
    pub(crate) n_tensors: u64,
    data: Vec<u8>,
}

impl GgufWriter {
    /// A llama of two layers that the family table accepts, its tensors all zero.
    pub(crate) fn tiny_llama() -> Self {
        GgufWriter::tiny_llama_of(&[0, 1])
    }

    /// Its keys, and the tensors of these layers: the embedding and the last norm with the first.
    pub(crate) fn tiny_llama_of(layers: &[usize]) -> Self {
        let mut writer = GgufWriter::tiny_tensors(layers);
        for (key, value) in tiny_llama_keys() {
            writer.key(&key, &value);
        }
        writer
    }

    /// The tensors of these layers alone.
    pub(crate) fn tiny_tensors(layers: &[usize]) -> Self {
        let mut writer = GgufWriter::default();
        if layers.contains(&0) {
            writer.f32_tensor("token_embd.weight", &[32, tiny_tokens().len() as u64]);
            writer.f32_tensor("output_norm.weight", &[32]);
        }
        for layer in layers {
            for (name, dimensions) in [
                ("attn_norm", &[32][..]),
                ("attn_q", &[32, 32]),
                ("attn_k", &[32, 16]),
                ("attn_v", &[32, 16]),
                ("attn_output", &[32, 32]),
                ("ffn_norm", &[32]),
                ("ffn_gate", &[32, 64]),
                ("ffn_up", &[32, 64]),
                ("ffn_down", &[64, 32]),
            ] {
                writer.f32_tensor(&format!("blk.{layer}.{name}.weight"), dimensions);
            }
        }
        writer
    }

    pub(crate) fn key(&mut self, key: &str, value: &Value) {
        let (kind, payload) = payload(value);
        self.raw_key(key, kind, &payload);
    }

    pub(crate) fn raw_key(&mut self, key: &str, kind: u32, payload: &[u8]) {
        push_string(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(payload);
        self.n_keys += 1;
    }

    pub(crate) fn f32_tensor(&mut self, name: &str, dimensions: &[u64]) {
        let offset = self.data.len() as u64;
        self.raw_tensor(name, dimensions, 0, offset);
        let n_bytes = 4 * dimensions.iter().product::<u64>() as usize;
        self.data
            .resize((self.data.len() + n_bytes).next_multiple_of(32), 0);
    }

    pub(crate) fn raw_tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) {
        push_string(&mut self.tensors, name);
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        for size in dimensions {
            self.tensors.extend(size.to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.n_tensors += 1;
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend(self.n_keys.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// The keys of [`GgufWriter::tiny_llama`].
pub(crate) fn tiny_llama_keys() -> Vec<(String, Value)> {
    let tokens = tiny_tokens();
    let mut kinds = vec![1; tokens.len()];
    kinds[0] = 3;
    kinds[1] = 4;
    let texts = tokens.iter().map(String::as_str);
    let keys = [
        ("general.architecture", Value::Text("llama".to_owned())),
        ("llama.block_count", Value::Unsigned(2)),
        ("llama.context_length", Value::Unsigned(128)),
        ("llama.embedding_length", Value::Unsigned(32)),
        ("llama.feed_forward_length", Value::Unsigned(64)),
        ("llama.attention.head_count", Value::Unsigned(4)),
        ("llama.attention.head_count_kv", Value::Unsigned(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ("tokenizer.ggml.model", Value::Text("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::Text("gpt-2".to_owned())),
        ("tokenizer.ggml.token_type", Value::Integers(kinds)),
        ("tokenizer.ggml.eos_token_id", Value::Unsigned(0)),
        (
            "tokenizer.ggml.merges",
            Value::Strings(["a b", "ab c"].into_iter().collect()),
        ),
        ("tokenizer.ggml.tokens", Value::Strings(texts.collect())),
    ];
    keys.map(|(key, value)| (key.to_owned(), value)).into()
}

/// A control token, a user-defined token, the letters and two merged tokens.
fn tiny_tokens() -> Vec<String> {
    let mut tokens = vec!["<|end|>".to_owned(), "<tool>".to_owned()];
    tokens.extend((b'!'..=b'~').map(|byte| char::from(byte).to_string()));
    tokens.extend(["Ġ", "Ċ", "ab", "abc"].map(str::to_owned));
    tokens
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn payload(value: &Value) -> (u32, Vec<u8>) {
    let array = |kind: u32, n: usize| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((n as u64).to_le_bytes());
        bytes
    };
    match value {
        Value::Unsigned(number) => (10, number.to_le_bytes().to_vec()),
        Value::Signed(number) => (11, number.to_le_bytes().to_vec()),
        Value::Float(number) => (12, number.to_le_bytes().to_vec()),
        Value::Bool(flag) => (7, vec![u8::from(*flag)]),
        Value::Text(text) => {
            let mut bytes = Vec::new();
            push_string(&mut bytes, text);
            (8, bytes)
        }
        Value::Integers(numbers) => {
            let mut bytes = array(11, numbers.len());
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            (9, bytes)
        }
        Value::Floats(numbers) => {
            let mut bytes = array(12, numbers.len());
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            (9, bytes)
        }
        Value::Bools(flags) => {
            let mut bytes = array(7, flags.len());
            bytes.extend(flags.iter().map(|&flag| u8::from(flag)));
            (9, bytes)
        }
        Value::Strings(strings) => {
            let mut bytes = array(8, strings.len());
            strings.iter().for_each(|text| push_string(&mut bytes, text));
            (9, bytes)
        }
    }
}
