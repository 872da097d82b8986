//! [`Backend`] on the CPU: the modules of the ops behind the trait's names.

use std::f64::consts::LOG2_E;

use super::attention::{self, AttentionCall};
use super::attention_kernel::AttentionKernel;
use super::experts::ExpertCall;
use super::rows;
use super::{CpuBackend, CpuBatch, CpuExperts, CpuKv, CpuLinear, CpuRoutes, CpuTensor};
use crate::{
    Activation, Answers, AttentionLayer, Backend, BackendError, BatchShape, Elementwise, ExpertInput,
    KvShape, LogprobRow, MatrixSource, Norm, RopeStore, RopeTable, RoutesShape, Routing, SampleRow,
    SharedExpert, StepRows,
};

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Linear = CpuLinear;
    type Experts = CpuExperts;
    type Routes = CpuRoutes;
    type Kv = CpuKv;
    type Rope = RopeTable;
    type Batch = CpuBatch;
    type Pending = Answers;

    fn begin_step(&mut self) {
        self.claim.begin_step();
    }

    fn rest(&mut self) {
        self.claim.rest();
    }

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
        let linear = CpuLinear::new(parts, bias, &mut self.claim.pool())?;
        if linear.has_quantized_part() {
            self.quantized.expect_layer(linear.n_in())?;
        }
        Ok(linear)
    }

    fn experts(&mut self, linears: Vec<CpuLinear>) -> Result<CpuExperts, BackendError> {
        let experts = CpuExperts::new(linears)?;
        self.experts.expect_experts(&experts, &mut self.quantized)?;
        Ok(experts)
    }

    fn routes(&mut self, shape: RoutesShape) -> Result<CpuRoutes, BackendError> {
        self.experts.expect_routes(shape, &mut self.quantized)?;
        Ok(CpuRoutes::new(shape, self.claim.n_threads()))
    }

    fn linear_in_order(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
        order: &[u32],
    ) -> Result<CpuLinear, BackendError> {
        self.linear(parts, bias)?.in_order(order)
    }

    fn kv(&mut self, shape: KvShape) -> Result<CpuKv, BackendError> {
        CpuKv::new(shape)
    }

    fn rope(&mut self, table: RopeTable) -> Result<RopeTable, BackendError> {
        Ok(table)
    }

    fn batch(&mut self, shape: BatchShape, windows: &[Option<usize>]) -> Result<CpuBatch, BackendError> {
        self.attention.reserve(&shape)?;
        Ok(CpuBatch::new(shape, windows))
    }

    fn pending(&mut self, max_logit_rows: usize) -> Result<Answers, BackendError> {
        Ok(Answers {
            tokens: Vec::with_capacity(max_logit_rows),
            logprobs: Vec::with_capacity(max_logit_rows),
        })
    }

    fn upload_batch(&mut self, rows: &StepRows<'_>, batch: &mut CpuBatch) {
        batch.fill(rows, self.claim.n_threads());
    }

    fn embed(&mut self, table: &CpuLinear, batch: &CpuBatch, out: &mut CpuTensor) {
        table.embed(&mut self.claim.pool(), &batch.ids, out);
    }

    fn norm(&mut self, x: &CpuTensor, norm: &Norm<'_, CpuTensor>, out: &mut CpuTensor) {
        self.row_kernels.norm(&mut self.claim.pool(), x, norm, out);
    }

    fn add_norm(
        &mut self,
        residual: &mut CpuTensor,
        delta: &CpuTensor,
        norm: &Norm<'_, CpuTensor>,
        out: &mut CpuTensor,
    ) {
        self.row_kernels
            .add_norm(&mut self.claim.pool(), residual, delta, norm, out);
    }

    fn add(&mut self, residual: &mut CpuTensor, delta: &CpuTensor) {
        self.row_kernels.add(&mut self.claim.pool(), residual, delta);
    }

    fn elementwise(&mut self, x: &mut CpuTensor, function: Elementwise) {
        self.row_kernels.elementwise(&mut self.claim.pool(), x, function);
    }

    fn matmul(&mut self, w: &CpuLinear, x: &CpuTensor, out: &mut CpuTensor) {
        w.multiply(
            &mut self.claim.pool(),
            self.linear_kernels,
            &mut self.quantized,
            x,
            out,
        );
    }

    fn route(&mut self, logits: &CpuTensor, routing: &Routing<'_, CpuTensor>, routes: &mut CpuRoutes) {
        routes.choose(&mut self.claim.pool(), logits, routing);
    }

    fn expert_matmul(
        &mut self,
        experts: &CpuExperts,
        input: ExpertInput<'_, CpuTensor>,
        routes: &CpuRoutes,
        out: &mut CpuTensor,
    ) {
        let call = ExpertCall {
            experts,
            input,
            routes,
            out,
        };
        self.experts.multiply(
            &mut self.claim.pool(),
            self.linear_kernels,
            &mut self.quantized,
            call,
        );
    }

    fn combine(
        &mut self,
        x: &CpuTensor,
        routes: &CpuRoutes,
        shared: Option<SharedExpert<'_, CpuTensor>>,
        out: &mut CpuTensor,
    ) {
        self.row_kernels
            .combine(&mut self.claim.pool(), (x, routes), shared, out);
    }

    fn rope_store(
        &mut self,
        qkv: &mut CpuTensor,
        rope: Option<&RopeTable>,
        store: &RopeStore<'_, CpuTensor>,
        batch: &CpuBatch,
        kv: &mut CpuKv,
    ) {
        self.row_kernels
            .rope_store(&mut self.claim.pool(), qkv, (rope, store), batch, kv);
    }

    fn attention(
        &mut self,
        qkv: &CpuTensor,
        kv: &CpuKv,
        AttentionLayer { layer, spec, sinks }: AttentionLayer<'_, CpuTensor>,
        batch: &CpuBatch,
        out: &mut CpuTensor,
    ) {
        let plan = batch.attention(spec.window);
        let heads = plan.heads();
        // Capped scores are divided by the cap on the way in and become base 2 on the way out.
        let (query_scale, cap) = match spec.soft_cap.map(f64::from) {
            None => (LOG2_E * spec.scale, 1.0),
            Some(cap) => (spec.scale / cap, LOG2_E * cap),
        };
        let mut call = AttentionCall {
            kernel: AttentionKernel::of(self.isa, heads.head_dim, spec),
            query_scale: query_scale as f32,
            cap: cap as f32,
            plan,
            kv,
            layer,
            sinks: sinks.map(|sinks| sinks.vector(heads.n_heads)),
            qkv: qkv.values(),
            out: out.output(plan.n_rows(), heads.n_heads * heads.head_dim),
        };
        attention::attend(&mut self.claim.pool(), &mut self.attention, &mut call);
    }

    fn gated(&mut self, x: &CpuTensor, activation: Activation, out: &mut CpuTensor) {
        self.row_kernels.gated(&mut self.claim.pool(), x, activation, out);
    }

    fn gather(&mut self, x: &CpuTensor, batch: &CpuBatch, out: &mut CpuTensor) {
        rows::gather(x, &batch.logit_rows, out);
    }

    fn sample(
        &mut self,
        logits: &CpuTensor,
        rows: &[SampleRow<'_>],
        wanted: &[LogprobRow],
        pending: &mut Answers,
    ) {
        let spaces = &mut self.sample_spaces;
        self.row_kernels
            .sample(&mut self.claim.pool(), logits, (rows, wanted), (spaces, pending));
    }

    fn collect(&mut self, pending: &mut Answers, answers: &mut Answers) {
        // Both keep their memory.
        std::mem::swap(pending, answers);
    }

    fn copy_page(&mut self, kv: &mut CpuKv, from: u32, to: u32) {
        kv.copy_page(from, to);
    }

    fn poison_page(&mut self, kv: &mut CpuKv, page: u32) {
        kv.poison_page(page);
    }
}
