//! RocksDB as a peer: the system's library, opened at run time through its C interface (rocksdb/c.h of 7.8). Nothing of it
//! is needed to build. The functions used are as old as the interface and have had the same shapes since 5.0.
#![allow(unsafe_code)] // dlopen and a C interface; each block states its argument

use std::ffi::{CStr, CString, c_char, c_double, c_int, c_uchar, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{NonNull, null_mut};

use anyhow::{Context, Result};
use libloading::os::unix::Library;

use super::kv::{CACHE_BYTES, KEY_LEN, KeyValue, MEMTABLE_BYTES, RawKey, VALUE_LEN};

/// Names of the library: the development package's link, Debian 12's, Ubuntu 24.04's, and others of the last years.
const LIBRARIES: [&str; 5] =
    ["librocksdb.so", "librocksdb.so.7.8", "librocksdb.so.8.9", "librocksdb.so.9.10", "librocksdb.so.6.11"];
/// Another library, by its path.
const LIBRARY_VARIABLE: &str = "VELLUM_ROCKSDB_LIBRARY";
const BLOOM_BITS_PER_KEY: c_double = 10.0;
const NO_COMPRESSION: c_int = 0;

macro_rules! api {
    ($($name:ident: ($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions, with the shapes that rocksdb/c.h gives them.
        struct Api {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// What the functions are in.
            _library: Library,
        }

        impl Api {
            fn find(library: Library) -> Result<Api> {
                Ok(Api {
                    // SAFETY: the symbol of this name is a function of this shape, as the header declares it; the pointer
                    // is kept beside the library that it points into.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .with_context(|| format!("the installed RocksDB has no function {}", stringify!($name)))?,)*
                    _library: library,
                })
            }
        }
    };
}

api! {
    rocksdb_options_create: () -> *mut c_void;
    rocksdb_options_destroy: (*mut c_void);
    rocksdb_options_set_create_if_missing: (*mut c_void, c_uchar);
    rocksdb_options_set_write_buffer_size: (*mut c_void, usize);
    rocksdb_options_set_compression: (*mut c_void, c_int);
    rocksdb_options_set_block_based_table_factory: (*mut c_void, *mut c_void);
    rocksdb_block_based_options_create: () -> *mut c_void;
    rocksdb_block_based_options_destroy: (*mut c_void);
    rocksdb_block_based_options_set_filter_policy: (*mut c_void, *mut c_void);
    rocksdb_block_based_options_set_block_cache: (*mut c_void, *mut c_void);
    rocksdb_filterpolicy_create_bloom_full: (c_double) -> *mut c_void;
    rocksdb_cache_create_lru: (usize) -> *mut c_void;
    rocksdb_cache_destroy: (*mut c_void);
    rocksdb_open: (*const c_void, *const c_char, *mut *mut c_char) -> *mut c_void;
    rocksdb_close: (*mut c_void);
    rocksdb_writebatch_create: () -> *mut c_void;
    rocksdb_writebatch_destroy: (*mut c_void);
    rocksdb_writebatch_put: (*mut c_void, *const c_char, usize, *const c_char, usize);
    rocksdb_writeoptions_create: () -> *mut c_void;
    rocksdb_writeoptions_destroy: (*mut c_void);
    rocksdb_writeoptions_set_sync: (*mut c_void, c_uchar);
    rocksdb_write: (*mut c_void, *const c_void, *mut c_void, *mut *mut c_char);
    rocksdb_readoptions_create: () -> *mut c_void;
    rocksdb_readoptions_destroy: (*mut c_void);
    rocksdb_get_pinned: (*mut c_void, *const c_void, *const c_char, usize, *mut *mut c_char) -> *mut c_void;
    rocksdb_pinnableslice_value: (*const c_void, *mut usize) -> *const c_char;
    rocksdb_pinnableslice_destroy: (*mut c_void);
    rocksdb_free: (*mut c_void);
}

/// The library of the system, or why there is none and what to install.
pub fn find() -> Result<Library, String> {
    let named = std::env::var_os(LIBRARY_VARIABLE);
    let names = named.as_ref().map_or(LIBRARIES.map(std::ffi::OsStr::new).to_vec(), |name| vec![name]);
    let mut first_failure = None;
    for name in names {
        // SAFETY: the initialisers of RocksDB's library fill its registries, and do nothing else. Whoever names another
        // library trusts it as they trust this binary.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(err) => first_failure = first_failure.or(Some(err)),
        }
    }
    let why = first_failure.map_or(String::new(), |err| format!(" ({err})"));
    Err(format!(
        "RocksDB is skipped: its library cannot be opened{why}; install librocksdb7.8 or librocksdb-dev (Debian 12), or \
         name it in {LIBRARY_VARIABLE}"
    ))
}

/// An open database with its write-ahead log on, a bloom filter, and no compression (the values cannot be compressed).
pub struct RocksDb {
    at: NonNull<c_void>,
    unsynced: NonNull<c_void>,
    synced: NonNull<c_void>,
    reading: NonNull<c_void>,
    api: Api,
}

// SAFETY: rocksdb/db.h: "may be accessed concurrently from multiple threads without any external synchronization"; the
// options beside it are only read after they were made.
unsafe impl Send for RocksDb {}
// SAFETY: as above.
unsafe impl Sync for RocksDb {}

impl RocksDb {
    /// A database in `dir`, made when there is none.
    pub fn open(library: Library, dir: &Path) -> Result<RocksDb> {
        let api = Api::find(library)?;
        let path = CString::new(dir.as_os_str().as_bytes()).context("a zero byte in a path")?;
        // SAFETY: each object is made by the library and given to its own functions. The table options take the filter,
        // and share the cache; the options copy the table options; the database copies the options. So what was made is
        // destroyed here, but the filter, whose owner is the table factory. `path` ends with a zero, `error` is null.
        let opened = unsafe {
            let options = (api.rocksdb_options_create)();
            (api.rocksdb_options_set_create_if_missing)(options, 1);
            (api.rocksdb_options_set_write_buffer_size)(options, MEMTABLE_BYTES);
            (api.rocksdb_options_set_compression)(options, NO_COMPRESSION);
            let table = (api.rocksdb_block_based_options_create)();
            let cache = (api.rocksdb_cache_create_lru)(CACHE_BYTES);
            (api.rocksdb_block_based_options_set_block_cache)(table, cache);
            let filter = (api.rocksdb_filterpolicy_create_bloom_full)(BLOOM_BITS_PER_KEY);
            (api.rocksdb_block_based_options_set_filter_policy)(table, filter);
            (api.rocksdb_options_set_block_based_table_factory)(options, table);
            let mut error = null_mut();
            let at = (api.rocksdb_open)(options, path.as_ptr(), &mut error);
            (api.rocksdb_block_based_options_destroy)(table);
            (api.rocksdb_cache_destroy)(cache);
            (api.rocksdb_options_destroy)(options);
            api.checked(error).map(|()| at)
        };
        let at = NonNull::new(opened.with_context(|| format!("opening RocksDB in {}", dir.display()))?);
        let none = || anyhow::anyhow!("RocksDB gave no object");
        // SAFETY: functions without arguments that make an object each.
        let [unsynced, synced, reading] = unsafe {
            [
                (api.rocksdb_writeoptions_create)(),
                (api.rocksdb_writeoptions_create)(),
                (api.rocksdb_readoptions_create)(),
            ]
        }
        .map(NonNull::new);
        let db = RocksDb {
            at: at.ok_or_else(none)?,
            unsynced: unsynced.ok_or_else(none)?,
            synced: synced.ok_or_else(none)?,
            reading: reading.ok_or_else(none)?,
            api,
        };
        // SAFETY: write options that nobody else has.
        unsafe { (db.api.rocksdb_writeoptions_set_sync)(db.synced.as_ptr(), 1) };
        Ok(db)
    }
}

impl Api {
    /// What a call left in its error argument.
    ///
    /// # Safety
    /// `error` is null, or a string that the library allocated and gave to the caller.
    unsafe fn checked(&self, error: *mut c_char) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: by the caller's promise: it ends with a zero, and is ours to free.
        let text = unsafe {
            let text = CStr::from_ptr(error).to_string_lossy().into_owned();
            (self.rocksdb_free)(error.cast());
            text
        };
        anyhow::bail!("RocksDB: {text}")
    }
}

impl KeyValue for RocksDb {
    fn name(&self) -> &'static str {
        "rocksdb"
    }

    fn write(&self, items: &[(&RawKey, [u8; VALUE_LEN])], sync: bool) -> Result<()> {
        let options = if sync { self.synced } else { self.unsynced };
        let mut error = null_mut();
        // SAFETY: a batch that is made, filled (keys and values are copied), written and destroyed here; an open database.
        unsafe {
            let batch = (self.api.rocksdb_writebatch_create)();
            for (key, value) in items {
                let (key, value) = (key.as_ptr().cast(), value.as_ptr().cast());
                (self.api.rocksdb_writebatch_put)(batch, key, KEY_LEN, value, VALUE_LEN);
            }
            (self.api.rocksdb_write)(self.at.as_ptr(), options.as_ptr(), batch, &mut error);
            (self.api.rocksdb_writebatch_destroy)(batch);
            self.api.checked(error)
        }
    }

    fn get(&self, key: &RawKey) -> Result<Option<usize>> {
        let (mut error, mut len) = (null_mut(), 0);
        // SAFETY: an open database and a key of the length given; the slice is destroyed after its length was taken.
        unsafe {
            let (at, reading) = (self.at.as_ptr(), self.reading.as_ptr());
            let found = (self.api.rocksdb_get_pinned)(at, reading, key.as_ptr().cast(), KEY_LEN, &mut error);
            self.api.checked(error)?;
            if found.is_null() {
                return Ok(None);
            }
            (self.api.rocksdb_pinnableslice_value)(found, &mut len);
            (self.api.rocksdb_pinnableslice_destroy)(found);
        }
        Ok(Some(len))
    }
}

impl Drop for RocksDb {
    fn drop(&mut self) {
        // SAFETY: each was made by the library, is destroyed once, and nobody has a reference any more.
        unsafe {
            (self.api.rocksdb_close)(self.at.as_ptr());
            (self.api.rocksdb_writeoptions_destroy)(self.unsynced.as_ptr());
            (self.api.rocksdb_writeoptions_destroy)(self.synced.as_ptr());
            (self.api.rocksdb_readoptions_destroy)(self.reading.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::kv;

    /// With the real library, where there is one.
    #[test]
    fn rocksdb_keeps_what_it_is_given_also_when_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let library = match find() {
            Ok(library) => library,
            Err(absent) => {
                assert!(absent.contains("librocksdb-dev"), "{absent}");
                return println!("SKIPPED: {absent}");
            }
        };
        kv::conforms(&RocksDb::open(library, dir.path()).unwrap());
        let again = RocksDb::open(find().unwrap(), dir.path()).unwrap();
        assert_eq!(again.get(&[7; KEY_LEN]).unwrap(), Some(VALUE_LEN));
        let twice = RocksDb::open(find().unwrap(), dir.path()).err().expect("its lock is held");
        assert!(format!("{twice:#}").contains("LOCK"), "{twice:#}");
    }
}
