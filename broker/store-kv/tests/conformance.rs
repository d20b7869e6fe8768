//! The conformance suite on both engines.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};
use tavi_store::{SharedStore, conformance::Backend};
use tavi_store_kv::{Engine, Options, open};
use tempfile::TempDir;

/// One store after another, each in a folder of its own.
struct Engines {
    options: Options,
    dir: TempDir,
    made: AtomicU32,
}

impl Engines {
    fn new(engine: Engine) -> Engines {
        let options = Options { engine, cache: 8 << 20, ..Options::default() };
        Engines { options, dir: tempfile::tempdir().unwrap(), made: AtomicU32::new(0) }
    }

    fn open(&self) -> SharedStore {
        open(&self.dir.path().join(self.made.load(Ordering::Relaxed).to_string()), &self.options).unwrap()
    }
}

impl Backend for Engines {
    fn fresh(&self) -> SharedStore {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.open()
    }

    fn reopen(&self, store: SharedStore) -> SharedStore {
        assert_eq!(Arc::strong_count(&store), 1);
        drop(store);
        self.open()
    }
}

mod sled {
    tavi_store::conformance_tests!(super::Engines::new(super::Engine::Sled));
}

mod fjall {
    tavi_store::conformance_tests!(super::Engines::new(super::Engine::Fjall));
}
