//! Names become 64-bit numbers, so that keys are short: how readers look them up.

use crate::{
    StoreError,
    keys::{self, Kind, Number},
    kv::{Family, Kv},
    value,
};
use std::collections::HashMap;

/// The number of a name, as readers look it up.
pub(crate) fn number_of(kv: &dyn Kv, kind: Kind, name: &str) -> Result<Option<Number>, StoreError> {
    let row = kv.get(Family::Name, &keys::name(kind, name))?;
    row.map(|row| value::number(Family::Name, &row)).transpose()
}

/// The kind and name behind a number.
pub(crate) fn name_of(kv: &dyn Kv, number: Number) -> Result<Option<(Kind, Box<str>)>, StoreError> {
    kv.get(Family::Owner, &keys::owner(number))?.map(|row| decode(&row)).transpose()
}

/// Reads a row of the family owner.
pub(crate) fn decode(row: &[u8]) -> Result<(Kind, Box<str>), StoreError> {
    let (kind, name) = match row.split_first() {
        Some((0, name)) => (Kind::Owner, name),
        Some((1, name)) => (Kind::With, name),
        _ => return Err(StoreError::Corrupt("a name without its kind".into())),
    };
    let name = std::str::from_utf8(name).map_err(|_| StoreError::Corrupt("a name that is not UTF-8".into()))?;
    Ok((kind, name.into()))
}

/// The names met on one page: a page names few correspondents many times.
pub(crate) struct Page<'a> {
    kv: &'a dyn Kv,
    met: HashMap<Number, Option<Box<str>>>,
}

impl<'a> Page<'a> {
    pub fn new(kv: &'a dyn Kv) -> Page<'a> {
        Page { kv, met: HashMap::new() }
    }

    /// The name behind a number; `None` if its owner was purged.
    pub fn name(&mut self, number: Number) -> Result<Option<Box<str>>, StoreError> {
        if let Some(name) = self.met.get(&number) {
            return Ok(name.clone());
        }
        let name = name_of(self.kv, number)?.map(|(_, name)| name);
        self.met.insert(number, name.clone());
        Ok(name)
    }
}
