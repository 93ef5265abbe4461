//! A pickle machine that builds data and calls nothing, for protocols 2 to 5.
//!
//! Candle's reader is not used: it knows protocol 2 only, forgets the content of a dict that is referred to twice, and
//! a crafted file makes it shift out of range or allocate without limit.

use std::collections::HashMap;

use super::value::{Arena, Id, Value};

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
                let made = self.arena.reduce(callee, arguments, self.opaque)?;
                self.push(made)?;
            }
            0x92 => {
                let (_, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                let made = self.arena.reduce(callee, arguments, self.opaque)?;
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
                let storage = self.arena.storage(id)?;
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
}
