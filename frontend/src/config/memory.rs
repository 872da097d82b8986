//! What bodies of requests and kept responses may take.

use std::time::Duration;

use super::{ByteSize, ConfigError, bad_value};
use crate::intake::IntakeLimits;
use crate::kept::KeptLimits;

/// Of `--responses-memory` and `--responses-ttl`.
pub(super) fn responses(memory: Option<ByteSize>, ttl_s: Option<u32>) -> KeptLimits {
    KeptLimits {
        bytes: memory.map_or(64 << 20, |size| size.0),
        time_to_live: Duration::from_secs(ttl_s.unwrap_or(86_400).into()),
    }
}

/// Of `--body-limit` and `--body-memory`.
pub(super) fn intake(body: Option<ByteSize>, memory: Option<ByteSize>) -> Result<IntakeLimits, ConfigError> {
    let body = body.map_or(8 << 20, |size| size.0);
    let least = IntakeLimits::least_memory(body);
    let memory = memory.map_or(least.max(128 << 20), |size| size.0);
    if memory < least {
        let expected = format!("at least {least}, which a body of {body} bytes (--body-limit) may take");
        return Err(bad_value("body-memory", expected, memory));
    }
    Ok(IntakeLimits { body, memory })
}
