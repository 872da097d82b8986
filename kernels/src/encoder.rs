//! What encoders (BERT and its kin) need of a backend besides the verbs of decoders: products with weights of
//! 12 bits, sums of embeddings, and attention in which every token of a text sees every other one.
//!
//! Several texts of any lengths are rows one after the other, without padding:
//!
//! ```text
//! ends = [3, 8, 9]      rows 0..3 are the first text, 3..8 the second, 8..9 the third
//! ```

use crate::{Activation, Backend, BackendError, HeadLayout, MatrixSource, RopeTable};

/// Largest weight of an output, as an integer.
pub const DENSE_WEIGHT_STEPS: i32 = 2047;

/// Largest activation of a row, as an integer.
pub const DENSE_INPUT_STEPS: i32 = 4095;

/// Inputs whose products are summed as integers: `2047 * 4095 * 256 < 2^31`.
pub const DENSE_CHUNK: usize = 256;

/// Rows of embeddings that are added up: a table, and its row for each row of the sum.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingRows<'a, T> {
    /// `[n, width]`.
    pub table: &'a T,
    /// Rows of it.
    pub ids: &'a [u32],
}

/// Queries, keys and values of several texts.
#[derive(Clone, Copy, Debug)]
pub struct TextAttention<'a> {
    /// How a row is packed.
    pub heads: HeadLayout,
    /// Where each text ends, ascending.
    pub ends: &'a [usize],
    /// Factor of the products of queries and keys, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// What the memory that ops of encoders work in is made for.
#[derive(Clone, Copy, Debug)]
pub struct TextLimits {
    /// Most rows of all texts.
    pub max_rows: usize,
    /// Most rows of one text.
    pub max_text_rows: usize,
    /// Most inputs of a dense layer.
    pub max_inputs: usize,
    /// Elements per head, a multiple of 8.
    pub head_dim: usize,
}

/// A device that computes encoders. Contract C1 holds here too: a row of a product depends on that row only,
/// the attention of a text on that text only, bit for bit.
pub trait EncoderBackend: Backend {
    /// A weight matrix with its bias, 12 bits a weight.
    type Dense: Send;

    /// A tensor of `values.len() / width` rows (tables of embeddings).
    ///
    /// # Panics
    /// When `values` is no whole number of rows.
    fn table(&mut self, values: &[f32], width: usize) -> Result<Self::Tensor, BackendError>;

    /// Rounds `parts` (F32, F16 or BF16), stacked along their outputs, to 12 bits:
    ///
    /// ```text
    /// scale[o]  = max_i |w[o][i]| / 2047
    /// weight[o] = round(w[o] / scale[o])
    /// ```
    fn dense(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<Self::Dense, BackendError>;

    /// Makes room for the ops below, which allocate nothing.
    fn reserve_texts(&mut self, limits: TextLimits) -> Result<(), BackendError>;

    /// `out[r] = sum_t tables[t].table[tables[t].ids[r]]`, added in their order.
    ///
    /// # Panics
    /// When an id is no row of its table.
    fn embed_sum(&mut self, tables: &[EmbeddingRows<'_, Self::Tensor>], out: &mut Self::Tensor);

    /// `out[r][o] = activation(bias[o] + sum_i x[r][i] * w[o][i])`, the row's activations rounded to 13 bits
    /// as the weights are: products are exact integers, summed exactly over [`DENSE_CHUNK`] inputs; the sums
    /// of the chunks are added in f32, ascending.
    fn dense_matmul(
        &mut self,
        w: &Self::Dense,
        x: &Self::Tensor,
        activation: Option<Activation>,
        out: &mut Self::Tensor,
    );

    /// Rotates queries and keys of `qkv` in place by the positions of their rows.
    fn rotate_texts(
        &mut self,
        qkv: &mut Self::Tensor,
        heads: HeadLayout,
        rope: &RopeTable,
        positions: &[u32],
    );

    /// For every head `h` of row `r` of a text, over the rows `t` of the same text:
    /// `out[r][h] = sum_t softmax_t(scale * q[r][h] . k[t][g]) v[t][g]`, `g = h / (n_heads / n_kv_heads)`.
    fn attend_texts(&mut self, qkv: &Self::Tensor, texts: &TextAttention<'_>, out: &mut Self::Tensor);
}
