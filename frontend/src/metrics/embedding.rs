//! What embedding models and rerankers count, for `/metrics`.

use arbora_runtime::embedding::EmbeddingHandle;

use super::{MICROS, Page, escaped};

/// Everything their engines count, labelled with the names of their models.
pub fn prometheus<'a>(engines: impl Iterator<Item = (&'a str, &'a EmbeddingHandle)>) -> String {
    let mut page = Page::new("arbora_embedding_");
    for (model, engine) in engines {
        page.label = format!("model=\"{}\"", escaped(model));
        let metrics = engine.metrics();
        let counters = [
            ("requests_total", "Requests accepted.", &metrics.requests),
            (
                "requests_refused_total",
                "Requests refused because the queue was full.",
                &metrics.refused,
            ),
            ("texts_total", "Texts encoded.", &metrics.texts),
            ("tokens_total", "Tokens of encoded texts.", &metrics.tokens),
        ];
        for (name, help, counter) in counters {
            page.family(name, "counter", help);
            page.sample(name, None, counter.value());
        }
        let gauges = [
            (
                "requests",
                "Requests accepted and not answered yet.",
                engine.n_in_flight(),
            ),
            ("tokens", "Tokens of these requests.", engine.n_tokens_in_flight()),
        ];
        for (name, help, value) in gauges {
            page.family(name, "gauge", help);
            page.sample(name, None, value);
        }
        page.histogram(
            "batch_seconds",
            "Time of one batch (forward pass).",
            (&metrics.batch_time, MICROS),
        );
    }
    page.into_text()
}
