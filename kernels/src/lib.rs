//! Compute for Arbora: one [`Backend`] trait, a plain reference implementation and the CPU kernels.
//!
//! This is the only crate with `unsafe`. It knows tensors, weights and KV pages; it never sees a sequence, a
//! request or a scheduler.
//!
//! Two contracts bind every backend:
//!
//! * **Row independence (C1).** A row's result depends on that row's inputs only, bit for bit: not on how
//!   many rows are in the call, their order, the number of threads or the tile that served it.
//! * **Attention folds absolute blocks (C2).** Keys are consumed in blocks of [`ATTENTION_BLOCK`] tokens that
//!   start at multiples of it. Each block is reduced from a fresh state and merged into the row's running
//!   result in ascending order. Keys before a row's window, and at or beyond its
//!   limit, are never multiplied.

#![expect(
    unsafe_code,
    reason = "this is the workspace's one crate for SIMD and system calls"
)]

pub mod cpu;
pub mod cuda;
pub mod encoder;
mod error;
pub mod host;
pub mod quant;
pub mod reference;
mod step;

pub use error::BackendError;
use quant::Format;
pub use step::{
    Adjustment, Allowed, Answers, BatchShape, LogprobRow, RowLogprobs, SampleRow, Scored, SequenceRows,
    StepRows, TokenLogprob,
};

/// Tokens per attention block (C2). One constant, independent of the page size; every page size divides it or
/// is a multiple of it.
pub const ATTENTION_BLOCK: usize = 64;

/// A weight matrix as the model file stores it: row-major, one row per output.
#[derive(Clone, Copy, Debug)]
pub struct MatrixSource<'a> {
    /// Element or block format of `bytes`.
    pub format: Format,
    /// Outputs (rows in the file).
    pub n_out: usize,
    /// Inputs (columns in the file), a multiple of the format's block length.
    pub n_in: usize,
    /// Exactly `n_out` rows of `format.row_bytes(n_in)` bytes.
    pub bytes: &'a [u8],
}

/// Shape of the paged keys and values of all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub n_layers: usize,
    /// Key/value heads per layer.
    pub n_kv_heads: usize,
    /// Elements per head, even.
    pub head_dim: usize,
    /// Tokens per page: 16, 32 or 64.
    pub page_size: usize,
    /// Pages in the pool.
    pub n_pages: usize,
}

impl KvShape {
    /// Bytes of one page over all layers, keys and values, two bytes an element.
    pub fn page_bytes(&self) -> usize {
        self.n_layers * self.n_kv_heads * self.head_dim * self.page_size * 2 * 2
    }
}

/// How rotary embeddings pair the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Elements `2i` and `2i + 1` (GGUF's llama layout).
    Interleaved,
    /// Elements `i` and `i + rope_dim / 2` (GPT-NeoX, Hugging Face checkpoints).
    Halves,
}

/// Cosines and sines for every position, made once per model.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Pairing of elements.
    pub style: RopeStyle,
    /// Rotated elements per head, even, at most `head_dim`; the rest of a head is left as it is.
    pub rope_dim: usize,
    /// `[n_positions][rope_dim / 2][2]`: cosine, sine.
    pub cos_sin: Vec<f32>,
}

/// The heads packed in one row of a fused qkv tensor: `n_heads` queries, then `n_kv_heads` keys, then as many
/// values, each of `head_dim` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Elements in one fused qkv row.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// How the queries of a layer look at keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Factor of the products of queries and keys, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Soft cap of the scaled products, above 0: `cap * tanh(score / cap)` before the softmax (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Sliding window: a row sees the newest so many tokens below its limit; all where absent.
    pub window: Option<usize>,
}

impl AttentionSpec {
    /// Every token below the limit, products scaled by `1 / sqrt(head_dim)`.
    pub fn full(head_dim: usize) -> Self {
        AttentionSpec {
            scale: 1.0 / (head_dim as f64).sqrt(),
            soft_cap: None,
            window: None,
        }
    }
}

/// Inputs of [`Backend::attention`] besides the tensors.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayer<'a, T> {
    /// Layer whose keys and values are read.
    pub layer: usize,
    /// How it looks at them.
    pub spec: &'a AttentionSpec,
    /// Attention sinks, a score for each query head, where the layer has them: one more term of the softmax
    /// that has no value (gpt-oss). One row.
    pub sinks: Option<&'a T>,
}

/// How a row is brought to a common size, before its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm: `x[i] / sqrt(mean_i(x[i]^2) + eps)`.
    Rms,
    /// LayerNorm: `c[i] / sqrt(mean_i(c[i]^2) + eps)`, `c[i] = x[i] - mean_i(x[i])`.
    Layer,
}

/// A normalization: `norm(x)[i] = kind(x)[i] * weight[i] + bias[i]`. Weight and bias have one row.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a, T> {
    /// What is done before the weights.
    pub kind: NormKind,
    /// Factors.
    pub weight: &'a T,
    /// Addends, where the model has them.
    pub bias: Option<&'a T>,
    /// Keeps the root above 0.
    pub eps: f32,
}

/// The nonlinear function of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `a / (1 + exp(-a))`.
    Silu,
    /// `a / 2 * (1 + erf(a / sqrt(2)))`.
    Gelu,
    /// `a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3)))`.
    GeluTanh,
    /// `g / (1 + exp(-1.702 g))`, `g = min(a, 7)`. [`Backend::gated`] multiplies it by
    /// `min(max(up, -7), 7) + 1` (gpt-oss).
    ClampedSwish,
}

impl Activation {
    /// Factor of the exponent of [`ClampedSwish`](Self::ClampedSwish).
    pub const CLAMPED_SWISH_FACTOR: f32 = 1.702;

    /// Where [`ClampedSwish`](Self::ClampedSwish) cuts gate and up.
    pub const CLAMPED_SWISH_LIMIT: f32 = 7.0;
}

/// How a router's logits become the scores of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// `exp(logit[e]) / sum_j exp(logit[j])`.
    Softmax,
    /// `1 / (1 + exp(-logit[e]))`.
    Sigmoid,
}

/// How rows choose experts, and what their outputs are multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a, T> {
    /// What logits become.
    pub score: RouterScore,
    /// Added to the scores for the choice, and for that only. One row.
    pub choice_bias: Option<&'a T>,
    /// Whether the scores of a row's experts are divided by their sum.
    pub is_normalized: bool,
    /// Factor of the weights.
    pub scale: f32,
}

/// What [`Backend::routes`] makes room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutesShape {
    /// Most rows.
    pub max_rows: usize,
    /// Experts to choose from.
    pub n_experts: usize,
    /// Experts that each row chooses, at most `n_experts`.
    pub n_used: usize,
}

impl RoutesShape {
    /// Most slots: pairs of a row and an expert that it chose.
    pub fn max_slots(&self) -> usize {
        self.max_rows * self.n_used
    }
}

/// What experts are multiplied with.
#[derive(Debug)]
pub enum ExpertInput<'a, T> {
    /// A row for each row that chose: those of a slot are its row's.
    Rows(&'a T),
    /// A row for each slot.
    Slots(&'a T),
}

/// An MLP that every row goes through beside its experts.
#[derive(Debug)]
pub struct SharedExpert<'a, T> {
    /// Its outputs.
    pub out: &'a T,
    /// Logits of their weights, `[rows, 1]`, where it has a gate.
    pub gate: Option<&'a T>,
}

// Derived, these would want tensors that can be copied.
impl<T> Clone for ExpertInput<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for ExpertInput<'_, T> {}
impl<T> Clone for SharedExpert<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedExpert<'_, T> {}

/// What [`Backend::elementwise`] makes of each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// `x * factor`.
    Scale(f32),
    /// `cap * tanh(x / cap)`, cap above 0.
    SoftCap(f32),
    /// The activation of x.
    Activate(Activation),
}

/// What one root of an RMSNorm over queries and keys goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNormSpan {
    /// Each head by itself: weights of `head_dim` elements (Qwen 3, Gemma 3).
    EachHead,
    /// All query heads at once, and all key heads: a weight for each of their elements (OLMo 2).
    AllHeads,
}

/// RMSNorm of queries and keys before their rotation.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a, T> {
    /// What it goes over.
    pub span: QkNormSpan,
    /// Weights of queries.
    pub query: &'a T,
    /// Weights of keys.
    pub key: &'a T,
    /// Keeps the root above 0.
    pub eps: f32,
}

/// Inputs of [`Backend::rope_store`] besides the tensors.
#[derive(Clone, Copy, Debug)]
pub struct RopeStore<'a, T> {
    /// How a qkv row is packed.
    pub heads: HeadLayout,
    /// Layer whose keys and values are written.
    pub layer: usize,
    /// RMSNorm of queries and keys before rotation.
    pub qk_norm: Option<QkNorm<'a, T>>,
}

/// A device that computes a decoder's steps. Tensors are contiguous `[rows, width]`; outputs are allocated
/// before the first step and every op sets the number of rows of its output. `x[r]` is row `r`.
///
/// Ops may be queued and computed later, in the order of the calls, on copies of what they were given; only
/// [`download`](Self::download) and [`collect`](Self::collect) wait.
pub trait Backend: Send + Sized + 'static {
    /// Activations: up to `capacity` rows of `width` elements (f32 on the CPU).
    type Tensor: Send;
    /// A weight matrix (or several stacked along their outputs) in the layout the kernels want, with its
    /// optional bias.
    type Linear: Send;
    /// Paged keys and values of all layers, bf16.
    type Kv: Send;
    /// Weight matrices of equal shape, one for each expert of a mixture.
    type Experts: Send;
    /// Which experts the rows of a step chose.
    type Routes: Send;
    /// Cosines and sines of every position.
    type Rope: Send;
    /// The index arrays of one step on the device, with the work of its attention, which every layer uses.
    type Batch: Send;
    /// Answers of one step that may not have come yet.
    type Pending: Send;

    // Memory: what is allocated and filled before the first step.

    /// An empty tensor for up to `capacity` rows of `width` elements.
    fn tensor(&mut self, capacity: usize, width: usize) -> Result<Self::Tensor, BackendError>;

    /// A one-row tensor holding `values` (norm weights).
    fn upload(&mut self, values: &[f32]) -> Result<Self::Tensor, BackendError>;

    /// Copies the rows of `tensor` to `out`, row after row: `out.len() == rows * width`.
    fn download(&mut self, tensor: &Self::Tensor, out: &mut [f32]);

    /// Repacks `parts`, stacked along their outputs (fused qkv, gate over up), with `bias[n_out]` added to
    /// the product. Parts share `n_in` and may differ in format.
    fn linear(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<Self::Linear, BackendError>;

    /// As [`linear`](Self::linear), of matrices whose inputs stand in another order than the activations:
    /// input `i` of `parts` is multiplied with `x[r][order[i]]` (GPTQ's act-order). `order` is a permutation
    /// of `0..n_in`. All parts are quantized, and the layer cannot embed.
    fn linear_in_order(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
        order: &[u32],
    ) -> Result<Self::Linear, BackendError> {
        let (_, _) = (bias, order);
        Err(BackendError::BadMatrix {
            format: parts[0].format,
            n_out: parts[0].n_out,
            n_in: parts[0].n_in,
            reason: "this device takes no inputs in another order",
        })
    }

    /// Joins the matrices of all experts, each made by [`linear`](Self::linear) of parts of equal shapes.
    fn experts(&mut self, linears: Vec<Self::Linear>) -> Result<Self::Experts, BackendError>;

    /// Room for the choices of up to `shape.max_rows` rows, and for what
    /// [`expert_matmul`](Self::expert_matmul) needs for as many of all [`experts`](Self::experts).
    fn routes(&mut self, shape: RoutesShape) -> Result<Self::Routes, BackendError>;

    /// A pool of `shape.n_pages` pages, all memory touched so that it is really there.
    fn kv(&mut self, shape: KvShape) -> Result<Self::Kv, BackendError>;

    /// The table, where the kernels read it.
    fn rope(&mut self, table: RopeTable) -> Result<Self::Rope, BackendError>;

    /// An empty batch, and all that attention needs for any batch of this shape. `windows` has each that the
    /// [`AttentionSpec`]s of the layers have.
    fn batch(&mut self, shape: BatchShape, windows: &[Option<usize>]) -> Result<Self::Batch, BackendError>;

    /// Room for the answers of a step with up to `max_logit_rows` rows of logits.
    fn pending(&mut self, max_logit_rows: usize) -> Result<Self::Pending, BackendError>;

    // One step: its inputs, the ops of the forward pass, its answers.

    /// Replaces the batch by `rows` and prepares its attention: who shares which pages, how the work is cut.
    /// Costs no heap once warm.
    fn upload_batch(&mut self, rows: &StepRows<'_>, batch: &mut Self::Batch);

    /// Runs `forward`, which calls only the ops below up to [`gather`](Self::gather) and always the same for
    /// batches of the same numbers of rows: a device may record its commands once and replay them.
    fn recorded(&mut self, batch: &Self::Batch, forward: &mut dyn FnMut(&mut Self)) {
        let _ = batch;
        forward(self);
    }

    /// `out[r] = table[ids[r]]`: rows of the embedding (possibly the tied head), dequantized to f32. Exact.
    fn embed(&mut self, table: &Self::Linear, batch: &Self::Batch, out: &mut Self::Tensor);

    /// `out[r] = norm(x[r])`.
    fn norm(&mut self, x: &Self::Tensor, norm: &Norm<'_, Self::Tensor>, out: &mut Self::Tensor);

    /// `residual[r] += delta[r]`, then `out[r] = norm(residual[r])`.
    fn add_norm(
        &mut self,
        residual: &mut Self::Tensor,
        delta: &Self::Tensor,
        norm: &Norm<'_, Self::Tensor>,
        out: &mut Self::Tensor,
    );

    /// `residual[r] += delta[r]`.
    fn add(&mut self, residual: &mut Self::Tensor, delta: &Self::Tensor);

    /// `x[r][i] = function(x[r][i])`.
    fn elementwise(&mut self, x: &mut Self::Tensor, function: Elementwise);

    /// `out[r][o] = bias[o] + sum_i x[r][i] * w[o][i]`, the sum over `i` in one fixed order (C1).
    /// Block-quantized formats multiply with activations quantized to int8 per row and block of 32; F32, F16
    /// and BF16 multiply in f32.
    fn matmul(&mut self, w: &Self::Linear, x: &Self::Tensor, out: &mut Self::Tensor);

    /// Chooses `n_used` experts for each row of `logits`: those with the largest
    /// `score(logit) + choice_bias`, of equal ones the lower number. (The order of softmax scores is that of
    /// their logits.) Their weights are `scale * score`, or `scale * score / sum of the chosen scores`. Each
    /// pair of a row and an expert gets a slot; slots are in the order of experts, those of one expert in the
    /// order of rows.
    fn route(
        &mut self,
        logits: &Self::Tensor,
        routing: &Routing<'_, Self::Tensor>,
        routes: &mut Self::Routes,
    );

    /// `out[s] = W_e input[s] + bias_e`, `e` the expert of slot `s`, in the arithmetic of
    /// [`matmul`](Self::matmul). The weights of an expert are read once for all its slots, or for as many as
    /// the caches hold; those of experts that no row chose are not read.
    fn expert_matmul(
        &mut self,
        experts: &Self::Experts,
        input: ExpertInput<'_, Self::Tensor>,
        routes: &Self::Routes,
        out: &mut Self::Tensor,
    );

    /// `out[r] = sum_i weight[r][i] * x[slot of r and its expert i]`, experts with larger scores first (C1),
    /// plus `sigmoid(gate[r]) * shared[r]`, or `shared[r]` without a gate, where there is a shared expert.
    fn combine(
        &mut self,
        x: &Self::Tensor,
        routes: &Self::Routes,
        shared: Option<SharedExpert<'_, Self::Tensor>>,
        out: &mut Self::Tensor,
    );

    /// Sums `x` over the ranks that hold a part of each weight matrix (tensor parallelism), in one fixed
    /// order. With one rank there is nothing to sum.
    fn all_reduce(&mut self, x: &mut Self::Tensor) {
        let _ = x;
    }

    /// Rotates queries and keys of `qkv` in place (after the optional RMSNorm) and writes keys and values to
    /// the slots of their rows, rounded to bf16 (nearest even):
    /// `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair of the table's style. Without a table nothing
    /// is rotated.
    fn rope_store(
        &mut self,
        qkv: &mut Self::Tensor,
        rope: Option<&Self::Rope>,
        store: &RopeStore<'_, Self::Tensor>,
        batch: &Self::Batch,
        kv: &mut Self::Kv,
    );

    /// For every query head `h` of row `r`, over the tokens `t` below the row's limit and in its window:
    /// `out[r][h] = sum_t softmax_t(cap(scale * q[r][h] . k[t][g])) v[t][g]`,
    /// `g = h / (n_heads / n_kv_heads)`, as a left fold over absolute blocks (C2). `cap(s)` is `s`, or
    /// `soft_cap * tanh(s / soft_cap)` where the layer has a soft cap. The softmax goes over one more score,
    /// `sinks[h]`, where the layer has sinks: the fold begins with it. `qkv` rows are packed as in
    /// [`HeadLayout`]; `out` is `[rows, n_heads * head_dim]`.
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        kv: &Self::Kv,
        layer: AttentionLayer<'_, Self::Tensor>,
        batch: &Self::Batch,
        out: &mut Self::Tensor,
    );

    /// `out[r][i] = activation(x[r][i]) * x[r][n + i]`; `x` is `[rows, 2n]` (gate, up). The second factor of
    /// [`Activation::ClampedSwish`] is its own.
    fn gated(&mut self, x: &Self::Tensor, activation: Activation, out: &mut Self::Tensor);

    /// `out[i] = x[logit_rows[i]]`: the rows whose logits are wanted.
    fn gather(&mut self, x: &Self::Tensor, batch: &Self::Batch, out: &mut Self::Tensor);

    /// One token per row of `logits`, `None` where no allowed token has a finite logit. Order: allowed
    /// tokens, adjustments, temperature, top-k, top-p, min-p, then the inverse of the cumulative
    /// distribution (likeliest first, then token id) at `noise / 2^64`.
    ///
    /// Of the same logits the log-probabilities that `wanted` asks for:
    /// `logprob(t) = logit(t) - ln(sum_i exp(logit(i)))` over the finite logits of the row.
    fn sample(
        &mut self,
        logits: &Self::Tensor,
        rows: &[SampleRow<'_>],
        wanted: &[LogprobRow],
        pending: &mut Self::Pending,
    );

    /// Whether [`collect`](Self::collect) would not have to wait.
    fn is_done(&mut self, pending: &Self::Pending) -> bool {
        let _ = pending;
        true
    }

    /// Waits for what [`sample`](Self::sample) asked for and hands it out.
    fn collect(&mut self, pending: &mut Self::Pending, answers: &mut Answers);

    /// Waits until this engine may compute, on a device that several share. Called before each step.
    fn begin_step(&mut self) {}

    /// Lets others compute until the next step begins.
    fn rest(&mut self) {}

    /// Whether the device is gone for good: nothing it computes from now on means anything.
    fn is_lost(&self) -> bool {
        false
    }

    // Pages.

    /// Copies page `from` to page `to` in every layer, keys and values.
    fn copy_page(&mut self, kv: &mut Self::Kv, from: u32, to: u32);

    /// Fills a page with NaN in every layer, so that a read of a page nobody owns shows up. For tests and
    /// debug builds.
    fn poison_page(&mut self, kv: &mut Self::Kv, page: u32);
}
