//! The page allocator of the KV pool.
//!
//! Invariant: `n_free() ≤ n_total()`, and a page is on the free stack exactly when its bit says so.

/// The number of one KV page in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

impl PageId {
    /// The page's position in arrays with one element per page.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which pages of a pool of fixed size are free.
#[derive(Debug)]
pub struct PageAllocator {
    /// A stack: the page released last is handed out first, while its memory may still be in a cache.
    free: Vec<PageId>,
    is_free: Vec<bool>,
}

impl PageAllocator {
    /// A pool of `n_pages` free pages, handed out from page 0 upwards.
    pub fn new(n_pages: usize) -> Self {
        let n_pages = u32::try_from(n_pages).expect("a pool has fewer than 2^32 pages");
        Self {
            free: (0..n_pages).rev().map(PageId).collect(),
            is_free: vec![true; n_pages as usize],
        }
    }

    /// Pages of the pool, free or not.
    pub fn n_total(&self) -> usize {
        self.is_free.len()
    }

    /// Pages that can be allocated now.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Whether `page` can be allocated now.
    pub fn is_free(&self, page: PageId) -> bool {
        self.is_free[page.index()]
    }

    /// A free page; `None` when there is none.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.is_free[page.index()] = false;
        Some(page)
    }

    /// Takes `page` back.
    ///
    /// # Panics
    /// When the page is free already or not of this pool: two owners of one page mean that one prompt reads
    /// another's keys and values.
    pub fn release(&mut self, page: PageId) {
        let is_free = self
            .is_free
            .get_mut(page.index())
            .expect("a released page is one of the pool");
        assert!(!*is_free, "page {} was released twice", page.0);
        *is_free = true;
        self.free.push(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_handed_out_once_and_can_come_back() {
        let mut pages = PageAllocator::new(3);
        let taken: Vec<_> = std::iter::from_fn(|| pages.allocate()).collect();
        assert_eq!(taken, [PageId(0), PageId(1), PageId(2)]);
        assert_eq!((pages.n_total(), pages.n_free()), (3, 0));
        pages.release(PageId(1));
        assert!(pages.is_free(PageId(1)) && !pages.is_free(PageId(0)));
        assert_eq!(pages.allocate(), Some(PageId(1)));
        assert_eq!(pages.allocate(), None);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_a_page_twice_panics() {
        let mut pages = PageAllocator::new(2);
        let page = pages.allocate().expect("two pages are free");
        pages.release(page);
        pages.release(page);
    }

    #[test]
    #[should_panic(expected = "one of the pool")]
    fn releasing_a_foreign_page_panics() {
        PageAllocator::new(2).release(PageId(2));
    }
}
