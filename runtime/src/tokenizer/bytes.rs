//! The byte alphabet of byte-level BPE: every byte is written as one printable character.
//!
//! ```text
//! ! .. ~   ¡ .. ¬   ® .. ÿ     stand for themselves
//! the other 68 bytes           U+0100, U+0101, … in ascending order of the byte
//! ```
//!
//! Source: GPT-2's `bytes_to_unicode`.

use std::collections::HashMap;

/// Both directions of the alphabet.
pub(super) struct ByteAlphabet {
    chars: [char; 256],
    bytes: HashMap<char, u8>,
}

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        let mut next_stand_in = 0x100;
        let chars: [char; 256] = std::array::from_fn(|byte| {
            let code = match byte {
                0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
                _ => {
                    next_stand_in += 1;
                    next_stand_in - 1
                }
            };
            char::from_u32(code).expect("codes below U+0200 are characters")
        });
        let bytes = (0..=255)
            .map(|byte: u8| (chars[usize::from(byte)], byte))
            .collect();
        ByteAlphabet { chars, bytes }
    }

    /// The character that stands for `byte`.
    pub(super) fn char_of(&self, byte: u8) -> char {
        self.chars[usize::from(byte)]
    }

    /// Writes `text` in the alphabet to `out`, replacing what was there.
    pub(super) fn spell(&self, text: &str, out: &mut String) {
        out.clear();
        out.extend(text.bytes().map(|byte| self.char_of(byte)));
    }

    /// Appends the bytes that `spelled` stands for. Text with any other character stands for itself, as in
    /// the `ByteLevel` decoder of Hugging Face.
    pub(super) fn read(&self, spelled: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for character in spelled.chars() {
            match self.bytes.get(&character) {
                Some(&byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(spelled.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own_and_comes_back() {
        let alphabet = ByteAlphabet::new();
        assert_eq!(alphabet.bytes.len(), 256);
        for byte in 0..=255 {
            let mut back = Vec::new();
            alphabet.read(&alphabet.char_of(byte).to_string(), &mut back);
            assert_eq!(back, [byte]);
        }
        assert_eq!(alphabet.char_of(b' '), 'Ġ');
        assert_eq!(alphabet.char_of(b'\n'), 'Ċ');
    }
}
