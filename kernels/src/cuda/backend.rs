//! The [`Backend`] of one CUDA device.

use std::convert::Infallible;
use std::path::PathBuf;

use super::batch::CudaBatch;
use super::cache::KernelCache;
use super::device::{Argument, Device, DeviceFailure, Function, Geometry};
use super::error::{CudaError, allocation};
use super::graphs::Graphs;
use super::kernels::{Kernels, MAX_SHARED};
use super::kv::CudaKv;
use super::linear::CudaLinear;
use super::memory::{DeviceBytes, Pinned};
use super::nvrtc::Nvrtc;
use super::sample::CudaPending;
use super::tensor::CudaTensor;
use crate::{
    ATTENTION_BLOCK, Activation, Answers, AttentionLayer, Backend, BackendError, BatchShape, Elementwise,
    ExpertInput, KvShape, LogprobRow, MatrixSource, Norm, NormKind, QkNormSpan, RopeStore, RopeStyle,
    RopeTable, RoutesShape, Routing, SampleRow, SharedExpert, StepRows,
};

/// Threads of a block of kernels that serve a row, or single elements.
const ROW_THREADS: usize = 256;
const HEAD_THREADS: usize = 128;
/// As in `kernels/cu/matmul.cu`.
const MATMUL_TILE: usize = 32;
const MATMUL_THREADS: usize = 256;

/// Which device, and where its compiler and the compiled kernels are.
#[derive(Clone, Debug, Default)]
pub struct CudaConfig {
    /// Number of the device.
    pub ordinal: usize,
    /// Folders in which NVRTC is looked for first.
    pub library_folders: Vec<PathBuf>,
    /// Where compiled kernels are kept; they are compiled at every start without.
    pub cache_folder: Option<PathBuf>,
    /// Most CUDA graphs, one for each number of rows and of logits that steps have; 0 queues every kernel.
    pub max_graphs: usize,
}

/// What is enough for the batch sizes of a server that decodes.
pub const DEFAULT_MAX_GRAPHS: usize = 128;

/// Decoder steps on a CUDA device.
pub struct CudaBackend {
    // Graphs and kernels go before their device.
    graphs: Graphs,
    kernels: Kernels,
    device: Device,
}

/// Cosines and sines on the device.
pub struct CudaRope {
    cos_sin: DeviceBytes,
    style: RopeStyle,
    rope_dim: usize,
}

impl CudaBackend {
    /// Opens the device and compiles its kernels, or takes them from the cache.
    pub fn new(config: &CudaConfig) -> Result<CudaBackend, CudaError> {
        let device = Device::open(config.ordinal)?;
        let nvrtc = Nvrtc::load(&config.library_folders)?;
        let kernels = Kernels::load(&device, &nvrtc, &KernelCache::new(config.cache_folder.clone()))?;
        let graphs = Graphs::new(config.max_graphs);
        Ok(CudaBackend {
            graphs,
            kernels,
            device,
        })
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        self.device.name()
    }

    /// Free and all bytes of the device's memory.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.device.memory()
    }

    /// Tells why the device was lost.
    pub fn failure(&self) -> DeviceFailure {
        DeviceFailure::of(&self.device)
    }

    fn launch(&mut self, function: Function, grid: [usize; 2], arguments: &[Argument]) {
        let geometry = Geometry {
            grid,
            threads: ROW_THREADS,
            shared_bytes: 0,
        };
        self.graphs.launch(&self.device, function, geometry, arguments);
    }

    /// Arguments of a norm after those of its rows.
    fn norm_arguments(width: usize, norm: &Norm<'_, CudaTensor>) -> [Argument; 5] {
        let kind = match norm.kind {
            NormKind::Rms => 0,
            NormKind::Layer => 1,
        };
        [
            Argument::U32(width as u32),
            Argument::U32(kind),
            norm.weight.vector(width),
            norm.bias.map_or(Argument::U64(0), |bias| bias.vector(width)),
            Argument::F32(norm.eps),
        ]
    }
}

fn no_experts() -> BackendError {
    BackendError::Unsupported {
        what: "mixtures of experts",
    }
}

fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::ClampedSwish => unreachable!("only experts are activated by it"),
    }
}

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Linear = CudaLinear;
    type Kv = CudaKv;
    type Rope = CudaRope;
    type Batch = CudaBatch;
    type Pending = CudaPending;
    // There are no kernels for mixtures: none can be made.
    type Experts = Infallible;
    type Routes = Infallible;

    fn tensor(&mut self, capacity: usize, width: usize) -> Result<CudaTensor, BackendError> {
        CudaTensor::new(&self.device, capacity, width).map_err(|error| allocation("activations", error))
    }

    fn upload(&mut self, values: &[f32]) -> Result<CudaTensor, BackendError> {
        CudaTensor::of_row(&self.device, values).map_err(|error| allocation("weights", error))
    }

    fn download(&mut self, tensor: &CudaTensor, out: &mut [f32]) {
        assert_eq!(out.len(), tensor.len(), "elements of the rows");
        let mut staging = match Pinned::new(&self.device, out.len() * 4) {
            Ok(staging) => staging,
            Err(error) => return self.device.lose(&error),
        };
        tensor.copy_to(&mut staging);
        self.device.synchronize();
        for (out, bytes) in out.iter_mut().zip(staging.bytes().chunks_exact(4)) {
            *out = f32::from_le_bytes(bytes.try_into().expect("chunks of 4 bytes"));
        }
    }

    fn linear(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<CudaLinear, BackendError> {
        CudaLinear::new(&self.device, parts, bias)
    }

    fn experts(&mut self, _: Vec<CudaLinear>) -> Result<Infallible, BackendError> {
        Err(no_experts())
    }

    fn routes(&mut self, _: RoutesShape) -> Result<Infallible, BackendError> {
        Err(no_experts())
    }

    fn route(&mut self, _: &CudaTensor, _: &Routing<'_, CudaTensor>, routes: &mut Infallible) {
        match *routes {}
    }

    fn expert_matmul(
        &mut self,
        experts: &Infallible,
        _: ExpertInput<'_, CudaTensor>,
        _: &Infallible,
        _: &mut CudaTensor,
    ) {
        match *experts {}
    }

    fn combine(
        &mut self,
        _: &CudaTensor,
        routes: &Infallible,
        _: Option<SharedExpert<'_, CudaTensor>>,
        _: &mut CudaTensor,
    ) {
        match *routes {}
    }

    fn kv(&mut self, shape: KvShape) -> Result<CudaKv, BackendError> {
        CudaKv::new(&self.device, shape)
    }

    fn rope(&mut self, table: RopeTable) -> Result<CudaRope, BackendError> {
        let bytes: Vec<u8> = table
            .cos_sin
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let cos_sin =
            DeviceBytes::holding(&self.device, &bytes).map_err(|error| allocation("rotations", error))?;
        Ok(CudaRope {
            cos_sin,
            style: table.style,
            rope_dim: table.rope_dim,
        })
    }

    fn batch(&mut self, shape: BatchShape, _windows: &[Option<usize>]) -> Result<CudaBatch, BackendError> {
        CudaBatch::new(&self.device, shape).map_err(|error| allocation("index arrays", error))
    }

    fn pending(&mut self, max_logit_rows: usize) -> Result<CudaPending, BackendError> {
        CudaPending::new(&self.device, max_logit_rows).map_err(|error| allocation("answers", error))
    }

    fn upload_batch(&mut self, rows: &StepRows<'_>, batch: &mut CudaBatch) {
        batch.upload(rows);
    }

    fn recorded(&mut self, batch: &CudaBatch, forward: &mut dyn FnMut(&mut Self)) {
        if !self.graphs.records(batch.n_rows) {
            return forward(self);
        }
        self.graphs.begin_trace();
        forward(self);
        let trace = self.graphs.end_trace();
        if self.graphs.replay(trace) {
            return;
        }
        if !self.graphs.has_room() {
            return forward(self);
        }
        self.device.begin_capture();
        forward(self);
        if let Some(graph) = self.device.end_capture() {
            graph.launch();
            self.graphs.keep(trace, graph);
        }
    }

    fn embed(&mut self, table: &CudaLinear, batch: &CudaBatch, out: &mut CudaTensor) {
        let to = out.output(batch.n_rows, table.n_in);
        let mut first_id = 0;
        for part in &table.parts {
            let arguments = [
                Argument::U64(part.data.address()),
                Argument::U32(part.format),
                Argument::U32(first_id),
                Argument::U32(part.n_out as u32),
                batch.ids(),
                to,
                Argument::U32(table.n_in as u32),
            ];
            self.launch(self.kernels.embed, [batch.n_rows, 1], &arguments);
            first_id += part.n_out as u32;
        }
    }

    fn norm(&mut self, x: &CudaTensor, norm: &Norm<'_, CudaTensor>, out: &mut CudaTensor) {
        let rows = [x.at(), out.output(x.n_rows(), x.width())];
        let arguments = [&rows[..], &Self::norm_arguments(x.width(), norm)].concat();
        self.launch(self.kernels.norm, [x.n_rows(), 1], &arguments);
    }

    fn add_norm(
        &mut self,
        residual: &mut CudaTensor,
        delta: &CudaTensor,
        norm: &Norm<'_, CudaTensor>,
        out: &mut CudaTensor,
    ) {
        let (n_rows, width) = (residual.n_rows(), residual.width());
        assert_eq!(
            (n_rows, width),
            (delta.n_rows(), delta.width()),
            "shapes of the addends"
        );
        let rows = [residual.at(), delta.at(), out.output(n_rows, width)];
        let arguments = [&rows[..], &Self::norm_arguments(width, norm)].concat();
        self.launch(self.kernels.add_norm, [n_rows, 1], &arguments);
    }

    fn add(&mut self, residual: &mut CudaTensor, delta: &CudaTensor) {
        assert_eq!(residual.len(), delta.len(), "shapes of the addends");
        let n = residual.len();
        let arguments = [residual.at(), delta.at(), Argument::U64(n as u64)];
        self.launch(self.kernels.add, [n.div_ceil(ROW_THREADS), 1], &arguments);
    }

    fn elementwise(&mut self, x: &mut CudaTensor, function: Elementwise) {
        let (number, argument) = match function {
            Elementwise::Activate(activation) => (activation_number(activation), 0.0),
            Elementwise::Scale(factor) => (3, factor),
            Elementwise::SoftCap(cap) => (4, cap),
        };
        let n = x.len();
        let arguments = [
            x.at(),
            Argument::U64(n as u64),
            Argument::U32(number),
            Argument::F32(argument),
        ];
        self.launch(self.kernels.elementwise, [n.div_ceil(ROW_THREADS), 1], &arguments);
    }

    fn matmul(&mut self, w: &CudaLinear, x: &CudaTensor, out: &mut CudaTensor) {
        assert_eq!(x.width(), w.n_in, "inputs of the product");
        let (n_rows, to) = (x.n_rows(), out.output(x.n_rows(), w.n_out));
        let mut first_out = 0;
        for part in &w.parts {
            let bias = w
                .bias
                .as_ref()
                .map_or(0, |bias| bias.address() + 4 * first_out as u64);
            let arguments = [
                x.at(),
                Argument::U64(part.data.address()),
                Argument::U32(part.format),
                Argument::U64(bias),
                to,
                Argument::U32(n_rows as u32),
                Argument::U32(w.n_in as u32),
                Argument::U32(part.n_out as u32),
                Argument::U32(first_out as u32),
                Argument::U32(w.n_out as u32),
            ];
            let grid = [part.n_out.div_ceil(MATMUL_TILE), n_rows.div_ceil(MATMUL_TILE)];
            let geometry = Geometry {
                grid,
                threads: MATMUL_THREADS,
                shared_bytes: 0,
            };
            self.graphs
                .launch(&self.device, self.kernels.matmul, geometry, &arguments);
            first_out += part.n_out;
        }
    }

    fn rope_store(
        &mut self,
        qkv: &mut CudaTensor,
        rope: Option<&CudaRope>,
        store: &RopeStore<'_, CudaTensor>,
        batch: &CudaBatch,
        kv: &mut CudaKv,
    ) {
        let (heads, width) = (store.heads, store.heads.qkv_width());
        assert_eq!(
            (qkv.n_rows(), qkv.width()),
            (batch.n_rows, width),
            "rows and heads of qkv"
        );
        if let Some(norm) = &store.qk_norm {
            let parts = [
                (0, heads.n_heads, norm.query),
                (heads.n_heads, heads.n_kv_heads, norm.key),
            ];
            for (first_head, n_heads, weight) in parts {
                let (span, n_spans) = match norm.span {
                    QkNormSpan::EachHead => (heads.head_dim, n_heads),
                    QkNormSpan::AllHeads => (n_heads * heads.head_dim, 1),
                };
                let arguments = [
                    qkv.at(),
                    Argument::U32(width as u32),
                    Argument::U32((first_head * heads.head_dim) as u32),
                    Argument::U32(span as u32),
                    weight.vector(span),
                    Argument::F32(norm.eps),
                ];
                self.launch(self.kernels.norm_span, [batch.n_rows, n_spans], &arguments);
            }
        }
        let arguments = [
            qkv.at(),
            Argument::U64(rope.map_or(0, |rope| rope.cos_sin.address())),
            Argument::U32(rope.map_or(0, |rope| rope.rope_dim) as u32),
            Argument::U32(u32::from(
                rope.is_some_and(|rope| rope.style == RopeStyle::Interleaved),
            )),
            batch.positions(),
            batch.slots(),
            kv.layer(store.layer),
            Argument::U32(heads.n_heads as u32),
            Argument::U32(heads.n_kv_heads as u32),
            Argument::U32(heads.head_dim as u32),
            Argument::U32(kv.shape.page_size as u32),
        ];
        let grid = [batch.n_rows, heads.n_heads + 2 * heads.n_kv_heads];
        let geometry = Geometry {
            grid,
            threads: HEAD_THREADS,
            shared_bytes: 0,
        };
        self.graphs
            .launch(&self.device, self.kernels.rope_store, geometry, &arguments);
    }

    fn attention(
        &mut self,
        qkv: &CudaTensor,
        kv: &CudaKv,
        layer: AttentionLayer<'_, CudaTensor>,
        batch: &CudaBatch,
        out: &mut CudaTensor,
    ) {
        assert!(layer.sinks.is_none(), "only layers with experts have sinks");
        let heads = batch.shape().heads;
        assert_eq!(
            (qkv.n_rows(), qkv.width()),
            (batch.n_rows, heads.qkv_width()),
            "rows and heads of qkv"
        );
        let arguments = [
            qkv.at(),
            kv.layer(layer.layer),
            batch.limits(),
            batch.tables(),
            batch.pages(),
            out.output(batch.n_rows, heads.n_heads * heads.head_dim),
            Argument::U32(heads.n_heads as u32),
            Argument::U32(heads.n_kv_heads as u32),
            Argument::U32(heads.head_dim as u32),
            Argument::U32(kv.shape.page_size as u32),
            Argument::U32(layer.spec.window.unwrap_or(0) as u32),
            Argument::F32(layer.spec.scale as f32),
            Argument::F32(layer.spec.soft_cap.unwrap_or(0.0)),
        ];
        let group = heads.n_heads / heads.n_kv_heads;
        let shared_bytes = 4 * group * (2 * heads.head_dim + ATTENTION_BLOCK + 4);
        assert!(
            shared_bytes <= MAX_SHARED,
            "{shared_bytes} bytes of shared memory for {heads:?}"
        );
        let grid = [batch.n_rows, heads.n_kv_heads];
        let geometry = Geometry {
            grid,
            threads: HEAD_THREADS,
            shared_bytes,
        };
        self.graphs
            .launch(&self.device, self.kernels.attention, geometry, &arguments);
    }

    fn gated(&mut self, x: &CudaTensor, activation: Activation, out: &mut CudaTensor) {
        let width = x.width() / 2;
        let arguments = [
            x.at(),
            out.output(x.n_rows(), width),
            Argument::U32(width as u32),
            Argument::U32(activation_number(activation)),
        ];
        self.launch(
            self.kernels.gated,
            [x.n_rows(), width.div_ceil(ROW_THREADS)],
            &arguments,
        );
    }

    fn gather(&mut self, x: &CudaTensor, batch: &CudaBatch, out: &mut CudaTensor) {
        let to = out.output(batch.n_logit_rows, x.width());
        let arguments = [x.at(), batch.logit_rows(), to, Argument::U32(x.width() as u32)];
        self.launch(self.kernels.gather, [batch.n_logit_rows, 1], &arguments);
    }

    fn sample(
        &mut self,
        logits: &CudaTensor,
        rows: &[SampleRow<'_>],
        wanted: &[LogprobRow],
        pending: &mut CudaPending,
    ) {
        pending.sample(&self.kernels, logits, rows, wanted);
    }

    fn is_done(&mut self, pending: &CudaPending) -> bool {
        pending.is_done()
    }

    fn collect(&mut self, pending: &mut CudaPending, answers: &mut Answers) {
        pending.collect(answers);
    }

    fn is_lost(&self) -> bool {
        self.device.is_lost()
    }

    fn copy_page(&mut self, kv: &mut CudaKv, from: u32, to: u32) {
        let bytes = kv.page_bytes();
        for (from, to) in kv.page_starts(from).zip(kv.page_starts(to)) {
            kv.data.copy_within(from, to, bytes);
        }
    }

    fn poison_page(&mut self, kv: &mut CudaKv, page: u32) {
        // All ones is NaN.
        for start in kv.page_starts(page) {
            kv.data.fill(start, kv.page_bytes(), 0xff);
        }
    }
}
