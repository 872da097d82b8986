//! Thread pool beside busy processes: jobs per second for every way of pinning, by the time an item takes.
//!
//! A job has 16 items without memory traffic, as a product of a decode step is cut for two threads; 210 of
//! them and a pause of the workers make a step. Ways take turns, each `--rounds` times; medians count.

use std::hint::black_box;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arbora_kernels::cpu::{Pinning, ThreadPool};
use arbora_kernels::host;

use crate::http::BenchError;
use crate::kernels::median;
use crate::machine;

/// Options of the pool bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Threads of the pool; one thread is measured besides.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Microseconds of an item.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 6, 200])]
    item_us: Vec<u64>,
    /// Busy processes beside the pool.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2])]
    neighbours: Vec<usize>,
    /// Measurements of each way.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

const N_ITEMS: usize = 16;
const JOBS_PER_STEP: u32 = 210;
/// Between steps only the caller works.
const PAUSE_US: u64 = 100;
const MEASUREMENT: Duration = Duration::from_millis(500);

const WAYS: [(&str, Pinning); 3] = [
    ("auto", Pinning::Auto),
    ("none", Pinning::Free),
    ("cores", Pinning::Cores),
];

/// A busy process until it is dropped.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Result<Neighbour, BenchError> {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        host::tie_to_this_thread(&mut command);
        Ok(Neighbour(command.spawn()?))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        host::kill_group(&self.0);
        // It was killed, so it ends.
        self.0.wait().ok();
    }
}

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    writeln!(out, "{}", machine::describe())?;
    writeln!(
        out,
        "neighbours  us an item  threads  pinning   jobs/s  x one thread  rescues/s  % waited"
    )?;
    let per_us = turns_per_us();
    for &n_neighbours in &arguments.neighbours {
        let neighbours: Vec<Neighbour> = std::iter::repeat_with(Neighbour::start)
            .take(n_neighbours)
            .collect::<Result<_, _>>()?;
        for &item_us in &arguments.item_us {
            let mut ways = vec![Way::new(1, ("-", Pinning::Free))];
            ways.extend(WAYS.map(|way| Way::new(arguments.threads, way)));
            for _ in 0..arguments.rounds {
                for way in &mut ways {
                    way.measure(item_us, per_us)?;
                }
            }
            let one = median(&mut ways[0].rates);
            for way in &mut ways {
                let rate = median(&mut way.rates);
                writeln!(
                    out,
                    "{n_neighbours:10} {item_us:11} {:8}  {:7} {rate:8.0} {:13.2} {:10.0} {:9.1}",
                    way.n_threads,
                    way.name,
                    rate / one,
                    median(&mut way.rescues),
                    100.0 * median(&mut way.waited)
                )?;
            }
        }
        drop(neighbours);
    }
    Ok(())
}

/// One row of the table.
struct Way {
    n_threads: usize,
    name: &'static str,
    pinning: Pinning,
    /// Of each measurement: jobs per second, rescues per second, share of the time waited.
    rates: Vec<f64>,
    rescues: Vec<f64>,
    waited: Vec<f64>,
}

impl Way {
    fn new(n_threads: usize, (name, pinning): (&'static str, Pinning)) -> Way {
        Way {
            n_threads,
            name,
            pinning,
            rates: Vec::new(),
            rescues: Vec::new(),
            waited: Vec::new(),
        }
    }

    fn measure(&mut self, item_us: u64, per_us: u64) -> Result<(), BenchError> {
        let mut pool = ThreadPool::new(self.n_threads, self.pinning)?;
        let metrics = pool.metrics();
        let start = Instant::now();
        let mut n_jobs = 0;
        while start.elapsed() < MEASUREMENT {
            // Steps of long items are cut short, or one would be the whole measurement.
            let n = JOBS_PER_STEP
                .min(u32::try_from(2000 / item_us.max(1)).unwrap_or(JOBS_PER_STEP))
                .max(1);
            for _ in 0..n {
                pool.run(N_ITEMS, 1, |_, items| items.for_each(|_| turn(item_us * per_us)));
            }
            turn(PAUSE_US * per_us);
            n_jobs += n;
        }
        let seconds = start.elapsed().as_secs_f64();
        self.rates.push(f64::from(n_jobs) / seconds);
        self.rescues.push(metrics.n_rescues() as f64 / seconds);
        self.waited.push(metrics.waited().as_secs_f64() / seconds);
        Ok(())
    }
}

/// Arithmetic that takes as long as `n` is large.
fn turn(n: u64) {
    let mut x = 1u64;
    for _ in 0..n {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// The fastest of a few tries: a slow one was interrupted.
fn turns_per_us() -> u64 {
    const TURNS: u64 = 2_000_000;
    let seconds = (0..10).map(|_| {
        let start = Instant::now();
        turn(TURNS);
        start.elapsed().as_secs_f64()
    });
    let fastest = seconds.fold(f64::INFINITY, f64::min);
    (TURNS as f64 / fastest / 1e6) as u64
}
