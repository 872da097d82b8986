//! Models that think before they answer: what a prompt says about it, and how it is kept out of the answer.
//!
//! ```text
//! prompt ends with      output                            thinking
//! … <think>             hm, let me see</think>{"a": 1}     Open: the prompt has opened it
//! … </think>            {"a": 1}                           None: the prompt says that there is none
//! anything else         <think>hm</think>{"a": 1}          Optional, where the template knows these marks
//! ```
//!
//! What the output must look like holds after the thinking. It follows the mark at once there; before free
//! text, line breaks after the mark and around the thinking belong to neither.

/// Opens a model's thinking.
pub const OPEN: &str = "<think>";
/// Closes it.
pub const CLOSE: &str = "</think>";
/// Both; they are text of an output even where a model has control tokens for them.
pub const MARKS: [&str; 2] = [OPEN, CLOSE];

/// Where a prompt leaves the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Thinking {
    /// At its answer.
    #[default]
    None,
    /// At its answer or before its thoughts, as it likes.
    Optional,
    /// Amid its thoughts.
    Open,
}

impl Thinking {
    /// What `prompt` says, the end of a chat rendered by a template that knows of thinking.
    pub fn at_end_of(prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        if prompt.ends_with(OPEN) {
            Thinking::Open
        } else if prompt.ends_with(CLOSE) {
            Thinking::None
        } else {
            Thinking::Optional
        }
    }
}

/// Where a client wants the thoughts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thoughts {
    /// In a field of their own.
    #[default]
    Apart,
    /// Nowhere.
    LeftOut,
    /// Before the answer, as the model wrote them.
    InText,
}

/// What follows the thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Any text.
    Free,
    /// Something that every byte counts for.
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but blanks has come yet, and thoughts may.
    Start,
    /// In the thoughts, before their first character.
    Opened,
    /// In the thoughts.
    Inside,
    /// Behind them, before free text.
    Closed,
    /// In the answer.
    Answer,
}

/// Takes thoughts and answer apart while they come. What it says does not depend on how the text is cut into
/// pieces.
#[derive(Clone, Debug)]
pub struct ThinkingParser {
    place: Place,
    answer: Answer,
    /// Not understood yet.
    held: String,
}

/// New thoughts and new text of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thought {
    /// Of the thoughts.
    pub reasoning: String,
    /// Of the answer.
    pub content: String,
}

impl ThinkingParser {
    /// A parser of an output that has not begun.
    pub fn new(thinking: Thinking, answer: Answer) -> Self {
        ThinkingParser {
            place: match thinking {
                Thinking::None => Place::Answer,
                Thinking::Optional => Place::Start,
                Thinking::Open => Place::Opened,
            },
            answer,
            held: String::new(),
        }
    }

    /// Takes more of the output.
    pub fn push(&mut self, text: &str) -> Thought {
        self.held.push_str(text);
        let mut new = Thought::default();
        while self.advance(&mut new) {}
        new
    }

    /// The output is over: returns what was held back.
    pub fn finish(&mut self) -> Thought {
        let held = std::mem::take(&mut self.held);
        let (reasoning, content) = match self.place {
            Place::Opened | Place::Inside => (held.trim_end_matches('\n').to_owned(), String::new()),
            Place::Start | Place::Closed | Place::Answer => (String::new(), held),
        };
        Thought { reasoning, content }
    }

    /// Whether it got anywhere.
    fn advance(&mut self, new: &mut Thought) -> bool {
        match self.place {
            Place::Start => self.start(),
            Place::Opened => self.skip_breaks(Place::Inside),
            Place::Inside => self.inside(new),
            Place::Closed => self.skip_breaks(Place::Answer),
            Place::Answer => {
                new.content.push_str(&std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let begun = self.held.trim_start();
        if begun.starts_with(OPEN) {
            let n_taken = self.held.len() - begun.len() + OPEN.len();
            self.held.drain(..n_taken);
            self.place = Place::Opened;
            return true;
        }
        // Blanks alone may still come before thoughts.
        if OPEN.starts_with(begun) {
            return false;
        }
        self.place = Place::Answer;
        true
    }

    fn skip_breaks(&mut self, next: Place) -> bool {
        let n_breaks = self.held.len() - self.held.trim_start_matches('\n').len();
        self.held.drain(..n_breaks);
        if self.held.is_empty() {
            return false;
        }
        self.place = next;
        true
    }

    /// Releases thoughts up to their end, or up to what may be their end.
    fn inside(&mut self, new: &mut Thought) -> bool {
        if let Some(at) = self.held.find(CLOSE) {
            new.reasoning.push_str(self.held[..at].trim_end_matches('\n'));
            self.held.drain(..at + CLOSE.len());
            self.place = match self.answer {
                Answer::Free => Place::Closed,
                Answer::Exact => Place::Answer,
            };
            return true;
        }
        let n_close = (1..CLOSE.len()).rev().find(|n| self.held.ends_with(&CLOSE[..*n]));
        let certain = &self.held[..self.held.len() - n_close.unwrap_or(0)];
        let n_certain = certain.trim_end_matches('\n').len();
        new.reasoning.extend(self.held.drain(..n_certain));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thoughts and answer of `text`, pushed in pieces of `n` characters.
    fn parsed((thinking, answer): (Thinking, Answer), text: &str, n: usize) -> (String, String) {
        let mut parser = ThinkingParser::new(thinking, answer);
        let characters: Vec<char> = text.chars().collect();
        let mut said = Thought::default();
        let mut add = |new: Thought| {
            said.reasoning.push_str(&new.reasoning);
            said.content.push_str(&new.content);
        };
        for piece in characters.chunks(n) {
            add(parser.push(&piece.iter().collect::<String>()));
        }
        add(parser.finish());
        (said.reasoning, said.content)
    }

    #[test]
    fn thoughts_and_answer_are_told_apart_however_they_are_cut() {
        use Answer::{Exact, Free};
        use Thinking::{None, Open, Optional};
        let cases = [
            (
                (Optional, Free),
                "<think>\nhm <b\n\nso</think>\n\nYes\n",
                "hm <b\n\nso",
                "Yes\n",
            ),
            ((Optional, Free), " \n<think>hm</think>Yes", "hm", "Yes"),
            ((Optional, Free), "\n <thin", "", "\n <thin"),
            (
                (Optional, Free),
                " Yes <think>a</think>",
                "",
                " Yes <think>a</think>",
            ),
            ((Optional, Free), "<think></think>", "", ""),
            ((Optional, Exact), "<think>é</think>\n1", "é", "\n1"),
            (
                (Open, Exact),
                "hm\n</think>{\"a\": \"</think>\"}",
                "hm",
                "{\"a\": \"</think>\"}",
            ),
            ((Open, Free), "\nhm </thin </think\n", "hm </thin </think", ""),
            ((Open, Free), "<think>a</think>b", "<think>a", "b"),
            ((None, Free), "<think>a</think>\nb", "", "<think>a</think>\nb"),
        ];
        for (how, text, reasoning, content) in cases {
            for n in 1..=text.len() {
                let expected = (reasoning.to_owned(), content.to_owned());
                assert_eq!(parsed(how, text, n), expected, "{how:?} {text:?} by {n}");
            }
        }
    }

    #[test]
    fn the_end_of_the_prompt_decides() {
        let at_end = Thinking::at_end_of;
        assert_eq!(at_end("<|assistant|><think>\n"), Thinking::Open);
        assert_eq!(at_end("<|assistant|>\n<think>\n\n</think>\n\n"), Thinking::None);
        assert_eq!(
            at_end("<|user|><think><|end|><|assistant|>\n"),
            Thinking::Optional
        );
    }
}
