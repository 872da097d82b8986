//! The body of a request: JSON, perhaps compressed, read within the limits of size and time.
//!
//! ```text
//! content type is JSON -> known content coding -> bytes, at most --body-limit -> decoded, at most as many
//!   -> room among the bodies of all requests (`intake.rs`)
//! ```
//!
//! The content type is what keeps pages of other origins out ([`crate::origins`]): a page may POST anything
//! that is not declared to be JSON without asking first, and with no content type at all. Where clients of an
//! API declare nothing, pages are told by their origin ([`UndeclaredBody`]).

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderMap, Method, header};
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::api::App;
use crate::intake::{Admitted, Arrival};
use crate::origins::OwnPage;
use crate::wire::error::ApiError;

/// A body that takes longer than this to arrive is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What a zstd frame may look back on. Senders may not ask for more (RFC 9659, 3).
const MAX_ZSTD_WINDOW: u64 = 8 << 20;
/// Longer values of headers are cut in errors.
const MAX_SHOWN: usize = 100;

/// A request's JSON, all of it, and what it takes.
#[derive(Debug)]
pub struct RequestBody {
    bytes: Vec<u8>,
    admitted: Admitted,
}

impl RequestBody {
    /// What `parse` makes of it, and what the request takes until it has a place in the engine's queue. A
    /// large body is parsed on a worker thread.
    pub async fn parse<T: Send + 'static>(
        self,
        app: &App,
        parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(T, Admitted), ApiError> {
        let RequestBody { bytes, admitted } = self;
        let parsed = app.intake.run(&admitted, move || parse(&bytes)).await??;
        Ok((parsed, admitted))
    }
}

impl FromRequest<Arc<App>> for RequestBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        RequestBody::receive(request, app).await
    }
}

impl RequestBody {
    /// Reads the body of `request`, whatever it is declared to be.
    async fn receive(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let coding = Coding::of(request.headers())?;
        let tenant = App::tenant(app.owner(request.headers()));
        let limit = app.intake.body_limit();
        let mut arrival = app.intake.open(tenant);
        let mut bytes = read(request.into_body(), limit, &mut arrival).await?;
        if let Some(coding) = coding {
            // A small body may hold much: nobody else waits for it.
            let decode = move || coding.decode(&bytes, limit);
            bytes = app.intake.run_aside(tenant, decode).await??;
            arrival = app.intake.open(tenant);
            arrival.take(&bytes)?;
        }
        let admitted = app.intake.admit(arrival).await?;
        Ok(RequestBody { bytes, admitted })
    }
}

/// A body that need not be declared to be JSON, of APIs whose clients do not declare it. No page of a foreign
/// origin can send one.
#[derive(Debug)]
pub struct UndeclaredBody(pub RequestBody);

impl FromRequest<Arc<App>> for UndeclaredBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        OwnPage::from_request_parts(&mut parts, app).await?;
        let request = Request::from_parts(parts, body);
        Ok(UndeclaredBody(RequestBody::receive(request, app).await?))
    }
}

/// Proof that a request brings no body, or one that says it is JSON and that nobody reads.
#[derive(Clone, Copy, Debug)]
pub struct NoBody;

impl FromRequest<Arc<App>> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        let is_bare = request.body().is_end_stream() && !request.headers().contains_key(header::CONTENT_TYPE);
        if request.method() == Method::POST && !is_bare {
            require_json(request.headers())?;
        }
        Ok(NoBody)
    }
}

/// Refuses what is not declared to be JSON: `application/json` or `application/…+json`, with any parameters.
fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = joined(headers, &header::CONTENT_TYPE);
    let kind = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let is_json = match kind.strip_prefix("application/") {
        Some("json") => true,
        Some(subtype) => subtype.ends_with("+json") && !subtype.contains(','),
        None => false,
    };
    match is_json {
        true => Ok(()),
        false => Err(ApiError::UnsupportedMediaType { found: shown(&given) }),
    }
}

async fn read(body: Body, limit: usize, arrival: &mut Arrival) -> Result<Vec<u8>, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, collect(body, limit, arrival)).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::BodyTimeout {
            seconds: BODY_TIMEOUT.as_secs(),
        }),
    }
}

async fn collect(mut body: Body, limit: usize, arrival: &mut Arrival) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::Invalid {
            param: None,
            message: "The request body could not be read.".to_owned(),
        })?;
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        if chunk.len() > limit - bytes.len() {
            return Err(ApiError::BodyTooLarge { limit });
        }
        arrival.take(&chunk)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    /// The one content coding of a request. Several, one on the other, are refused: each would be a chance to
    /// make much of little.
    fn of(headers: &HeaderMap) -> Result<Option<Coding>, ApiError> {
        let given = joined(headers, &header::CONTENT_ENCODING);
        let mut found = None;
        for name in given.split(',').map(str::trim) {
            let coding = match name.to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Some(Coding::Gzip),
                "zstd" => Some(Coding::Zstd),
                _ => None,
            };
            if coding.is_none() || found.is_some() {
                return Err(ApiError::UnsupportedCoding { found: shown(&given) });
            }
            found = coding;
        }
        Ok(found)
    }

    /// What `sent` was before it was compressed, where that has at most `limit` bytes.
    fn decode(self, sent: &[u8], limit: usize) -> Result<Vec<u8>, ApiError> {
        let mut decoded = Vec::new();
        let (name, result) = match self {
            Coding::Gzip => (
                "gzip",
                read_within(limit, MultiGzDecoder::new(sent), &mut decoded),
            ),
            Coding::Zstd => ("zstd", unpack_zstd(limit, sent, &mut decoded)),
        };
        match result {
            Ok(()) if decoded.len() > limit => Err(ApiError::BodyTooLarge { limit }),
            Ok(()) => Ok(decoded),
            Err(reason) => Err(ApiError::Invalid {
                param: None,
                message: format!("The request body is not valid {name}: {reason}."),
            }),
        }
    }
}

const DAMAGED: &str = "it is damaged or cut off";

/// Reads `source` to its end, or until there is more than `limit` in `decoded`.
fn read_within(limit: usize, source: impl Read, decoded: &mut Vec<u8>) -> Result<(), &'static str> {
    let room = limit.saturating_add(1).saturating_sub(decoded.len());
    let read = source.take(room as u64).read_to_end(decoded);
    read.map(drop).map_err(|_| DAMAGED)
}

/// One frame after the other, without those that are to be skipped (RFC 8878, 3).
fn unpack_zstd(limit: usize, mut sent: &[u8], decoded: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_ZSTD_WINDOW);
    while !sent.is_empty() && decoded.len() <= limit {
        match StreamingDecoder::new_with_decoder(&mut sent, &mut decoder) {
            Ok(frame) => read_within(limit, frame, decoded)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                sent = sent.get(length as usize..).ok_or(DAMAGED)?;
                continue;
            }
            Err(FrameDecoderError::WindowSizeTooBig { .. }) => return Err("it looks back more than 8 MiB"),
            Err(_) => return Err(DAMAGED),
        }
        let is_whole = decoded.len() <= limit;
        let given = decoder.get_checksum_from_data();
        if is_whole && given.is_some() && given != decoder.get_calculated_checksum() {
            return Err(DAMAGED);
        }
    }
    Ok(())
}

/// All values of a header, which are one list.
fn joined(headers: &HeaderMap, name: &header::HeaderName) -> String {
    let values = headers.get_all(name).iter();
    let values: Vec<_> = values
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    values.join(", ")
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::body::Bytes;
    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const LIMIT: usize = 100_000;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).expect("a vector takes all");
        encoder.finish().expect("a vector takes all")
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    /// A frame of `n` blocks that say "128 KiB of blanks" in four bytes each.
    fn zstd_bomb(n: usize) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
        for i in 0..n {
            let header = (128 << 10) << 3 | 1 << 1 | u32::from(i + 1 == n);
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(b' ');
        }
        frame
    }

    fn decode(coding: Coding, sent: &[u8]) -> Result<Bytes, ApiError> {
        coding.decode(sent, LIMIT).map(Bytes::from)
    }

    fn is_damaged(result: &Result<Bytes, ApiError>) -> bool {
        matches!(result, Err(ApiError::Invalid { message, .. }) if message.ends_with("damaged or cut off."))
    }

    #[test]
    fn what_other_programs_compressed_is_read() {
        let text = format!(
            "{{\"prompt\": \"once upon a time\", \"max_tokens\": 3, \"temperature\": 0}}{}",
            " ".repeat(60)
        );
        // By Python's gzip, by zstd 1.5.4 from a pipe with its checksum, and by the same with -19 --no-check.
        for (coding, hex) in [
            (
                Coding::Gzip,
                "1f8b0800000000000203ab562a28cacf2d2851b25250cacf4b4e55282dc8cf53485428c9cc4d55d25150ca4dac882f\
                 c9cf4ecd2b06aa30060a94a4e616a41625969416a502450c6a152800000aad9d887d000000",
            ),
            (
                Coding::Zstd,
                "28b52ffd04580d020022040e14c0a70346d7ca6da52cbd265954831bf69cbaee094d80968f521a74b4a75b82968df3\
                 e252388cb9c537226b7a0e533f9c73cb8976088d0401000224100533432125",
            ),
            (
                Coding::Zstd,
                "28b52ffd006805020022c40d12a0bb01507eff26f74e66aa7af7dcc9fe8b1a7fe10353b12e2a59b3f1407ce04a89b6\
                 492b8a07987afae569993d4d5afcc0665dc5e802010002241005",
            ),
        ] {
            let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
            let sent: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
            assert_eq!(decode(coding, &sent).expect("good"), text);
            for n_bytes in 0..sent.len() {
                let cut = decode(coding, &sent[..n_bytes]);
                assert!(n_bytes == 0 || is_damaged(&cut), "{n_bytes} bytes: {cut:?}");
            }
            let twice = [sent.clone(), sent.clone()].concat();
            assert_eq!(decode(coding, &twice).expect("two in a row"), text.repeat(2));
            let junk = [sent, b"junk".to_vec()].concat();
            assert!(is_damaged(&decode(coding, &junk)));
        }
    }

    #[test]
    fn frames_that_are_to_be_skipped_are_skipped() {
        let skipped = |n: u32| [&0x184d_2a53_u32.to_le_bytes()[..], &n.to_le_bytes(), b"abcde"].concat();
        let sent = [skipped(5), zstd(b"{}"), skipped(5), zstd(b" \n")].concat();
        assert_eq!(decode(Coding::Zstd, &sent).expect("good"), "{} \n");
        assert!(is_damaged(&decode(Coding::Zstd, &skipped(6))), "it is cut off");
    }

    #[test]
    fn what_is_damaged_is_refused_where_it_has_a_checksum() {
        let text = b"{\"prompt\": \"abc\"}";
        let mut wrong = gzip(text);
        let n_bytes = wrong.len();
        wrong[n_bytes - 6] ^= 1;
        assert!(is_damaged(&decode(Coding::Gzip, &wrong)));
        let mut wrong = zstd(text);
        *wrong.last_mut().expect("not empty") ^= 1;
        assert!(is_damaged(&decode(Coding::Zstd, &wrong)));
    }

    #[test]
    fn a_small_body_does_not_become_a_large_one() {
        let limit =
            |coding, sent: &[u8]| decode(coding, sent) == Err(ApiError::BodyTooLarge { limit: LIMIT });
        for (coding, compress) in [(Coding::Gzip, gzip as fn(&[u8]) -> _), (Coding::Zstd, zstd)] {
            let exactly = decode(coding, &compress(&[b' '; LIMIT])).expect("within the limit");
            assert_eq!(exactly.len(), LIMIT);
            assert!(limit(coding, &compress(&[b' '; LIMIT + 1])));
            assert!(limit(coding, &compress(&vec![b' '; 50_000_000])));
            // In pieces that are small themselves.
            assert!(limit(coding, &compress(&[b' '; 1000]).repeat(LIMIT / 1000 + 1)));
        }
        assert!(limit(Coding::Zstd, &zstd_bomb(20_000)), "2.6 GB in 80 kB");
        // Nothing is in these, but they ask for windows of 8 and of 16 MiB.
        let frame = |window| [0x28, 0xb5, 0x2f, 0xfd, 0x00, window, 0x01, 0x00, 0x00];
        assert_eq!(
            decode(Coding::Zstd, &frame(13 << 3)).expect("as large as allowed"),
            ""
        );
        let error = decode(Coding::Zstd, &frame(14 << 3)).expect_err("too large");
        assert!(
            error.to_string().ends_with("it looks back more than 8 MiB."),
            "{error}"
        );
    }

    #[test]
    fn random_damage_is_an_error_or_another_text_and_nothing_else() {
        // A linear congruential generator; the high bits are good enough.
        let mut state = 7_u64;
        let mut draw = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let text: Vec<u8> = (0..3000).map(|_| b"{}[]:, \"abcde0123"[draw(17)]).collect();
        for (coding, whole) in [(Coding::Gzip, gzip(&text)), (Coding::Zstd, zstd(&text))] {
            for _ in 0..3000 {
                let mut sent = whole.clone();
                for _ in 0..=draw(4) {
                    let at = draw(sent.len());
                    sent[at] = draw(256) as u8;
                }
                sent.truncate(sent.len() - draw(3) * draw(sent.len()) / 2);
                match decode(coding, &sent) {
                    Ok(decoded) => assert!(decoded.len() <= LIMIT),
                    Err(error) => {
                        let is_expected = ["is not valid", "is larger than 100000 bytes"];
                        let message = error.to_string();
                        assert!(is_expected.iter().any(|part| message.contains(part)), "{message}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_content_coding_is_read_and_others_are_named() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            Coding::of(&headers)
        };
        for none in [&[][..], &[""], &["identity"], &["Identity, identity"]] {
            assert_eq!(of(none), Ok(None), "{none:?}");
        }
        for gzip in [
            &["gzip"][..],
            &["GZip"],
            &["x-gzip"],
            &["identity", "gzip"],
            &[" gzip ,"],
        ] {
            assert_eq!(of(gzip), Ok(Some(Coding::Gzip)), "{gzip:?}");
        }
        assert_eq!(of(&["zstd"]), Ok(Some(Coding::Zstd)));
        for (other, found) in [
            (&["deflate"][..], "deflate"),
            (&["br"], "br"),
            (&["gzip, br"], "gzip, br"),
            (&["gzip", "gzip"], "gzip, gzip"),
            (&["gzip;q=1"], "gzip;q=1"),
            (&["aws-chunked"], "aws-chunked"),
        ] {
            let found = found.to_owned();
            assert_eq!(of(other), Err(ApiError::UnsupportedCoding { found }));
        }
    }
}
