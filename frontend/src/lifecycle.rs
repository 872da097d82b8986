//! Loading and unloading of models while the server runs: on demand, when an operator says so, and when
//! nobody asked for one for long.
//!
//! ```text
//! request ──► registry ──orders──► thread "models" ──► engine threads, which share the cores
//! operator ──────────────orders──►      │
//!                                       └──► a model that is unloaded: nobody new finds it; its engine ends
//!                                            once nobody holds it, or its time is up
//! ```
//!
//! One model is loaded at a time. Where a newer one takes a model's place, the old one serves until the newer
//! one is ready, and goes on where that fails. Where there is too little memory, models that may be unloaded
//! when idle are, the idlest first.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use arbora_kernels::cpu::PoolMetrics;
use arbora_kernels::cpu::cores::Cores;
use arbora_runtime::engine::EngineExit;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, ModelConfig};
use crate::load::StartError;
use crate::log::LogWriter;
use crate::models::{self, Fetching};
use crate::registry::{Model, Models, Slot, State};
use crate::start::{self, Failure, Ready, start_model};
use crate::workers::{Workers, spawn_thread};

/// Orders that may wait.
pub const MAX_ORDERS: usize = 64;
/// Between looks at what changes by itself.
const TICK: Duration = Duration::from_millis(500);
/// The same while a model is being unloaded.
const SHORT_TICK: Duration = Duration::from_millis(20);

/// What becomes of an order of an operator.
pub type Done = oneshot::Sender<Result<(), String>>;

/// What is to become of a model.
#[derive(Debug)]
pub enum Order {
    /// Somebody asked for it. It is marked as loading.
    Load {
        /// Which.
        slot: Arc<Slot>,
    },
    /// It is to be there, or another one in its place.
    Place {
        /// Which.
        slot: Arc<Slot>,
        /// Where it comes from, if not from where it came before.
        source: Option<String>,
        /// Told when it is there.
        done: Done,
    },
    /// It is to be gone.
    Unload {
        /// Which.
        slot: Arc<Slot>,
        /// Told when it is gone.
        done: Done,
    },
}

/// An engine that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub exit: EngineExit,
    /// Why its device was lost.
    pub reason: Option<String>,
}

/// What an engine needs besides its model.
#[derive(Clone, Debug)]
pub struct Means {
    /// Threads that compile grammars.
    pub workers: Workers,
    /// Told of progress.
    pub log: LogWriter,
}

/// A model on its way out.
struct Retiring {
    /// Where it was; absent where another one took its place.
    slot: Option<Arc<Slot>>,
    /// Until its engine is told to end.
    model: Option<Model>,
    engine: Receiver<()>,
    has_ended: bool,
    deadline: Instant,
    done: Option<Done>,
}

/// Loads and unloads. At work from [`run`](Self::run) on.
pub struct Lifecycle {
    config: Arc<Config>,
    /// By name.
    configs: HashMap<String, ModelConfig>,
    cores: Cores,
    means: Means,
    models: Arc<Models>,
    /// By name: of each engine that serves, what ends with it.
    engines: HashMap<String, Receiver<()>>,
    n_engines: Arc<AtomicUsize>,
    ended: mpsc::Sender<Ended>,
    retiring: Vec<Retiring>,
    interrupted: Arc<AtomicBool>,
}

impl Lifecycle {
    /// Of `models`, which `config` describes. `ended` hears of every engine.
    ///
    /// # Errors
    /// Where the threads that compute cannot be had.
    pub fn new(
        config: Arc<Config>,
        means: Means,
        models: Arc<Models>,
        ended: mpsc::Sender<Ended>,
    ) -> Result<Self, Failure> {
        let configs = config.models.iter();
        Ok(Lifecycle {
            configs: configs.map(|model| (model.name.clone(), model.clone())).collect(),
            cores: start::cores(&config)?,
            config,
            means,
            models,
            engines: HashMap::new(),
            n_engines: Arc::default(),
            ended,
            retiring: Vec::new(),
            interrupted: Arc::default(),
        })
    }

    /// What became of the threads that compute.
    pub fn pool_metrics(&self) -> Arc<PoolMetrics> {
        self.cores.metrics()
    }

    /// Engines that run, kept up to date.
    pub fn n_engines(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.n_engines)
    }

    /// Once set, what is being fetched is given up.
    pub fn interrupted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// Loads `model` from `path` at the start of the server.
    ///
    /// # Errors
    /// Where it cannot be loaded.
    pub fn load_first(&mut self, model: &ModelConfig, path: &Path) -> Result<(), Failure> {
        let loaded = self.start(model, path)?;
        let slot = self
            .models
            .slot(&model.name)
            .expect("configured models are known");
        slot.set(State::Loaded(loaded));
        Ok(())
    }

    /// Obeys `orders` until nobody can give any more.
    pub fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let tick = match self.retiring.is_empty() {
                true => TICK,
                false => SHORT_TICK,
            };
            match orders.recv_timeout(tick) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.retire_idle();
            self.look_after_retiring();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Load { slot } => match self.load(&slot, None) {
                Ok(model) => slot.set(State::Loaded(model)),
                Err(error) => fail(&slot, &*error),
            },
            Order::Place { slot, source, done } => self.place(&slot, source, done),
            Order::Unload { slot, done } => match slot.model() {
                Some(model) => self.retire(Some(slot), model, Some(done)),
                None => drop(done.send(Err(format!("it is {}", slot.state().word())))),
            },
        }
    }

    /// Loads a model, or another one in its place.
    fn place(&mut self, slot: &Arc<Slot>, source: Option<String>, done: Done) {
        let before = match slot.state() {
            State::Loaded(_) if source.is_none() => return drop(done.send(Ok(()))),
            State::Loaded(model) => Some(model),
            State::Unloaded | State::Failed { .. } => {
                slot.set(State::Loading);
                None
            }
            // Of a request that came first and whose order is the next one.
            State::Loading => None,
            State::Unloading => return drop(done.send(Err("it is being unloaded".to_owned()))),
        };
        let engine = self.engines.remove(slot.name());
        let outcome = match self.load(slot, source) {
            Ok(model) => {
                slot.set(State::Loaded(model));
                if let Some((model, engine)) = before.zip(engine) {
                    self.begin_to_retire(None, (model, engine), None);
                }
                Ok(())
            }
            Err(error) => {
                match (&before, engine) {
                    (Some(_), Some(engine)) => drop(self.engines.insert(slot.name().to_owned(), engine)),
                    _ => fail(slot, &*error),
                }
                Err(error.to_string())
            }
        };
        // Who asked may be gone.
        drop(done.send(outcome));
    }

    /// Fetches and starts the model of `slot`. Idle models make way for it.
    fn load(&mut self, slot: &Arc<Slot>, source: Option<String>) -> Result<Model, Failure> {
        if let Some(model) = slot.model().filter(|_| source.is_none()) {
            return Ok(model);
        }
        let known = self.configs.get(slot.name()).cloned();
        let mut model = known.unwrap_or_else(|| ModelConfig {
            model: slot.name().to_owned(),
            name: slot.name().to_owned(),
            ..self.config.model_defaults.clone()
        });
        model.model = source.unwrap_or(model.model);
        let path = self.fetch(&model.model)?;
        loop {
            match self.start(&model, &path) {
                Ok(loaded) => {
                    self.configs.insert(slot.name().to_owned(), model);
                    return Ok(loaded);
                }
                Err(error) => {
                    let is_memory = matches!(error.downcast_ref(), Some(StartError::TooLittleMemory { .. }));
                    if !(is_memory && self.make_way(slot)) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn fetch(&self, model: &str) -> Result<PathBuf, Failure> {
        let fetching = Fetching {
            hub: self.config.hub,
            format: self.config.load_format,
            integrity: self.config.integrity,
            log: self.means.log.clone(),
            interrupted: Arc::clone(&self.interrupted),
        };
        Ok(models::resolve_as(model, &fetching)?)
    }

    fn start(&mut self, model: &ModelConfig, path: &Path) -> Result<Model, Failure> {
        let Ready {
            model: loaded,
            thread,
            failure,
        } = start_model(path, (&self.config, model), &self.means, &self.cores)?;
        let (over, engine) = sync_channel(1);
        let (ended, n_engines) = (self.ended.clone(), Arc::clone(&self.n_engines));
        n_engines.fetch_add(1, Ordering::SeqCst);
        let watch = move || {
            // A thread that panicked outside its steps is as failed as one that says so.
            let exit = thread.join().unwrap_or(EngineExit::Failed);
            let reason = failure.and_then(|failure| failure.message());
            n_engines.fetch_sub(1, Ordering::SeqCst);
            // Perhaps nobody waits for it.
            over.try_send(()).ok();
            drop(ended.blocking_send(Ended { exit, reason }));
        };
        if let Err(error) = spawn_thread("engine-end", watch) {
            self.n_engines.fetch_sub(1, Ordering::SeqCst);
            return Err(error.into());
        }
        self.engines.insert(model.name.clone(), engine);
        Ok(loaded)
    }

    /// Unloads the idlest of the models that may be, and waits for its memory; whether there was one.
    fn make_way(&mut self, slot: &Arc<Slot>) -> bool {
        let idle = self.idle().into_iter();
        let others = idle.filter(|(other, _, _)| !Arc::ptr_eq(other, slot));
        let Some((idlest, model, _)) = others.max_by_key(|(slot, _, _)| slot.idle_for()) else {
            return false;
        };
        tracing::info!(model = idlest.name(), "unloading: its memory is wanted");
        self.retire(Some(idlest), model, None);
        while let Some(retiring) = self.retiring.last_mut() {
            retiring.wait(SHORT_TICK);
            self.look_after_retiring();
        }
        true
    }

    /// The models that may be unloaded when idle and are, and for how long they are kept.
    fn idle(&self) -> Vec<(Arc<Slot>, Model, Duration)> {
        let idle = |slot: Arc<Slot>| {
            let keep_alive = self.configs.get(slot.name())?.keep_alive?;
            let model = slot.model().filter(|model| model.n_in_flight() == 0)?;
            Some((slot, model, keep_alive))
        };
        self.models.slots().into_iter().filter_map(idle).collect()
    }

    fn retire_idle(&mut self) {
        for (slot, model, keep_alive) in self.idle() {
            if slot.idle_for() >= keep_alive {
                tracing::info!(model = slot.name(), "unloading: nobody asks for it");
                self.retire(Some(slot), model, None);
            }
        }
    }

    /// Nobody new finds `model` from now on.
    fn retire(&mut self, slot: Option<Arc<Slot>>, model: Model, done: Option<Done>) {
        let engine = self
            .engines
            .remove(model.name())
            .expect("what is loaded has an engine");
        if let Some(slot) = &slot {
            slot.set(State::Unloading);
        }
        self.begin_to_retire(slot, (model, engine), done);
    }

    fn begin_to_retire(
        &mut self,
        slot: Option<Arc<Slot>>,
        (model, engine): (Model, Receiver<()>),
        done: Option<Done>,
    ) {
        self.retiring.push(Retiring {
            slot,
            model: Some(model),
            engine,
            has_ended: false,
            deadline: Instant::now() + self.config.drain_timeout,
            done,
        });
    }

    fn look_after_retiring(&mut self) {
        self.retiring.retain_mut(Retiring::goes_on);
    }
}

impl Retiring {
    /// Waits for the end of the engine, at most for `time`.
    fn wait(&mut self, time: Duration) {
        self.has_ended |= self.engine.recv_timeout(time) != Err(RecvTimeoutError::Timeout);
    }

    /// Does what is to be done by now; false once the engine has ended.
    fn goes_on(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let is_ready = |model: &mut Model| model.n_holders() == 1 || left.is_zero();
        if let Some(model) = self.model.take_if(is_ready) {
            model.drain(left);
        }
        self.has_ended |= self.engine.try_recv() != Err(TryRecvError::Empty);
        if !self.has_ended {
            return true;
        }
        if let Some(slot) = &self.slot {
            slot.set(State::Unloaded);
            tracing::info!(model = slot.name(), "unloaded");
        }
        if let Some(done) = self.done.take() {
            drop(done.send(Ok(())));
        }
        false
    }
}

fn fail(slot: &Slot, error: &(dyn std::error::Error + Send + Sync)) {
    tracing::error!(model = slot.name(), "cannot load the model: {error}");
    slot.set(State::Failed { at: Instant::now() });
}

/// Waits until the server is over: an engine failed, or the server closed its models and all engines ended.
pub async fn over(
    models: Arc<Models>,
    n_engines: Arc<AtomicUsize>,
    mut ended: mpsc::Receiver<Ended>,
) -> Ended {
    let mut closing = models.closing();
    let drained = || Ended {
        exit: EngineExit::Drained,
        reason: None,
    };
    loop {
        if *closing.borrow_and_update() && n_engines.load(Ordering::SeqCst) == 0 {
            return drained();
        }
        tokio::select! {
            engine = ended.recv() => match engine {
                Some(engine) if engine.exit == EngineExit::Drained => {}
                Some(engine) => return engine,
                None => return drained(),
            },
            _ = closing.changed() => {}
        }
    }
}
