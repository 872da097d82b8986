//! The order of an output's parts, for APIs whose answers are lists of them: thoughts, texts and calls, each
//! ended by the beginning of the next.

use crate::stream::Piece;
use crate::tools::CallPiece;

/// A part of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// What the model thinks.
    Thoughts,
    /// What it says.
    Text,
    /// A call of the tool with this name.
    Call(String),
}

/// What a piece adds to an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A block begins; the one before has ended.
    Begin(Block),
    /// More thoughts, text, or JSON of arguments in the block that began last.
    More(String),
}

/// Divides the pieces of one output into blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    last: Option<Block>,
}

impl Blocks {
    /// What `piece` adds: arguments of the call that goes on, thoughts, text, further calls.
    pub(crate) fn take(&mut self, piece: Piece) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut calls = piece.calls.into_iter().peekable();
        while let Some(CallPiece::Arguments { text, .. }) =
            calls.next_if(|call| matches!(call, CallPiece::Arguments { .. }))
        {
            changes.push(Change::More(text));
        }
        for (block, text) in [(Block::Thoughts, piece.reasoning), (Block::Text, piece.text)] {
            if text.is_empty() {
                continue;
            }
            if self.last.as_ref() != Some(&block) {
                self.begin(block, &mut changes);
            }
            changes.push(Change::More(text));
        }
        for call in calls {
            match call {
                CallPiece::Begin { name, .. } => self.begin(Block::Call(name), &mut changes),
                CallPiece::Arguments { text, .. } => changes.push(Change::More(text)),
            }
        }
        changes
    }

    fn begin(&mut self, block: Block, changes: &mut Vec<Change>) {
        self.last = Some(block.clone());
        changes.push(Change::Begin(block));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(reasoning: &str, text: &str, calls: Vec<CallPiece>) -> Piece {
        Piece {
            choice: 0,
            prompt: None,
            tokens: Vec::new(),
            reasoning: reasoning.to_owned(),
            text: text.to_owned(),
            logprobs: Vec::new(),
            stop_logprobs: Vec::new(),
            calls,
            finish: None,
        }
    }

    #[test]
    fn a_block_goes_on_until_another_begins() {
        let begin = |index, name: &str| CallPiece::Begin {
            index,
            name: name.to_owned(),
        };
        let arguments = |index, text: &str| CallPiece::Arguments {
            index,
            text: text.to_owned(),
        };
        let mut blocks = Blocks::default();
        let pieces = [
            piece("a", "", vec![]),
            piece("b", "c", vec![]),
            piece("", "d", vec![begin(0, "f"), arguments(0, "{")]),
            piece("", "e", vec![arguments(0, "}"), begin(1, "f")]),
            piece("", "", vec![arguments(1, "{}")]),
        ];
        let changes = pieces.into_iter().flat_map(|piece| blocks.take(piece));
        let shown = changes.map(|change| match change {
            Change::Begin(Block::Thoughts) => "thoughts:".to_owned(),
            Change::Begin(Block::Text) => "text:".to_owned(),
            Change::Begin(Block::Call(name)) => format!("{name}:"),
            Change::More(text) => text,
        });
        let shown: Vec<String> = shown.collect();
        assert_eq!(shown.join(" "), "thoughts: a b text: c d f: { } text: e f: {}");
    }
}
