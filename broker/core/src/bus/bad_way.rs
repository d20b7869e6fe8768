//! For tests: a way between nodes that loses, repeats, delays and reorders what it carries, the same for the same seed.

/// Chance from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }
}

/// The way. What it carries knows where it goes.
#[derive(Debug)]
pub struct BadWay<T> {
    /// It loses and repeats nothing any more.
    pub is_calm: bool,
    under_way: Vec<T>,
}

impl<T> Default for BadWay<T> {
    fn default() -> BadWay<T> {
        BadWay { is_calm: false, under_way: Vec::new() }
    }
}

impl<T: Clone> BadWay<T> {
    /// Takes what is to be carried.
    pub fn carry(&mut self, pieces: impl IntoIterator<Item = T>) {
        self.under_way.extend(pieces);
    }

    /// Drops what does not arrive any more.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.under_way.retain(keep);
    }

    /// How much is under way.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Any of the pieces arrives, or is lost (`None`), or arrives and stays under way.
    pub fn arrive(&mut self, dice: &mut Dice) -> Option<T> {
        if self.under_way.is_empty() {
            return None;
        }
        let at = dice.below(self.under_way.len());
        match dice.below(10) {
            0 | 1 if !self.is_calm => {
                self.under_way.swap_remove(at);
                None
            }
            2 if !self.is_calm => Some(self.under_way[at].clone()),
            _ => Some(self.under_way.swap_remove(at)),
        }
    }
}
