//! Whom an outgoing connection trusts: the system's certificates.

use std::sync::Arc;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// A configuration with the certificates that the system has.
pub(crate) fn system_tls() -> TlsConfig {
    let found = rustls_native_certs::load_native_certs().certs;
    let roots = found
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned());
    TlsConfig::builder()
        .root_certs(RootCerts::from(roots.collect::<Vec<_>>()))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}
