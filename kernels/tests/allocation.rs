//! A forward pass of ops costs no heap once it has run (C6).

#![expect(unsafe_code, reason = "an allocator that counts is one")]

#[expect(dead_code, reason = "this test makes its batch once")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use arbora_kernels::cpu::{CpuBackend, CpuBatch, CpuConfig, CpuExperts, CpuRoutes, CpuTensor, Isa, Pinning};
use arbora_kernels::quant::Format;
use arbora_kernels::{
    Activation, Adjustment, Allowed, Answers, AttentionLayer, AttentionSpec, Backend, BatchShape,
    Elementwise, ExpertInput, HeadLayout, KvShape, MatrixSource, RopeStore, RopeStyle, RopeTable,
    RouterScore, RoutesShape, Routing, SampleRow, SequenceRows, StepRows,
};
use support::{Random, random_matrix, random_rows, rms};

static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are the callee's.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the callee's.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HEADS: HeadLayout = HeadLayout {
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 16,
};
const N_VOCAB: usize = 300;
const N_ROWS: usize = 35;
const N_EXPERTS: usize = 5;
const N_USED: usize = 2;
/// Two prompts that share their first page, and a single row.
const SEQUENCES: [SequenceRows; 3] = [
    SequenceRows {
        first_row: 0,
        n_rows: 20,
        first_position: 0,
        first_page: 0,
        n_pages: 2,
    },
    SequenceRows {
        first_row: 20,
        n_rows: 14,
        first_position: 16,
        first_page: 2,
        n_pages: 2,
    },
    SequenceRows {
        first_row: 34,
        n_rows: 1,
        first_position: 5,
        first_page: 4,
        n_pages: 1,
    },
];
const PAGE_TABLES: [u32; 5] = [0, 1, 0, 2, 3];

/// One layer, once through.
struct Step {
    backend: CpuBackend,
    embedding: <CpuBackend as Backend>::Linear,
    qkv: <CpuBackend as Backend>::Linear,
    gate_up: <CpuBackend as Backend>::Linear,
    router: <CpuBackend as Backend>::Linear,
    /// In a quantized and in a plain format.
    experts: [CpuExperts; 2],
    routes: CpuRoutes,
    sinks: CpuTensor,
    kv: <CpuBackend as Backend>::Kv,
    norm: CpuTensor,
    rope: RopeTable,
    batch: CpuBatch,
    x: CpuTensor,
    h: CpuTensor,
    normed: CpuTensor,
    packed: CpuTensor,
    gated: CpuTensor,
    scores: CpuTensor,
    slots: CpuTensor,
    logits: CpuTensor,
    samples: Vec<SampleRow<'static>>,
    pending: Answers,
    answers: Answers,
}

impl Step {
    fn new(isa: Isa, n_threads: usize, random: &mut Random) -> Step {
        let mut backend = CpuBackend::new(CpuConfig {
            n_threads,
            isa: Some(isa),
            pinning: Pinning::Auto,
        })
        .expect("an available instruction set");
        let mut linear = |backend: &mut CpuBackend, format, n_out| {
            let bytes = random_matrix(format, n_out, 64, random);
            let source = MatrixSource {
                format,
                n_out,
                n_in: 64,
                bytes: &bytes,
            };
            backend.linear(&[source], None).expect("a good matrix")
        };
        let embedding = linear(&mut backend, Format::Q8_0, N_VOCAB);
        let qkv = linear(&mut backend, Format::Q4_1, HEADS.qkv_width());
        let gate_up = linear(&mut backend, Format::Bf16, 128);
        let router = linear(&mut backend, Format::F32, N_EXPERTS);
        let experts = [Format::Q4_0, Format::F16].map(|format| {
            let linears = (0..N_EXPERTS).map(|_| linear(&mut backend, format, 64)).collect();
            backend.experts(linears).expect("equal shapes")
        });
        let routes = RoutesShape {
            max_rows: N_ROWS,
            n_experts: N_EXPERTS,
            n_used: N_USED,
        };
        let kv = KvShape {
            n_layers: 1,
            n_kv_heads: HEADS.n_kv_heads,
            head_dim: HEADS.head_dim,
            page_size: 16,
            n_pages: 4,
        };
        let shape = BatchShape {
            heads: HEADS,
            kv,
            max_rows: N_ROWS,
            max_logit_rows: N_ROWS,
            max_sequences: SEQUENCES.len(),
            max_pages: PAGE_TABLES.len(),
        };
        let tensor = |backend: &mut CpuBackend, width| backend.tensor(N_ROWS, width).expect("small");
        Step {
            embedding,
            qkv,
            gate_up,
            router,
            experts,
            routes: backend.routes(routes).expect("small"),
            sinks: backend.upload(&[0.5; HEADS.n_heads]).expect("small"),
            kv: backend.kv(kv).expect("a small pool"),
            norm: backend.upload(&random_rows(1, 64, random)).expect("small"),
            rope: RopeTable {
                style: RopeStyle::Halves,
                rope_dim: 16,
                cos_sin: random_rows(1, 32 * 16, random),
            },
            batch: backend.batch(shape, &[None, Some(10)]).expect("a small batch"),
            x: tensor(&mut backend, 64),
            h: tensor(&mut backend, 64),
            normed: tensor(&mut backend, 64),
            packed: tensor(&mut backend, HEADS.qkv_width()),
            gated: tensor(&mut backend, 128),
            scores: tensor(&mut backend, N_EXPERTS),
            slots: backend.tensor(routes.max_slots(), 64).expect("small"),
            logits: tensor(&mut backend, N_VOCAB),
            samples: samples(),
            pending: backend.pending(N_ROWS).expect("a few answers"),
            answers: backend.pending(N_ROWS).expect("a few answers"),
            backend,
        }
    }

    fn run(&mut self, ids: &[u32], positions: &[u32], slots: &[u32]) {
        let b = &mut self.backend;
        let rows = StepRows {
            ids,
            positions,
            slots,
            logit_rows: ids,
            sequences: &SEQUENCES,
            page_tables: &PAGE_TABLES,
        };
        b.upload_batch(&rows, &mut self.batch);
        b.embed(&self.embedding, &self.batch, &mut self.x);
        b.norm(&self.x, &rms(&self.norm), &mut self.h);
        b.matmul(&self.qkv, &self.h, &mut self.packed);
        let store = RopeStore {
            heads: HEADS,
            layer: 0,
            qk_norm: None,
        };
        b.rope_store(
            &mut self.packed,
            Some(&self.rope),
            &store,
            &self.batch,
            &mut self.kv,
        );
        for window in [Some(10), None] {
            let spec = AttentionSpec {
                window,
                ..AttentionSpec::full(HEADS.head_dim)
            };
            let layer = AttentionLayer {
                layer: 0,
                spec: &spec,
                sinks: Some(&self.sinks),
            };
            b.attention(&self.packed, &self.kv, layer, &self.batch, &mut self.h);
        }
        b.matmul(&self.gate_up, &self.h, &mut self.gated);
        b.gated(&self.gated, Activation::Silu, &mut self.h);
        b.matmul(&self.router, &self.h, &mut self.scores);
        let routing = Routing {
            score: RouterScore::Softmax,
            choice_bias: None,
            is_normalized: true,
            scale: 1.0,
        };
        b.route(&self.scores, &routing, &mut self.routes);
        for experts in &self.experts {
            let input = ExpertInput::Rows(&self.h);
            b.expert_matmul(experts, input, &self.routes, &mut self.slots);
        }
        b.combine(&self.slots, &self.routes, None, &mut self.h);
        b.add_norm(&mut self.x, &self.h, &rms(&self.norm), &mut self.normed);
        b.add(&mut self.x, &self.h);
        b.elementwise(&mut self.x, Elementwise::SoftCap(30.0));
        b.gather(&self.x, &self.batch, &mut self.h);
        b.matmul(&self.embedding, &self.h, &mut self.logits);
        b.sample(&self.logits, &self.samples, &[], &mut self.pending);
        b.collect(&mut self.pending, &mut self.answers);
    }
}

const ADJUSTMENTS: [Adjustment; 1] = [Adjustment {
    token: 1,
    divisor: 1.5,
    shift: -1.0,
}];

/// Every way to sample, one after the other.
fn samples() -> Vec<SampleRow<'static>> {
    (0..N_ROWS)
        .map(|row| SampleRow {
            allowed: [Allowed::All, Allowed::Ids(&[1, 2]), Allowed::Bits(&[0xaaaa; 64])][row / 2 % 3],
            adjustments: [&[][..], &ADJUSTMENTS][row / 4 % 2],
            temperature: [0.0, 0.7, 1.5][row % 3],
            top_k: [0, 5][row / 3 % 2],
            top_p: [1.0, 0.8][row / 6 % 2],
            min_p: [0.0, 0.05][row / 12 % 2],
            noise: row as u64 * 0x0101_0101_0101_0101,
        })
        .collect()
}

#[test]
fn a_warm_step_allocates_nothing() {
    let mut random = Random(9);
    // Tokens of the embedding, and rows to gather.
    let ids: Vec<u32> = (0..N_ROWS).map(|_| random.below(N_ROWS) as u32).collect();
    let (mut positions, mut slots) = (Vec::new(), Vec::new());
    for sequence in SEQUENCES {
        for i in 0..sequence.n_rows {
            let position = sequence.first_position + i;
            positions.push(position as u32);
            slots.push(PAGE_TABLES[sequence.first_page + position / 16] * 16 + position as u32 % 16);
        }
    }
    for isa in Isa::available() {
        for n_threads in [1, 3] {
            let mut step = Step::new(isa, n_threads, &mut random);
            step.run(&ids, &positions, &slots);
            let warm = N_ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..3 {
                step.run(&ids, &positions, &slots);
            }
            let n = N_ALLOCATIONS.load(Ordering::Relaxed) - warm;
            assert_eq!(n, 0, "{} with {n_threads} threads", isa.name());
            assert!(step.answers.tokens.iter().all(Option::is_some));
            assert_eq!(step.answers.tokens.len(), N_ROWS);
        }
    }
}
