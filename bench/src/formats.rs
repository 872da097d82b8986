//! One linear layer in every quantization beside Q4_1: weights per second, bytes of them per second, and
//! ratios of measurements taken in turns.

use std::io::Write;

use arbora_kernels::cpu::packed_block_bytes;
use arbora_kernels::quant::Format;

use crate::http::BenchError;
use crate::kernels::{Case, Shape, chosen_isa, median};
use crate::machine;

/// Options of the bench of quantizations.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Quantizations by GGUF's names instead of all.
    #[arg(long, value_delimiter = ',')]
    formats: Vec<String>,
    /// Rows of activations in a product.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 512])]
    rows: Vec<usize>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Instruction set (avx512, avx2, scalar) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
    /// Times that each measurement is taken.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

const fn layer(format: Format) -> Shape {
    Shape {
        name: "layer",
        format,
        n_in: 1536,
        n_out: 3072,
        n_uses: 1,
    }
}

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let isa = chosen_isa(arguments.isa.as_deref())?;
    writeln!(
        out,
        "{}; {}; {} threads",
        machine::describe(),
        isa.name(),
        arguments.threads
    )?;
    writeln!(
        out,
        "format    bits: file  memory    rows   Gweights/s     GB/s   weights/s, GB/s of Q4_1's"
    )?;
    let bits = |bytes: usize, format: Format| (8 * bytes) as f64 / format.block_len() as f64;
    let wanted = |format: &Format| {
        let is_named = |name: &String| name.eq_ignore_ascii_case(format.name());
        format.is_quantized() && (arguments.formats.is_empty() || arguments.formats.iter().any(is_named))
    };
    let mut base = Case::new(&layer(Format::Q4_1), isa, arguments.threads)?;
    for format in Format::ALL.into_iter().filter(wanted) {
        let shape = layer(format);
        let mut case = Case::new(&shape, isa, arguments.threads)?;
        let in_memory = bits(packed_block_bytes(format), format);
        for &n_rows in &arguments.rows {
            let (mut seconds, mut ratios) = (Vec::new(), Vec::new());
            for _ in 0..arguments.rounds.max(1) {
                let of_base = base.seconds_per_product(n_rows)?;
                let own = case.seconds_per_product(n_rows)?;
                seconds.push(own);
                ratios.push(of_base / own);
            }
            let weights = (shape.n_in * shape.n_out) as f64 / median(&mut seconds);
            let ratio = median(&mut ratios);
            writeln!(
                out,
                "{:8} {:11.3} {:7.3} {:7} {:12.2} {:8.2} {:12.2} {:8.2}",
                format.name(),
                bits(format.block_bytes(), format),
                in_memory,
                n_rows,
                weights * n_rows as f64 / 1e9,
                weights * in_memory / 8e9,
                ratio,
                ratio * in_memory / bits(packed_block_bytes(Format::Q4_1), Format::Q4_1),
            )?;
        }
    }
    Ok(())
}
