//! Stop strings and incremental detokenization: text is released as early as they allow.
//!
//! ```text
//! bytes so far:   released as text | held
//!                                    ^ may begin a stop string, or is an unfinished UTF-8 sequence
//! ```
//!
//! The engine runs one stream per request and sends what it releases, so that the text is cut in one place.
//! What is released does not depend on how the bytes were split into tokens.

use std::sync::Arc;

use crate::token_bytes::TokenBytes;

/// One stop string as a Knuth–Morris–Pratt automaton: `n_matched` is the length of the longest end of the
/// text that begins the string, so it is at once the progress of a match and what must be held back.
#[derive(Clone, Debug)]
struct StopString {
    pattern: Box<[u8]>,
    /// `borders[i]`: length of the longest proper border of `pattern[..=i]`.
    borders: Box<[usize]>,
    n_matched: usize,
}

impl StopString {
    fn new(pattern: &str) -> Self {
        let pattern: Box<[u8]> = pattern.as_bytes().into();
        let mut borders = vec![0; pattern.len()].into_boxed_slice();
        let mut border = 0;
        for i in 1..pattern.len() {
            while border > 0 && pattern[i] != pattern[border] {
                border = borders[border - 1];
            }
            border += usize::from(pattern[i] == pattern[border]);
            borders[i] = border;
        }
        StopString {
            pattern,
            borders,
            n_matched: 0,
        }
    }

    /// Takes the next byte; true where the string is complete. An empty string never is.
    fn advance(&mut self, byte: u8) -> bool {
        if self.pattern.is_empty() {
            return false;
        }
        while self.n_matched > 0 && self.pattern[self.n_matched] != byte {
            self.n_matched = self.borders[self.n_matched - 1];
        }
        self.n_matched += usize::from(self.pattern[self.n_matched] == byte);
        self.n_matched == self.pattern.len()
    }
}

/// Text of one output, token by token. Of all stop strings the one that is complete first ends the text;
/// among those complete with the same byte, the longest. The text is cut before it.
#[derive(Clone, Debug)]
pub struct TextStream {
    spelling: Arc<TokenBytes>,
    stops: Vec<StopString>,
    held: Vec<u8>,
    /// What is certain and was not taken.
    released: String,
    stopped: Option<usize>,
    /// Tokens still to come in which no stop string is looked for.
    n_exempt: usize,
}

impl TextStream {
    /// A stream of tokens spelled as `spelling` says, which ends at the first of `stops`. Empty strings never
    /// match, and none is looked for in the first `n_exempt` tokens.
    pub fn new(spelling: Arc<TokenBytes>, stops: &[String], n_exempt: usize) -> Self {
        TextStream {
            spelling,
            stops: stops.iter().map(|stop| StopString::new(stop)).collect(),
            held: Vec::new(),
            released: String::new(),
            stopped: None,
            n_exempt,
        }
    }

    /// Index of the stop string that ended the text, if one did.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Appends the next token. After a stop string everything is ignored.
    pub fn push(&mut self, token: u32) {
        let bytes = self.spelling.of(token);
        if self.n_exempt > 0 {
            self.n_exempt -= 1;
            self.held.extend_from_slice(bytes);
            self.release(self.held.len());
            return;
        }
        for &byte in bytes {
            if self.stopped.is_some() {
                break;
            }
            self.held.push(byte);
            self.stopped = complete_stop(&mut self.stops, byte);
        }
        if let Some(idx) = self.stopped {
            // On the first push after the match there is nothing left to cut.
            let cut = self.held.len().saturating_sub(self.stops[idx].pattern.len());
            self.held.truncate(cut);
            self.release(cut);
            self.flush();
        } else {
            let n_open = self.stops.iter().map(|stop| stop.n_matched).max().unwrap_or(0);
            self.release(self.held.len() - n_open);
        }
    }

    /// Takes the text that became certain since the last time.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.released)
    }

    /// The output is over: takes all that is left. An unfinished UTF-8 sequence becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        self.release(self.held.len());
        self.flush();
        self.take()
    }

    /// Moves `held[..end]` to the released text, but for an unfinished sequence at its end.
    fn release(&mut self, end: usize) {
        let mut start = 0;
        while start < end {
            match std::str::from_utf8(&self.held[start..end]) {
                Ok(text) => {
                    self.released.push_str(text);
                    start = end;
                }
                Err(error) => {
                    let valid = start + error.valid_up_to();
                    self.released
                        .push_str(&String::from_utf8_lossy(&self.held[start..valid]));
                    start = valid;
                    let Some(n_invalid) = error.error_len() else {
                        break;
                    };
                    self.released.push(char::REPLACEMENT_CHARACTER);
                    start += n_invalid;
                }
            }
        }
        self.held.drain(..start);
    }

    fn flush(&mut self) {
        self.released.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }
}

/// Which of `stops` is complete with `byte`, the longest of several.
fn complete_stop(stops: &mut [StopString], byte: u8) -> Option<usize> {
    let mut longest: Option<usize> = None;
    for idx in 0..stops.len() {
        let longer = |other: usize| stops[idx].pattern.len() > stops[other].pattern.len();
        let is_longest = longest.is_none_or(longer);
        if stops[idx].advance(byte) && is_longest {
            longest = Some(idx);
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(strings: &[&str], tokens: &[&[u8]]) -> (Vec<String>, Option<usize>) {
        let strings: Vec<String> = strings.iter().map(|&s| s.to_owned()).collect();
        run_stream(&strings, tokens)
    }

    /// Text and stop of `tokens`, released piece by piece.
    fn run_stream(strings: &[String], tokens: &[&[u8]]) -> (Vec<String>, Option<usize>) {
        let spelling = Arc::new(TokenBytes::new(tokens.iter().copied()));
        let mut stream = TextStream::new(spelling, strings, 0);
        let pieces = (0..tokens.len() as u32).map(|token| {
            stream.push(token);
            stream.take()
        });
        let mut pieces: Vec<String> = pieces.collect();
        let stopped = stream.stopped();
        pieces.push(stream.finish());
        (pieces, stopped)
    }

    #[test]
    fn text_without_stops_is_released_at_once() {
        assert_eq!(run(&[], &[b"Hello", b" world"]).0, ["Hello", " world", ""]);
    }

    #[test]
    fn a_character_split_over_tokens_is_released_whole() {
        let euro = "€".as_bytes();
        let (pieces, _) = run(&[], &[&euro[..1], &euro[1..2], &euro[2..], b"!"]);
        assert_eq!(pieces, ["", "", "€", "!", ""]);
    }

    #[test]
    fn an_unfinished_character_becomes_a_replacement_only_at_the_end() {
        let (pieces, _) = run(&[], &[b"a\xe2\x82"]);
        assert_eq!(pieces, ["a", "\u{fffd}"]);
        let (pieces, _) = run(&[], &[b"a\xe2", b"b"]);
        assert_eq!(pieces, ["a", "\u{fffd}b", ""]);
    }

    #[test]
    fn a_possible_stop_is_held_until_it_fails_or_completes() {
        assert_eq!(run(&["\nUser:"], &[b"ok\nUs", b"ual"]).0, ["ok", "\nUsual", ""]);
        let (pieces, stopped) = run(&["\nUser:"], &[b"ok\nUs", b"er: hi", b"more"]);
        assert_eq!(pieces, ["ok", "", "", ""]);
        assert_eq!(stopped, Some(0));
    }

    #[test]
    fn a_stop_that_never_completes_is_released_at_the_end() {
        assert_eq!(
            run(&["STOP"], &[b"ST"]),
            (vec![String::new(), "ST".to_owned()], None)
        );
    }

    #[test]
    fn the_stop_that_is_complete_first_wins_and_the_longest_of_those() {
        assert_eq!(
            run(&["xaby", "ab"], &[b"xaby"]),
            (vec!["x".to_owned(), String::new()], Some(1))
        );
        assert_eq!(
            run(&["ab", "xab"], &[b"wxab"]),
            (vec!["w".to_owned(), String::new()], Some(1))
        );
    }

    #[test]
    fn a_stop_may_cross_its_own_beginning() {
        assert_eq!(run(&["aab"], &[b"aaa", b"b"]).0.concat(), "a");
    }

    #[test]
    fn empty_stops_never_match() {
        assert_eq!(
            run(&["", "b"], &[b"ab"]),
            (vec!["a".to_owned(), String::new()], Some(1))
        );
    }

    /// The rule of the type's documentation, said as simply as it goes.
    fn expected(strings: &[String], bytes: &[u8]) -> (String, Option<usize>) {
        for end in 1..=bytes.len() {
            let complete = |stop: &&String| !stop.is_empty() && bytes[..end].ends_with(stop.as_bytes());
            if let Some(stop) = strings.iter().filter(complete).max_by_key(|stop| stop.len()) {
                let idx = strings.iter().position(|s| s == stop);
                return (
                    String::from_utf8_lossy(&bytes[..end - stop.len()]).into_owned(),
                    idx,
                );
            }
        }
        (String::from_utf8_lossy(bytes).into_owned(), None)
    }

    #[test]
    fn the_text_does_not_depend_on_how_the_bytes_are_split() {
        let seed = 0x5EED_0001;
        println!("seed {seed:#x}");
        let mut random = crate::sampler::noise(seed, 0, 0);
        let mut draw = |n: u64| {
            random = crate::sampler::noise(random, 0, 0);
            random % n
        };
        let alphabet = ["a", "b", "€", "\u{1F600}", "\n"];
        for case in 0..20_000 {
            let mut text = |n: u64| -> String {
                let n = draw(n);
                (0..n).map(|_| alphabet[draw(5) as usize]).collect()
            };
            let strings: Vec<String> = (0..3).map(|_| text(4)).collect();
            let mut bytes = text(12).into_bytes();
            if draw(3) == 0 && !bytes.is_empty() {
                let at = draw(bytes.len() as u64) as usize;
                bytes[at] = 0x80 | draw(128) as u8;
            }
            let mut tokens = Vec::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (token, others) = rest.split_at(1 + draw(rest.len() as u64) as usize);
                tokens.push(token);
                rest = others;
            }
            let (pieces, stopped) = run_stream(&strings, &tokens);
            let want = expected(&strings, &bytes);
            assert_eq!(
                (pieces.concat(), stopped),
                want,
                "case {case}: {strings:?} in {bytes:?}"
            );
        }
    }
}
