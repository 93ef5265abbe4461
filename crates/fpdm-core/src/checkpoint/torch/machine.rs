//! A pickle machine that builds data and calls nothing, for protocols 2 to 5.
//!
//! Candle's reader is not used: it knows protocol 2 only, forgets the content of a dict that is referred to twice, and
//! a crafted file makes it shift out of range or allocate without limit.

use std::collections::HashMap;

use super::value::{Arena, Id, Value, View};

/// Runs a pickle to its end and returns its value.
pub(super) fn run(bytes: &[u8]) -> Result<(Arena, Id), String> {
    let mut machine = Machine::new(bytes)?;
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(id)) => return Ok((machine.arena, id)),
            Err(why) => return Err(format!("bad pickle at byte {at}: {why}")),
        }
    }
}

const MAX_STACK: usize = 1 << 21;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    arena: Arena,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    none: Id,
    bool: Id,
    opaque: Id,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let mut arena = Arena::default();
        let none = arena.add(Value::None)?;
        let bool = arena.add(Value::Bool)?;
        let opaque = arena.add(Value::Opaque)?;
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        Ok(Self { bytes, at: 0, arena, stack, marks, memo, none, bool, opaque })
    }

    /// One instruction; the value, if it was the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        match self.number(1)? as u8 {
            0x80 => match self.number(1)? {
                2..=5 => {}
                other => return Err(format!("protocol {other}; expected 2 to 5")),
            },
            0x95 => drop(self.number(8)?),
            b'.' => return self.pop().map(Some),
            b'(' => {
                self.room(self.marks.len())?;
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.push(self.none)?,
            0x88 | 0x89 => self.push(self.bool)?,
            b'J' => {
                let v = self.number(4)? as u32 as i32;
                self.make(Value::Int(v.into()))?;
            }
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                self.take(8)?;
                self.push(self.opaque)?;
            }
            b'X' => self.unicode(4)?,
            0x8c => self.unicode(1)?,
            0x8d => self.unicode(8)?,
            b'U' | b'C' => self.blob(1)?,
            b'T' | b'B' => self.blob(4)?,
            0x8e | 0x96 => self.blob(8)?,
            b']' => self.make(Value::List(Vec::new()))?,
            b'}' => self.make(Value::Dict(Vec::new()))?,
            b')' => self.make(Value::Tuple(Vec::new()))?,
            0x8f => self.make(Value::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.insert(items)?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.tuple(items)?;
            }
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.arena.charge(items.len())?;
                self.make(Value::List(items))?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.make(Value::Dict(Vec::new()))?;
                self.insert(items)?;
            }
            op @ 0x85..=0x87 => {
                let from = self.floor(op as usize - 0x84)?;
                let items = self.stack.split_off(from);
                self.tuple(items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.make(Value::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.arena.text(module), self.arena.text(name)) else {
                    return Err("a global without a name".into());
                };
                let global = format!("{module}.{name}");
                self.make(Value::Global(global))?;
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let made = self.reduce(callee, arguments)?;
                self.push(made)?;
            }
            0x92 => {
                let (_, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                let made = self.reduce(callee, arguments)?;
                self.push(made)?;
            }
            // The attributes of an object are of no interest; those of a dict are its metadata.
            b'b' => drop(self.pop()?),
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'q' => self.memoize(1)?,
            b'r' => self.memoize(4)?,
            0x94 => {
                let top = self.top()?;
                self.room(self.memo.len())?;
                self.memo.insert(self.memo.len() as u32, top);
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.make(storage)?;
            }
            op => return Err(format!("instruction {op:#04x} is not supported")),
        }
        Ok(None)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("needs {len} bytes, but {} are left", self.bytes.len() - self.at))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// A little-endian number of up to 8 bytes.
    fn number(&mut self, bytes: u64) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("a line without an end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn room(&self, used: usize) -> Result<(), String> {
        if used < MAX_STACK { Ok(()) } else { Err(format!("more than {MAX_STACK} values on the stack")) }
    }

    fn push(&mut self, id: Id) -> Result<(), String> {
        self.room(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    fn make(&mut self, value: Value) -> Result<(), String> {
        let id = self.arena.add(value)?;
        self.push(id)
    }

    /// Where the top `count` values start, if no mark is in the way.
    fn floor(&self, count: usize) -> Result<usize, String> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        self.stack.len().checked_sub(count).filter(|&from| from >= bottom).ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Result<Id, String> {
        Ok(self.stack[self.floor(1)?])
    }

    fn pop(&mut self) -> Result<Id, String> {
        let from = self.floor(1)?;
        Ok(self.stack.split_off(from)[0])
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        if mark > self.stack.len() {
            return Err("a mark above the stack".into());
        }
        Ok(self.stack.split_off(mark))
    }

    fn int(&mut self, bytes: u64) -> Result<(), String> {
        let v = self.number(bytes)?;
        self.make(Value::Int(v as i64))
    }

    /// Two's complement of any length; what does not fit is no number that is needed.
    fn long(&mut self, bytes: u64) -> Result<(), String> {
        let len = self.number(bytes)?;
        let digits = self.take(len)?;
        if digits.len() > 8 {
            return self.push(self.opaque);
        }
        let negative = digits.last().is_some_and(|&b| b >= 0x80);
        let mut full = if negative { [0xff; 8] } else { [0; 8] };
        full[..digits.len()].copy_from_slice(digits);
        self.make(Value::Int(i64::from_le_bytes(full)))
    }

    fn unicode(&mut self, bytes: u64) -> Result<(), String> {
        let len = self.number(bytes)?;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "text that is not UTF-8")?;
        self.make(Value::Text(text.to_owned()))
    }

    fn blob(&mut self, bytes: u64) -> Result<(), String> {
        let len = self.number(bytes)?;
        self.take(len)?;
        self.push(self.opaque)
    }

    fn tuple(&mut self, items: Vec<Id>) -> Result<(), String> {
        self.arena.charge(items.len())?;
        self.make(Value::Tuple(items))
    }

    /// Appends to the list on top.
    fn extend(&mut self, items: Vec<Id>) -> Result<(), String> {
        let top = self.top()?;
        self.arena.charge(items.len())?;
        match self.arena.get_mut(top) {
            Some(Value::List(list)) => list.extend(items),
            Some(Value::Opaque) => {}
            _ => return Err("expected a list to append to".into()),
        }
        Ok(())
    }

    /// Sets entries of the dict on top.
    fn insert(&mut self, items: Vec<Id>) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        let top = self.top()?;
        self.arena.charge(items.len())?;
        match self.arena.get_mut(top) {
            Some(Value::Dict(dict)) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Some(Value::Opaque) => {}
            _ => return Err("expected a dict to set entries of".into()),
        }
        Ok(())
    }

    fn memo_key(&mut self, bytes: u64) -> Result<u32, String> {
        Ok(self.number(bytes)? as u32)
    }

    fn memoize(&mut self, bytes: u64) -> Result<(), String> {
        let key = self.memo_key(bytes)?;
        let top = self.top()?;
        self.room(self.memo.len())?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, bytes: u64) -> Result<(), String> {
        let key = self.memo_key(bytes)?;
        let id = *self.memo.get(&key).ok_or_else(|| format!("memo {key} is empty"))?;
        self.push(id)
    }

    /// A persistent identifier is `('storage', class, key, location, elements)`.
    fn storage(&self, id: Id) -> Result<Value, String> {
        let bad = || "a persistent value that is no storage".to_owned();
        let &[kind, class, key, _, len] = self.arena.sequence(id).ok_or_else(bad)? else { return Err(bad()) };
        match (self.arena.text(kind), self.arena.get(class), self.arena.text(key), self.arena.unsigned(len)) {
            (Some("storage"), Value::Global(class), Some(key), Some(len)) => {
                Ok(Value::Storage { class: class.clone(), key: key.to_owned(), len })
            }
            _ => Err(bad()),
        }
    }

    /// What a call would return, for the few callees that matter.
    fn reduce(&mut self, callee: Id, arguments: Id) -> Result<Id, String> {
        let Value::Global(name) = self.arena.get(callee) else { return Ok(self.opaque) };
        let Some(arguments) = self.arena.sequence(arguments) else { return Ok(self.opaque) };
        let value = match (name.as_str(), arguments) {
            ("collections.OrderedDict" | "builtins.dict", []) => Value::Dict(Vec::new()),
            ("collections.OrderedDict" | "builtins.dict", &[pairs, ..]) => {
                let pair = |&id| match self.arena.sequence(id) {
                    Some(&[key, value]) => Ok((key, value)),
                    _ => Err("a dict of something else than pairs".to_owned()),
                };
                let pairs: Vec<(Id, Id)> =
                    self.arena.sequence(pairs).unwrap_or_default().iter().map(pair).collect::<Result<_, _>>()?;
                self.arena.charge(2 * pairs.len())?;
                Value::Dict(pairs)
            }
            ("torch._utils._rebuild_tensor_v2", &[storage, offset, shape, stride, ..]) => {
                let view = self.view(storage, offset, shape, stride)?;
                self.arena.charge(2 * view.shape.len())?;
                Value::Tensor(view)
            }
            ("torch._utils._rebuild_parameter", &[tensor, ..]) => return Ok(tensor),
            _ => return Ok(self.opaque),
        };
        self.arena.add(value)
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, stride: Id) -> Result<View, String> {
        let numbers = |id| -> Option<Vec<u64>> {
            let ids = self.arena.sequence(id)?;
            if ids.len() > 16 { None } else { ids.iter().map(|&id| self.arena.unsigned(id)).collect() }
        };
        match (self.arena.unsigned(offset), numbers(shape), numbers(stride)) {
            (Some(offset), Some(shape), Some(stride)) if shape.len() == stride.len() => {
                Ok(View { storage, offset, shape, stride })
            }
            _ => Err("a tensor without a valid offset, shape and stride".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::Which;
    use crate::checkpoint::torch::state::tensors;

    fn why(bytes: &[u8]) -> String {
        match run(bytes) {
            Ok(_) => panic!("accepted {bytes:?}"),
            Err(why) => why,
        }
    }

    #[test]
    fn a_dict_that_is_referred_to_twice_keeps_its_content() {
        // {'a': d, 'b': d} where d is filled after it was memoised.
        let bytes = b"\x80\x02}(X\x01\0\0\0a}q\x05X\x01\0\0\0kK\x07sX\x01\0\0\0bh\x05u.";
        let (arena, root) = run(bytes).unwrap();
        let top = arena.dict(root).unwrap();
        for key in ["a", "b"] {
            assert_eq!(arena.unsigned(arena.dict(top[key]).unwrap()["k"]), Some(7));
        }
    }

    #[test]
    fn protocol_4_is_read() {
        let bytes = b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94\x8a\x02\x00\x01u.";
        let (arena, root) = run(bytes).unwrap();
        let top = arena.dict(root).unwrap();
        assert_eq!((arena.unsigned(top["a"]), arena.unsigned(top["b"])), (Some(1), Some(256)));
    }

    #[test]
    fn nothing_is_called() {
        let bytes = b"\x80\x02cos\nsystem\nX\x05\0\0\0false\x85R.";
        let (arena, root) = run(bytes).unwrap();
        assert!(matches!(arena.get(root), Value::Opaque));
        assert!(tensors(&arena, root, Which::Ema).is_err());
    }

    #[test]
    fn what_is_wrong_is_located() {
        for (bytes, word) in [
            (&b""[..], "byte 0"),
            (b"\x80\x09.", "protocol 9"),
            (b"\x80\x02.", "stack is empty"),
            (b"(.", "stack is empty"),
            (b"t.", "no mark"),
            (b"h\x07.", "memo 7"),
            (b"X\xff\xff\xff\xffa.", "needs 4294967295 bytes"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "bytes"),
            (b"\x8b\xff\xff\xff\x7f.", "bytes"),
            (b"Na.", "stack is empty"),
            (b"NNa.", "expected a list"),
            (b"NNNs.", "expected a dict"),
            (b"}(Nu.", "without a value"),
            (b"NQ.", "no storage"),
            (b"\x82.", "0x82"),
            (b"cos", "without an end"),
            (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "without a valid offset"),
        ] {
            assert!(why(bytes).contains(word), "{bytes:?}: {}", why(bytes));
        }
    }

    #[test]
    fn bombs_end_early() {
        // Ever deeper tuples, which must also be dropped without recursion.
        let mut deep = vec![b'N'];
        deep.resize(1 << 22, 0x85);
        assert!(why(&deep).contains("values"));
        assert!(why(&vec![b'('; 1 << 22]).contains("stack"));
        assert!(why(&[vec![b'N'], vec![b'2'; 1 << 22]].concat()).contains("stack"));
        // One long list, copied into a dict again and again.
        let mut copies = b"](".to_vec();
        (0..1000).for_each(|_| copies.extend_from_slice(b"NN\x86"));
        copies.extend_from_slice(b"eq\x00");
        (0..100_000).for_each(|_| copies.extend_from_slice(b"ccollections\nOrderedDict\nh\x00\x85R0"));
        assert!(why(&copies).contains("elements"));
        // A list that contains itself.
        let (arena, root) = run(b"]q\x00h\x00a.").unwrap();
        assert_eq!(arena.sequence(root), Some(&[root][..]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = run(&bytes);
        }

        #[test]
        fn any_instructions_are_survived(
            ops in proptest::collection::vec(proptest::sample::select(&b"(01N]})aetsuldRb2QKK\x85\x86\x87\x81\x92\x94h\0q\0."[..]), 0..80),
        ) {
            if let Ok((arena, root)) = run(&ops) {
                let _ = tensors(&arena, root, Which::Model);
            }
        }
    }
}
