//! What a value must satisfy: goals, and the facts that goals are taken apart into.
//!
//! A goal is a whole schema or a whole value, wanted or not. Facts are what can be lowered without a choice;
//! one [`Facts`] is one way in which all goals of a rule hold.

use std::rc::Rc;

use super::keywords::{ARRAY, NUMBER, OBJECT, STRING};
use crate::json::JsonId;

/// Resources entered on the way to a schema that offer dynamic anchors, interned; 0 where there are none.
pub(super) type ScopeId = u32;

/// A schema where it stands, and from where it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) id: JsonId,
    pub(super) scope: ScopeId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Goal {
    Holds(Target),
    /// The value is this one of the document.
    Equals(JsonId),
    Fails(Target),
    Differs(JsonId),
}

impl Goal {
    pub(super) fn negated(self) -> Self {
        match self {
            Self::Holds(target) => Self::Fails(target),
            Self::Fails(target) => Self::Holds(target),
            Self::Equals(value) => Self::Differs(value),
            Self::Differs(value) => Self::Equals(value),
        }
    }
}

impl Goal {
    /// Where its schema or value stands.
    pub(super) fn place(self) -> JsonId {
        match self {
            Self::Holds(target) | Self::Fails(target) => target.id,
            Self::Equals(value) | Self::Differs(value) => value,
        }
    }
}

/// A property name of the document.
pub(super) type NameId = u32;

/// A list of facts that the compiler keeps.
pub(super) type ClauseId = u32;

/// A keyword of scalars that is violated, by a value of the type it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    Integer,
    Lower,
    Upper,
    MultipleOf,
    Pattern,
    Format,
}

impl Broken {
    pub(super) fn keyword(self) -> &'static str {
        match self {
            Self::Integer => "type",
            Self::Lower => "minimum",
            Self::Upper => "maximum",
            Self::MultipleOf => "multipleOf",
            Self::Pattern => "pattern",
            Self::Format => "format",
        }
    }
}

/// How many items from index `from` on satisfy `goal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Counted {
    pub(super) goal: Goal,
    pub(super) from: u32,
    pub(super) min: u32,
    pub(super) max: Option<u32>,
    /// The schema whose `contains` this is.
    pub(super) owner: Option<Target>,
}

/// A member that must be there, known by what its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Witness {
    /// A name that the `n`th of the schema's `patternProperties` matches; its schema fails.
    Pattern { at: Target, n: u32 },
    /// A name that `additionalProperties` of the schema speaks of; it fails.
    Additional { at: Target },
    /// A name that violates `propertyNames` of the schema.
    Name { at: Target },
    /// A name that the object in the document does not have.
    Other { value: JsonId },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fact {
    Broken(JsonId, Broken),
    /// The object lacks the property.
    Lacks(NameId),
    /// The object has the property, and its value satisfies the goal.
    Member(NameId, Option<Goal>),
    /// If the object has the property, its value satisfies the goal.
    Value(NameId, Goal),
    /// At least one of some facts about an object holds.
    AnyOf(ClauseId),
    Witness(Witness),
    MinProperties(u32),
    MaxProperties(u32),
    MinItems(u32),
    MaxItems(u32),
    /// There is such an item, and it satisfies the goal.
    ItemAt(u32, Goal),
    Counted(Counted),
    MinLength(u32),
    MaxLength(u32),
}

impl Fact {
    /// The property that it is about.
    pub(super) fn name(&self) -> Option<NameId> {
        match self {
            Self::Lacks(name) | Self::Member(name, _) | Self::Value(name, _) => Some(*name),
            _ => None,
        }
    }

    /// The type that a value with this fact has.
    pub(super) fn type_bit(self) -> u8 {
        match self {
            Self::Broken(_, Broken::Pattern | Broken::Format) => STRING,
            Self::Broken(..) => NUMBER,
            Self::Lacks(_) | Self::Member(..) | Self::Value(..) => OBJECT,
            Self::Witness(_) | Self::AnyOf(_) => OBJECT,
            Self::MinProperties(_) | Self::MaxProperties(_) => OBJECT,
            Self::MinItems(_) | Self::MaxItems(_) | Self::ItemAt(..) | Self::Counted(_) => ARRAY,
            Self::MinLength(_) | Self::MaxLength(_) => STRING,
        }
    }
}

/// One way in which all goals hold. A fact about one type says nothing about values of others.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) types: u8,
    /// Schemas whose own keywords all hold, ascending once complete.
    pub(super) plain: Vec<Target>,
    pub(super) list: Vec<Fact>,
    /// Values that the value is equal to.
    pub(super) equal: Vec<JsonId>,
    /// Lists that each have the value.
    pub(super) listed: Vec<Rc<[JsonId]>>,
    /// Scalars that it is not.
    pub(super) different: Vec<JsonId>,
    /// Whether something is left out of a schema that holds, so that what is evaluated is not known in full.
    pub(super) is_partial: bool,
    /// `(a, b)`: the schema `b` holds of the same value below `a`, which has an `unevaluated` keyword.
    pub(super) evaluated: Vec<(Target, Target)>,
}

impl Facts {
    pub(super) fn of_types(types: u8) -> Self {
        Self {
            types,
            plain: Vec::new(),
            list: Vec::new(),
            equal: Vec::new(),
            listed: Vec::new(),
            different: Vec::new(),
            is_partial: false,
            evaluated: Vec::new(),
        }
    }

    pub(super) fn size(&self) -> usize {
        let n_values = self.equal.len() + self.listed.len() + self.different.len();
        4 + self.plain.len() + self.list.len() + n_values + self.evaluated.len()
    }

    /// A schema to name in an error.
    pub(super) fn first(&self) -> JsonId {
        self.plain.first().map_or(0, |target| target.id)
    }

    /// Whether nothing is asked of values of the types that are left but the types themselves.
    pub(super) fn is_free(&self) -> bool {
        let Self {
            plain,
            list,
            equal,
            listed,
            different,
            ..
        } = self;
        let has_no_values = equal.is_empty() && listed.is_empty() && different.is_empty();
        plain.is_empty() && list.is_empty() && has_no_values
    }

    /// Schemas that hold below `owner`, itself included.
    pub(super) fn below(&self, owner: Target) -> impl Iterator<Item = Target> {
        let of_owner = self.evaluated.iter().filter(move |(above, _)| *above == owner);
        of_owner.map(|(_, below)| *below)
    }
}
