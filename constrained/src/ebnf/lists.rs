//! Rules that begin and end with themselves, rewritten as lists.
//!
//! ```text
//! sum = sum "+" sum | sum sum | term        sum = term (("+" | "") term)*
//! ```
//!
//! A text of such a rule has as many derivations as there are binary trees of its parts, and a list has one.
//! Why both have the same texts: take what stands between and the other ways for given languages M and B.
//! The least X with X = X M X | B is B (M B)*, since either side of M is a list again. Both may mention the
//! rule; its texts are the least that are equal to their list, one way or the other.

use super::sets::reachable;
use super::{Expr, ExprId, Name, Tree};
use crate::error::CompileError;

/// Rewrites all such rules that `root` reaches.
pub(crate) fn rewrite(tree: &mut Tree<'_>, root: Name) -> Result<(), CompileError> {
    for rule in reachable(tree, root) {
        let Expr::Alt(ways) = &tree.exprs[tree.body(rule) as usize] else {
            continue;
        };
        let ways = ways.clone();
        let (mut between, mut others) = (Vec::new(), Vec::new());
        for way in ways {
            match middle(tree, rule, way) {
                Some(middle) => between.push(middle),
                None => others.push(way),
            }
        }
        if between.is_empty() || others.is_empty() {
            continue;
        }
        let middles = between.into_iter().map(|parts| tree.seq(parts));
        let middles = middles.collect::<Result<Vec<_>, _>>()?;
        let (between, other) = (tree.alt(middles)?, tree.alt(others)?);
        let body = tree.seq(vec![between, other])?;
        let (min, max) = (0, None);
        let rest = tree.add(Expr::Repeat { body, min, max })?;
        let list = tree.seq(vec![other, rest])?;
        tree.rules[rule as usize].body = Some(list);
    }
    Ok(())
}

/// What stands between, where `way` begins and ends with `rule`.
fn middle(tree: &Tree<'_>, rule: Name, way: ExprId) -> Option<Vec<ExprId>> {
    let is_rule = |part: &ExprId| matches!(tree.exprs[*part as usize], Expr::Rule(name) if name == rule);
    match &tree.exprs[way as usize] {
        Expr::Seq(parts) => match parts.as_slice() {
            [first, middle @ .., last] if is_rule(first) && is_rule(last) => Some(middle.to_vec()),
            _ => None,
        },
        _ => None,
    }
}
