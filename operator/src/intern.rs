//! Equal values kept once: the pods of a Deployment have the same labels.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Values that are in use, each once. What nobody else holds any more is dropped from time to time.
#[derive(Debug)]
pub struct Interner<T> {
    values: BTreeSet<Arc<T>>,
    /// How many values there were when the unused ones were last dropped.
    swept: usize,
}

/// Fewer values are not worth a sweep.
const FEW: usize = 1024;

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: BTreeSet::new(),
            swept: 0,
        }
    }
}

impl<T: Ord> Interner<T> {
    /// The value that is equal to this one and was there first.
    pub fn intern(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(&value) {
            return known.clone();
        }
        // A sweep looks at as many values as have come since the last one, or at twice as many.
        if self.values.len() > 2 * self.swept.max(FEW) {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.swept = self.values.len();
        }
        self.values.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one() {
        let mut interner = Interner::default();
        let first = interner.intern(Arc::new("a".to_owned()));
        let second = interner.intern(Arc::new("a".to_owned()));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &interner.intern(Arc::new("b".to_owned()))));
    }

    #[test]
    fn what_nobody_holds_does_not_stay() {
        let mut interner = Interner::default();
        let held = interner.intern(Arc::new(0));
        for n in 1..100 * FEW {
            interner.intern(Arc::new(n));
        }
        assert!(interner.values.len() <= 2 * FEW + 1, "{}", interner.values.len());
        assert!(Arc::ptr_eq(&held, &interner.intern(Arc::new(0))));
    }
}
