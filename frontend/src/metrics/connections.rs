//! Connections as `/metrics` counts them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Page;

/// Connections, and what became of them.
#[derive(Debug, Default)]
pub struct ConnectionMetrics {
    open: AtomicU64,
    closed_idle: AtomicU64,
    reserved: AtomicU64,
    refused: AtomicU64,
    abandoned: AtomicU64,
    write_timeouts: AtomicU64,
    accept_errors: AtomicU64,
}

impl ConnectionMetrics {
    pub(crate) fn set_open(&self, n: usize) {
        self.open.store(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn close_idle(&self) {
        self.closed_idle.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn reserve(&self) {
        self.reserved.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn abandon(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn time_out(&self) {
        self.write_timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fail(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn write(&self, page: &mut Page) {
        page.family("http_connections", "gauge", "Open connections.");
        page.sample("http_connections", None, self.open.load(Ordering::Relaxed));
        for (name, help, n) in self.counters() {
            page.family(name, "counter", help);
            page.sample(name, None, n.load(Ordering::Relaxed));
        }
    }

    /// Name, help and value of what only grows.
    fn counters(&self) -> [(&'static str, &'static str, &AtomicU64); 6] {
        [
            (
                "http_connections_closed_idle_total",
                "Connections closed while they waited for their client, because their place was wanted.",
                &self.closed_idle,
            ),
            (
                "http_connections_reserved_total",
                "Connections accepted for health checks alone, because all places were taken.",
                &self.reserved,
            ),
            (
                "http_connections_refused_total",
                "Connections closed at once, because all places for health checks were taken too.",
                &self.refused,
            ),
            (
                "http_connections_abandoned_total",
                "Connections whose client left before an answer was complete.",
                &self.abandoned,
            ),
            (
                "http_write_timeouts_total",
                "Connections ended because their client read nothing for too long.",
                &self.write_timeouts,
            ),
            (
                "http_accept_errors_total",
                "Connections that could not be accepted, such as for want of file handles.",
                &self.accept_errors,
            ),
        ]
    }
}
