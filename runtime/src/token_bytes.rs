//! The bytes of each token, as one flat table.

/// Bytes of every token of a vocabulary. Tokens that must not show up in the text (control tokens) have none,
/// and so have ids beyond the table: models pad their embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    /// `ends[id]` is the end of token `id` in `bytes`, where the next one starts.
    ends: Vec<usize>,
}

impl TokenBytes {
    /// Token `i` gets the `i`-th item.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut table = TokenBytes {
            bytes: Vec::new(),
            ends: Vec::new(),
        };
        for token in tokens {
            table.bytes.extend_from_slice(token);
            table.ends.push(table.bytes.len());
        }
        table
    }

    /// The bytes token `id` adds to the text.
    pub fn of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        if id >= self.ends.len() {
            return &[];
        }
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..self.ends[id]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_its_own_bytes_and_unknown_ids_have_none() {
        let table = TokenBytes::new([b"a".as_slice(), b"", b"xyz"]);
        assert_eq!(table.of(0), b"a");
        assert_eq!(table.of(1), b"");
        assert_eq!(table.of(2), b"xyz");
        assert_eq!(table.of(3), b"");
    }
}
