//! The few calls of a pickle that mean something, answered without calling anything.

use super::value::{Arena, Id, Value, View};

impl Arena {
    /// A persistent identifier is `('storage', class, key, location, elements)`.
    pub(super) fn storage(&self, id: Id) -> Result<Value, String> {
        let bad = || "a persistent value that is no storage".to_owned();
        let &[kind, class, key, _, len] = self.sequence(id).ok_or_else(bad)? else { return Err(bad()) };
        match (self.text(kind), self.get(class), self.text(key), self.unsigned(len)) {
            (Some("storage"), Value::Global(class), Some(key), Some(len)) => {
                Ok(Value::Storage { class: class.clone(), key: key.to_owned(), len })
            }
            _ => Err(bad()),
        }
    }

    /// What a call would return, for the few callees that matter; `opaque` for all others.
    pub(super) fn reduce(&mut self, callee: Id, arguments: Id, opaque: Id) -> Result<Id, String> {
        let Value::Global(name) = self.get(callee) else { return Ok(opaque) };
        let Some(arguments) = self.sequence(arguments) else { return Ok(opaque) };
        let value = match (name.as_str(), arguments) {
            ("collections.OrderedDict" | "builtins.dict", []) => Value::Dict(Vec::new()),
            ("collections.OrderedDict" | "builtins.dict", &[pairs, ..]) => {
                let pair = |&id| match self.sequence(id) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => Err("a dict of something else than pairs".to_owned()),
                };
                let pairs: Vec<(Id, Id)> =
                    self.sequence(pairs).unwrap_or_default().iter().map(pair).collect::<Result<_, _>>()?;
                self.charge(2 * pairs.len())?;
                Value::Dict(pairs)
            }
            ("torch._utils._rebuild_tensor_v2", &[storage, offset, shape, stride, ..]) => {
                let view = self.view(storage, offset, shape, stride)?;
                self.charge(2 * view.shape.len())?;
                Value::Tensor(view)
            }
            ("torch._utils._rebuild_parameter", &[tensor, ..]) => return Ok(tensor),
            _ => return Ok(opaque),
        };
        self.add(value)
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, stride: Id) -> Result<View, String> {
        let numbers = |id| -> Option<Vec<u64>> {
            let ids = self.sequence(id)?;
            if ids.len() > 16 { None } else { ids.iter().map(|&id| self.unsigned(id)).collect() }
        };
        match (self.unsigned(offset), numbers(shape), numbers(stride)) {
            (Some(offset), Some(shape), Some(stride)) if shape.len() == stride.len() => {
                Ok(View { storage, offset, shape, stride })
            }
            _ => Err("a tensor without a valid offset, shape and stride".into()),
        }
    }
}
