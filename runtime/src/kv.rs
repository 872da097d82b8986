//! The pool of keys and values, sized once.

use arbora_kernels::{Backend, BackendError, KvShape};
use arbora_radix::PageId;

/// Keys and values of all pages. A page's content means something only while the tree or a sequence holds it.
pub(crate) struct KvPool<B: Backend> {
    kv: B::Kv,
}

impl<B: Backend> KvPool<B> {
    pub(crate) fn new(backend: &mut B, shape: KvShape) -> Result<Self, BackendError> {
        Ok(KvPool {
            kv: backend.kv(shape)?,
        })
    }

    pub(crate) fn kv_mut(&mut self) -> &mut B::Kv {
        &mut self.kv
    }

    pub(crate) fn copy_page(&mut self, backend: &mut B, from: PageId, to: PageId) {
        backend.copy_page(&mut self.kv, from.0, to.0);
    }

    /// Makes any later read of `page` show up in the output.
    pub(crate) fn poison_page(&mut self, backend: &mut B, page: PageId) {
        backend.poison_page(&mut self.kv, page.0);
    }
}
