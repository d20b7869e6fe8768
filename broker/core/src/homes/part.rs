//! Modules' own pieces of an account's state: loaded before its home is admitted, found by their type.

use crate::hooks::BoxFuture;
use smallvec::SmallVec;
use std::any::{Any, TypeId};
use tavi_store::{Owner, SharedStore, StoreError};

/// A module's piece of an account's state. Hooks do no IO, so what they must know is here.
pub trait AccountPart: Any + Send + Default {
    /// Reads it. It is in memory before anybody sees the account.
    fn load<'a>(store: &'a SharedStore, owner: &'a Owner) -> BoxFuture<'a, Result<Self, StoreError>>;
}

type Loaded = (TypeId, Box<dyn Any + Send>);

/// How one registered part is read.
pub(crate) type Loader = for<'a> fn(&'a SharedStore, &'a Owner) -> BoxFuture<'a, Result<Loaded, StoreError>>;

pub(crate) fn loader<T: AccountPart>() -> Loader {
    |store, owner| {
        Box::pin(async move {
            let part = T::load(store, owner).await?;
            Ok((TypeId::of::<T>(), Box::new(part) as Box<dyn Any + Send>))
        })
    }
}

/// The parts of one account.
#[derive(Default)]
pub(crate) struct PartsOf(SmallVec<[Loaded; 1]>);

impl PartsOf {
    /// Reads all registered parts.
    pub(crate) async fn load(loaders: &[Loader], store: &SharedStore, owner: &Owner) -> Result<PartsOf, StoreError> {
        let mut parts = SmallVec::new();
        for load in loaders {
            parts.push(load(store, owner).await?);
        }
        Ok(PartsOf(parts))
    }

    pub(crate) fn get<T: AccountPart>(&self) -> Option<&T> {
        let (_, part) = self.0.iter().find(|(id, _)| *id == TypeId::of::<T>())?;
        part.downcast_ref()
    }

    pub(crate) fn get_mut<T: AccountPart>(&mut self) -> Option<&mut T> {
        let (_, part) = self.0.iter_mut().find(|(id, _)| *id == TypeId::of::<T>())?;
        part.downcast_mut()
    }

    /// Adds one that is not there.
    pub(crate) fn insert<T: AccountPart>(&mut self, part: T) {
        self.0.push((TypeId::of::<T>(), Box::new(part)));
    }
}
