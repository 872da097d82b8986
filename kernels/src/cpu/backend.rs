//! [`Backend`] on the CPU: the modules of the ops behind the trait's names.

use super::attention::{self, AttentionCall};
use super::attention_kernel::AttentionKernel;
use super::rows;
use super::{AttentionPlan, CpuBackend, CpuKv, CpuLinear, CpuTensor};
use crate::{
    AttentionRows, Backend, BackendError, HeadLayout, KvShape, LogprobRow, MatrixSource, RopeStore,
    RopeTable, RowLogprobs, SampleRow,
};

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Linear = CpuLinear;
    type Kv = CpuKv;
    type AttentionPlan = AttentionPlan;

    fn tensor(&mut self, capacity: usize, width: usize) -> Result<CpuTensor, BackendError> {
        self.quantized.expect_tensor(capacity, width)?;
        CpuTensor::new(capacity, width)
    }

    fn upload(&mut self, values: &[f32]) -> Result<CpuTensor, BackendError> {
        let mut tensor = CpuTensor::new(1, values.len())?;
        tensor.output(1, values.len()).copy_from_slice(values);
        Ok(tensor)
    }

    fn download(&mut self, tensor: &CpuTensor, out: &mut [f32]) {
        out.copy_from_slice(tensor.values());
    }

    fn linear(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<CpuLinear, BackendError> {
        let linear = CpuLinear::new(parts, bias, &mut self.pool)?;
        if linear.has_quantized_part() {
            self.quantized.expect_layer(linear.n_in())?;
        }
        Ok(linear)
    }

    fn kv(&mut self, shape: KvShape) -> Result<CpuKv, BackendError> {
        CpuKv::new(shape)
    }

    fn embed(&mut self, table: &CpuLinear, ids: &[u32], out: &mut CpuTensor) {
        table.embed(&mut self.pool, ids, out);
    }

    fn rms_norm(&mut self, x: &CpuTensor, weight: &CpuTensor, eps: f32, out: &mut CpuTensor) {
        self.row_kernels.rms_norm(&mut self.pool, x, (weight, eps), out);
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut CpuTensor,
        delta: &CpuTensor,
        weight: &CpuTensor,
        eps: f32,
        out: &mut CpuTensor,
    ) {
        self.row_kernels
            .add_rms_norm(&mut self.pool, residual, delta, (weight, eps), out);
    }

    fn matmul(&mut self, w: &CpuLinear, x: &CpuTensor, out: &mut CpuTensor) {
        w.multiply(&mut self.pool, self.linear_kernels, &mut self.quantized, x, out);
    }

    fn rope_store(
        &mut self,
        qkv: &mut CpuTensor,
        rope: &RopeTable,
        store: &RopeStore<'_, CpuTensor>,
        kv: &mut CpuKv,
    ) {
        self.row_kernels
            .rope_store(&mut self.pool, qkv, (rope, store), kv);
    }

    fn plan_attention(
        &mut self,
        kv: &CpuKv,
        heads: HeadLayout,
        rows: AttentionRows<'_>,
        plan: &mut AttentionPlan,
    ) {
        plan.build(kv.shape(), heads, rows, self.pool.n_threads());
        self.attention.reserve(plan);
    }

    fn attention(
        &mut self,
        qkv: &CpuTensor,
        kv: &CpuKv,
        layer: usize,
        plan: &AttentionPlan,
        out: &mut CpuTensor,
    ) {
        let heads = plan.heads();
        let mut call = AttentionCall {
            kernel: AttentionKernel::of(self.isa, heads.head_dim),
            plan,
            kv,
            layer,
            qkv: qkv.values(),
            out: out.output(plan.n_rows(), heads.n_heads * heads.head_dim),
        };
        attention::attend(&mut self.pool, &mut self.attention, &mut call);
    }

    fn silu_mul(&mut self, x: &CpuTensor, out: &mut CpuTensor) {
        self.row_kernels.silu_mul(&mut self.pool, x, out);
    }

    fn gather(&mut self, x: &CpuTensor, rows: &[u32], out: &mut CpuTensor) {
        rows::gather(x, rows, out);
    }

    fn sample(&mut self, logits: &CpuTensor, rows: &[SampleRow<'_>], out: &mut Vec<Option<u32>>) {
        self.row_kernels
            .sample(&mut self.pool, logits, rows, (&mut self.sample_spaces, out));
    }

    fn logprobs(&mut self, logits: &CpuTensor, rows: &[LogprobRow], out: &mut Vec<Option<RowLogprobs>>) {
        self.row_kernels
            .logprobs(&mut self.pool, logits, rows, (&mut self.sample_spaces, out));
    }

    fn copy_page(&mut self, kv: &mut CpuKv, from: u32, to: u32) {
        kv.copy_page(from, to);
    }

    fn poison_page(&mut self, kv: &mut CpuKv, page: u32) {
        kv.poison_page(page);
    }
}
