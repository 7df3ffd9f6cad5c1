//! All items, page by page, going on behind what cannot be read.

use std::rc::Rc;

use vellum_base::{Key, KeyRange, View};
use vellum_format::Value;

use crate::beyond::{Beyond, Next, left_out};
use crate::store::Store;

const PAGE_BYTES: usize = 1 << 20;

pub(super) struct Pages {
    store: Rc<Store>,
    /// What is left; `None` at the end.
    rest: Option<KeyRange>,
    beyond: Beyond,
}

pub(super) enum Page {
    Items(Vec<(Key, Value)>),
    /// Items that are left out: which, and why.
    Gap {
        what: String,
        why: String,
    },
}

impl Pages {
    pub fn new(store: &Rc<Store>) -> Pages {
        Pages { store: store.clone(), rest: Some(KeyRange::ALL), beyond: Beyond::default() }
    }

    pub async fn next(&mut self) -> Option<Page> {
        loop {
            let range = self.rest?;
            match self.store.scan(range, self.beyond.items(), PAGE_BYTES, View::Applied).await {
                Ok(page) => {
                    self.beyond.succeeded();
                    self.rest = page.next.map(|first| KeyRange { first, ..range });
                    return Some(Page::Items(page.items));
                }
                Err(e) => {
                    let next = match self.beyond.failed(&range.first, &range.last) {
                        Next::Again => continue,
                        Next::From(next) => Some(next),
                        Next::End => None,
                    };
                    self.rest = next.map(|first| KeyRange { first, ..range });
                    let what = left_out(&range.first, next.as_ref());
                    return Some(Page::Gap { what, why: format!("cannot be read: {e}") });
                }
            }
        }
    }
}
