//! Metrics of models as wholes: which are loaded, and how often they were.

use std::sync::Arc;

use super::{Page, escaped};
use crate::registry::{Slot, State};

/// The lines about `slots`.
pub fn prometheus(slots: &[Arc<Slot>]) -> String {
    let mut page = Page::new("arbora_");
    for slot in slots {
        page.label = format!("model=\"{}\"", escaped(slot.name()));
        let is_loaded = matches!(slot.state(), State::Loaded(_));
        page.family(
            "model_loaded",
            "gauge",
            "1 where the model is loaded, 0 where it is not.",
        );
        page.sample("model_loaded", None, u8::from(is_loaded));
        let loads = "Times that the model was loaded, and that it could not be.";
        page.family("model_loads_total", "counter", loads);
        for (outcome, n) in ["loaded", "failed"].into_iter().zip(slot.n_loads()) {
            page.sample("model_loads_total", Some(("outcome", outcome)), n);
        }
    }
    page.into_text()
}
