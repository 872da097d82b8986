//! Model registry: which models a server has, which of them are loaded, and which one a request means.
//!
//! ```text
//! unloaded ──► loading ──► loaded ──► unloading ──► unloaded
//!     ▲            │          ▲ a newer one may take its place
//!     └── failed ──┘
//! ```
//!
//! A request for a model that is not loaded has it loaded, once for all who ask, and waits. Who found a model
//! may use it: it is unloaded when nobody holds it any more ([`crate::lifecycle`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::encoders::ServedEncoder;
use crate::lifecycle::Order;
use crate::served::Served;
use crate::wire::error::ApiError;

/// Longer names of models that are not served are cut in errors.
const MAX_SHOWN: usize = 100;

/// After a model could not be loaded, requests for it are refused for this long before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Two models want the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two models are called '{name}'")]
pub struct SameName {
    /// The name, or alias.
    pub name: String,
}

/// A model that is loaded.
#[derive(Clone, Debug)]
pub enum Model {
    /// One that generates text.
    Generator(Arc<Served>),
    /// One that turns texts into vectors or scores.
    Encoder(Arc<ServedEncoder>),
}

impl Model {
    /// Its name for clients.
    pub fn name(&self) -> &str {
        match self {
            Model::Generator(served) => &served.name,
            Model::Encoder(served) => &served.name,
        }
    }

    /// Most tokens of prompt and output, or of a text.
    pub fn context(&self) -> usize {
        match self {
            Model::Generator(served) => served.engine.context(),
            Model::Encoder(served) => served.engine.max_tokens(),
        }
    }

    /// Requests that are accepted and not ended.
    pub fn n_in_flight(&self) -> usize {
        match self {
            Model::Generator(served) => served.engine.n_in_flight(),
            Model::Encoder(served) => served.engine.n_in_flight(),
        }
    }

    /// Whether its engine takes requests.
    pub fn is_accepting(&self) -> bool {
        match self {
            Model::Generator(served) => served.engine.is_accepting(),
            Model::Encoder(served) => served.engine.is_accepting(),
        }
    }

    /// For how long its engine has had work and finished no step; absent where it has none.
    pub fn stalled_for(&self, now: Instant) -> Option<Duration> {
        match self {
            Model::Generator(served) => served.engine.stalled_for(now),
            Model::Encoder(served) => served.engine.stalled_for(now),
        }
    }

    /// Has its engine end: requests under way get so much time, and no new ones are accepted.
    pub fn drain(&self, limit: Duration) {
        match self {
            Model::Generator(served) => served.engine.drain(limit),
            Model::Encoder(served) => served.engine.drain(limit),
        }
    }

    /// Those who hold the model, the one who asks included.
    pub(crate) fn n_holders(&self) -> usize {
        match self {
            Model::Generator(served) => Arc::strong_count(served),
            Model::Encoder(served) => Arc::strong_count(served),
        }
    }
}

/// What there is of a model.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Nothing.
    Unloaded,
    /// It was to be loaded and could not be.
    Failed {
        /// When that was.
        at: Instant,
    },
    /// It is about to be loaded.
    Loading,
    /// All of it.
    Loaded(Model),
    /// Nobody new finds it; those who hold it go on.
    Unloading,
}

impl State {
    /// In a word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            State::Unloaded => "unloaded",
            State::Failed { .. } => "failed",
            State::Loading => "loading",
            State::Loaded(_) => "loaded",
            State::Unloading => "unloading",
        }
    }
}

/// What a model turned out to be when it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Generator,
    Encoder,
}

/// A model that the server knows, loaded or not.
#[derive(Debug)]
pub struct Slot {
    /// All names for it, the first one first.
    names: Vec<String>,
    state: watch::Sender<State>,
    /// Known once it has been loaded.
    kind: RwLock<Option<Kind>>,
    /// When a request meant it last, in milliseconds since `epoch`.
    asked_ms: AtomicU64,
    epoch: Instant,
    /// Times that it was loaded, and that it could not be.
    loads: [AtomicU64; 2],
}

impl Slot {
    pub(crate) fn new(names: Vec<String>, state: State) -> Self {
        let slot = Slot {
            names,
            state: watch::Sender::new(State::Unloaded),
            kind: RwLock::new(None),
            asked_ms: AtomicU64::new(0),
            epoch: Instant::now(),
            loads: Default::default(),
        };
        slot.set(state);
        slot
    }

    /// Its name for clients.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn set(&self, state: State) {
        match &state {
            State::Loaded(model) => {
                let kind = match model {
                    Model::Generator(_) => Kind::Generator,
                    Model::Encoder(_) => Kind::Encoder,
                };
                *self.kind.write().unwrap_or_else(PoisonError::into_inner) = Some(kind);
                self.loads[0].fetch_add(1, Ordering::Relaxed);
                self.touch();
            }
            State::Failed { .. } => {
                self.loads[1].fetch_add(1, Ordering::Relaxed);
            }
            State::Unloaded | State::Loading | State::Unloading => {}
        }
        self.state.send_replace(state);
    }

    /// The model, where it is loaded.
    pub fn model(&self) -> Option<Model> {
        match &*self.state.borrow() {
            State::Loaded(model) => Some(model.clone()),
            _ => None,
        }
    }

    /// Times that it was loaded, and that it could not be.
    pub(crate) fn n_loads(&self) -> [u64; 2] {
        [0, 1].map(|i| self.loads[i].load(Ordering::Relaxed))
    }

    /// How long nobody asked for it.
    pub(crate) fn idle_for(&self) -> Duration {
        let asked = Duration::from_millis(self.asked_ms.load(Ordering::Relaxed));
        self.epoch.elapsed().saturating_sub(asked)
    }

    fn touch(&self) {
        let now = self.epoch.elapsed().as_millis() as u64;
        self.asked_ms.store(now, Ordering::Relaxed);
    }

    fn is_known_as(&self, kind: Kind) -> Option<bool> {
        let known = *self.kind.read().unwrap_or_else(PoisonError::into_inner);
        known.map(|known| known == kind)
    }
}

#[derive(Debug, Default)]
struct Table {
    slots: Vec<Arc<Slot>>,
    by_name: HashMap<String, Arc<Slot>>,
}

impl Table {
    fn insert(&mut self, slot: Slot) -> Result<Arc<Slot>, SameName> {
        if let Some(name) = slot.names.iter().find(|name| self.by_name.contains_key(*name)) {
            return Err(SameName { name: name.clone() });
        }
        let slot = Arc::new(slot);
        for name in &slot.names {
            self.by_name.insert(name.clone(), Arc::clone(&slot));
        }
        self.slots.push(Arc::clone(&slot));
        Ok(slot)
    }
}

/// All models of a server, at least one.
#[derive(Debug)]
pub struct Models {
    table: RwLock<Table>,
    /// Takes what is to be loaded; absent where all models are there for good.
    orders: Option<SyncSender<Order>>,
    /// Whether the server comes to its end.
    closing: watch::Sender<bool>,
}

impl Models {
    /// `first` is meant where a request names none.
    ///
    /// # Errors
    /// Where a name or alias stands for two of them.
    pub fn new(first: Served, others: Vec<Served>) -> Result<Self, SameName> {
        Models::of(std::iter::once(first).chain(others).collect(), Vec::new())
    }

    /// Models of both kinds, of which there is one, loaded for good. The first of a kind is meant where a
    /// request names none.
    ///
    /// # Errors
    /// Where a name or alias stands for two of them.
    pub fn of(generators: Vec<Served>, encoders: Vec<ServedEncoder>) -> Result<Self, SameName> {
        let mut table = Table::default();
        for served in generators {
            let names = std::iter::once(&served.name).chain(&served.aliases);
            let names = names.cloned().collect();
            table.insert(Slot::new(
                names,
                State::Loaded(Model::Generator(Arc::new(served))),
            ))?;
        }
        for served in encoders {
            let names = std::iter::once(&served.name).chain(&served.aliases);
            let names = names.cloned().collect();
            table.insert(Slot::new(names, State::Loaded(Model::Encoder(Arc::new(served)))))?;
        }
        assert!(!table.slots.is_empty(), "a server has a model");
        Ok(Models {
            table: RwLock::new(table),
            orders: None,
            closing: watch::Sender::new(false),
        })
    }

    /// Models by their names, none of them loaded. What is to be loaded goes to `orders`.
    ///
    /// # Errors
    /// Where a name or alias stands for two of them.
    pub fn unloaded(
        names: impl IntoIterator<Item = Vec<String>>,
        orders: SyncSender<Order>,
    ) -> Result<Self, SameName> {
        let mut table = Table::default();
        for names in names {
            table.insert(Slot::new(names, State::Unloaded))?;
        }
        assert!(!table.slots.is_empty(), "a server has a model");
        Ok(Models {
            table: RwLock::new(table),
            orders: Some(orders),
            closing: watch::Sender::new(false),
        })
    }

    /// Makes another model known.
    ///
    /// # Errors
    /// Where a name stands for another one.
    pub(crate) fn add(&self, names: Vec<String>) -> Result<Arc<Slot>, SameName> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.insert(Slot::new(names, State::Unloaded))
    }

    /// Every model that is known, in order.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.slots.clone()
    }

    /// The model that is known by this name, loaded or not.
    pub(crate) fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.by_name.get(name).cloned()
    }

    /// Where orders to load and unload go; absent where all models are there for good.
    pub(crate) fn orders(&self) -> Option<&SyncSender<Order>> {
        self.orders.as_ref()
    }

    /// Has every engine end: requests under way get so much time. Nothing is loaded any more.
    pub fn close(&self, limit: Duration) {
        self.closing.send_replace(true);
        for model in self.loaded() {
            model.drain(limit);
        }
    }

    /// Whether the server comes to its end.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// The models that are loaded, in order.
    pub fn loaded(&self) -> Vec<Model> {
        self.slots().iter().filter_map(|slot| slot.model()).collect()
    }

    /// Those of them that generate text.
    pub fn generators(&self) -> Vec<Arc<Served>> {
        let generator = |model| match model {
            Model::Generator(served) => Some(served),
            Model::Encoder(_) => None,
        };
        self.loaded().into_iter().filter_map(generator).collect()
    }

    /// Those of them that turn texts into vectors or scores.
    pub fn encoders(&self) -> Vec<Arc<ServedEncoder>> {
        let encoder = |model| match model {
            Model::Encoder(served) => Some(served),
            Model::Generator(_) => None,
        };
        self.loaded().into_iter().filter_map(encoder).collect()
    }

    /// The model that a request for text means which names `asked`. Waits until it is loaded.
    ///
    /// # Errors
    /// Where no model is called so, or it generates no text, or it cannot be loaded.
    pub async fn find(&self, asked: Option<&str>) -> Result<Arc<Served>, ApiError> {
        match self.get(asked, Kind::Generator).await? {
            Model::Generator(served) => Ok(served),
            Model::Encoder(served) => Err(served.no_text()),
        }
    }

    /// The model that a request for vectors or scores means which names `asked`. Waits until it is loaded.
    ///
    /// # Errors
    /// Where no model is called so, or it gives neither, or it cannot be loaded.
    pub async fn find_encoder(&self, asked: Option<&str>) -> Result<Arc<ServedEncoder>, ApiError> {
        match self.get(asked, Kind::Encoder).await? {
            Model::Encoder(served) => Ok(served),
            Model::Generator(served) => {
                let name = &served.name;
                let message = format!("The model '{name}' generates text and makes no embeddings or scores.");
                Err(ApiError::invalid("model", message))
            }
        }
    }

    /// The model called `name`, of either kind. Waits until it is loaded.
    ///
    /// # Errors
    /// Where no model is called so, or it cannot be loaded.
    pub(crate) async fn named(&self, name: &str) -> Result<Model, ApiError> {
        self.load(&self.known(name)?).await
    }

    /// The model that generates text where none is named; an encoder where there is no such. Waits until it
    /// is loaded.
    ///
    /// # Errors
    /// Where it cannot be loaded.
    pub async fn first(&self) -> Result<Model, ApiError> {
        self.get(None, Kind::Generator).await
    }

    /// The model called `name`, of either kind, as it is. Nothing is loaded.
    ///
    /// # Errors
    /// Where no model is called so.
    pub(crate) fn known(&self, name: &str) -> Result<Arc<Slot>, ApiError> {
        self.slot(name).ok_or_else(|| unknown(name))
    }

    /// The model called `asked`, or the first of its kind.
    async fn get(&self, asked: Option<&str>, kind: Kind) -> Result<Model, ApiError> {
        if let Some(name) = asked {
            return self.named(name).await;
        }
        let slots = self.slots();
        let mut other = None;
        for slot in &slots {
            if slot.is_known_as(kind) == Some(false) {
                other = other.or(Some(slot));
                continue;
            }
            let model = self.load(slot).await?;
            // Before it was loaded, it might have been.
            if slot.is_known_as(kind) == Some(true) {
                return Ok(model);
            }
            other = other.or(Some(slot));
        }
        self.load(other.expect("a server has a model")).await
    }

    /// The model of `slot`, once it is loaded.
    async fn load(&self, slot: &Arc<Slot>) -> Result<Model, ApiError> {
        let mut state = slot.state.subscribe();
        let mut has_waited = false;
        loop {
            match &*state.borrow_and_update() {
                State::Loaded(model) => {
                    slot.touch();
                    return Ok(model.clone());
                }
                State::Failed { at } if has_waited || at.elapsed() < RETRY_AFTER => {
                    return Err(ApiError::ModelNotLoaded {
                        model: slot.name().to_owned(),
                    });
                }
                State::Loading | State::Unloading | State::Failed { .. } | State::Unloaded => {}
            }
            self.order(slot)?;
            if state.changed().await.is_err() {
                return Err(ApiError::ShuttingDown);
            }
            has_waited = true;
        }
    }

    /// Has the model of `slot` loaded, unless it is or is about to be.
    fn order(&self, slot: &Arc<Slot>) -> Result<(), ApiError> {
        let is_first = slot.state.send_if_modified(|state| match state {
            State::Unloaded | State::Failed { .. } => {
                *state = State::Loading;
                true
            }
            State::Loading | State::Loaded(_) | State::Unloading => false,
        });
        let order = Order::Load {
            slot: Arc::clone(slot),
        };
        let is_open = !*self.closing.borrow();
        if !is_first
            || is_open
                && self
                    .orders
                    .as_ref()
                    .is_some_and(|orders| orders.try_send(order).is_ok())
        {
            return Ok(());
        }
        slot.state.send_replace(State::Unloaded);
        Err(ApiError::ShuttingDown)
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::ModelNotFound {
        model: name.chars().take(MAX_SHOWN).collect(),
    }
}
