//! What a pickle may build here: plain data and tensors, in an arena.

use std::collections::HashMap;

/// The number of a value in its [`Arena`].
///
/// Numbers instead of references: values may refer to each other in circles or be nested a million deep, and neither
/// leaks nor overflows the stack when they are dropped.
pub(super) type Id = u32;

/// A tensor by the place of its elements; nothing is checked against the archive yet.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) storage: Id,
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) stride: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Text(String),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `module.name`, which is looked at and never called.
    Global(String),
    Storage {
        class: String,
        key: String,
        len: u64,
    },
    Tensor(View),
    /// Anything else.
    Opaque,
}

/// More than any real file has; a hostile one ends here instead of in the memory of the machine.
const MAX_VALUES: usize = 1 << 21;

#[derive(Default)]
pub(super) struct Arena {
    values: Vec<Value>,
    /// Elements of containers, copies included.
    elements: usize,
}

impl Arena {
    pub(super) fn add(&mut self, value: Value) -> Result<Id, String> {
        self.values.push(value);
        if self.values.len() > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        Ok(self.values.len() as Id - 1)
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Opaque)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Value> {
        self.values.get_mut(id as usize)
    }

    /// Counts elements before they are put into a container.
    pub(super) fn charge(&mut self, elements: usize) -> Result<(), String> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > 4 * MAX_VALUES {
            return Err(format!("more than {} elements in lists and dicts", 4 * MAX_VALUES));
        }
        Ok(())
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The entries of a dict whose keys are text.
    pub(super) fn dict(&self, id: Id) -> Option<HashMap<&str, Id>> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries.iter().filter_map(|&(k, v)| Some((self.text(k)?, v))).collect()),
            _ => None,
        }
    }

    pub(super) fn unsigned(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(v) => u64::try_from(*v).ok(),
            _ => None,
        }
    }

    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) | Value::Tuple(items) => Some(items),
            _ => None,
        }
    }
}
