//! SPDK's shared libraries, opened at run time: the functions that are used, found by name, and the environment that they
//! want (DPDK's memory), set up once per process and set of libraries.
#![allow(unsafe_code)] // dlopen, symbols by name, DPDK's initialisation; each block states its argument

use std::collections::HashMap;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// A completion's callback: its context, and the completion queue entry (16 bytes, as NVMe has them).
pub(super) type Callback = unsafe extern "C" fn(*mut c_void, *const [u8; 16]);

/// Where an installed SPDK has what is used here. Names without a version are links of its development package.
const LIBRARIES: [&str; 3] = ["librte_eal.so", "libspdk_env_dpdk.so", "libspdk_nvme.so"];
/// Other libraries, separated by `:`; each is opened, and a function is taken from the first that has it.
const LIBRARIES_VARIABLE: &str = "VELLUM_SPDK_LIBRARIES";
/// What DPDK is started with: one core (its threads are not used), nothing shared with other processes.
const EAL_ARGUMENTS: [&str; 5] = ["vellum", "--lcores=0", "--in-memory", "--no-telemetry", "--log-level=3"];

macro_rules! api {
    ($($name:ident: ($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions, with the shapes that SPDK's headers give them (spdk/env.h, spdk/nvme.h of v26.05).
        pub(super) struct Api {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// What the functions are in.
            _libraries: Vec<Library>,
        }

        impl Api {
            fn find(libraries: Vec<Library>) -> Result<Api, String> {
                Ok(Api {
                    // SAFETY: the symbol of this name is a function of this shape, as the headers declare it.
                    $($name: unsafe { symbol(&libraries, stringify!($name)) }?,)*
                    _libraries: libraries,
                })
            }
        }
    };
}

api! {
    rte_eal_init: (c_int, *mut *mut c_char) -> c_int;
    spdk_env_dpdk_post_init: (bool) -> c_int;
    spdk_zmalloc: (usize, usize, *mut u64, c_int, u32) -> *mut c_void;
    spdk_free: (*mut c_void);
    spdk_nvme_transport_id_parse: (*mut c_void, *const c_char) -> c_int;
    spdk_nvme_connect: (*const c_void, *const c_void, usize) -> *mut c_void;
    spdk_nvme_detach: (*mut c_void) -> c_int;
    spdk_nvme_ctrlr_get_first_active_ns: (*mut c_void) -> u32;
    spdk_nvme_ctrlr_get_ns: (*mut c_void, u32) -> *mut c_void;
    spdk_nvme_ctrlr_alloc_io_qpair: (*mut c_void, *const c_void, usize) -> *mut c_void;
    spdk_nvme_ctrlr_free_io_qpair: (*mut c_void) -> c_int;
    spdk_nvme_ctrlr_process_admin_completions: (*mut c_void) -> i32;
    spdk_nvme_ns_get_sector_size: (*mut c_void) -> u32;
    spdk_nvme_ns_get_num_sectors: (*mut c_void) -> u64;
    spdk_nvme_ns_cmd_read: (*mut c_void, *mut c_void, *mut c_void, u64, u32, Callback, *mut c_void, u32) -> c_int;
    spdk_nvme_ns_cmd_write: (*mut c_void, *mut c_void, *mut c_void, u64, u32, Callback, *mut c_void, u32) -> c_int;
    spdk_nvme_ns_cmd_flush: (*mut c_void, *mut c_void, Callback, *mut c_void) -> c_int;
    spdk_nvme_ns_cmd_dataset_management:
        (*mut c_void, *mut c_void, u32, *const c_void, u16, Callback, *mut c_void) -> c_int;
    spdk_nvme_qpair_process_completions: (*mut c_void, u32) -> i32;
}

/// # Safety
/// `F` is a function pointer of the shape that the function `name` has.
unsafe fn symbol<F: Copy>(libraries: &[Library], name: &str) -> Result<F, String> {
    // SAFETY: by the caller's promise.
    let found = libraries.iter().find_map(|library| unsafe { library.get::<F>(name.as_bytes()) }.ok());
    found.map(|symbol| *symbol).ok_or_else(|| {
        format!("the installed SPDK has no function {name}: Vellum wants v26.05 or one that is compatible with it")
    })
}

fn open(names: &[OsString]) -> Result<Vec<Library>, String> {
    let open_one = |name: &OsString| {
        // SAFETY: the initialisers of SPDK's and DPDK's libraries register their drivers, and do nothing else. Whoever
        // names other libraries trusts them as they trust this binary.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|err| {
            format!(
                "SPDK cannot be opened ({err}): install its shared libraries (configure --with-shared) where the dynamic \
                 linker finds them, or name them in {LIBRARIES_VARIABLE}"
            )
        })
    };
    names.iter().map(open_one).collect()
}

fn start(api: &Api) -> Result<(), String> {
    let mut arguments: Vec<*mut c_char> = EAL_ARGUMENTS
        .iter()
        .filter_map(|text| CString::new(*text).ok())
        .map(CString::into_raw) // DPDK keeps them for ever
        .collect();
    let count = arguments.len() as c_int;
    arguments.push(std::ptr::null_mut());
    // SAFETY: as main() gets them: so many strings that are never freed, and a null pointer. The list itself is only read.
    let initialised = unsafe { (api.rte_eal_init)(count, arguments.as_mut_ptr()) };
    if initialised < 0 {
        return Err(
            "DPDK cannot start (rte_eal_init): it wants root and free huge pages (vellum nvme setup --hugepages)"
                .into(),
        );
    }
    // SAFETY: after rte_eal_init, once.
    match unsafe { (api.spdk_env_dpdk_post_init)(false) } {
        0 => Ok(()),
        errno => Err(format!("SPDK's environment cannot start (spdk_env_dpdk_post_init: {errno})")),
    }
}

type Started = HashMap<Vec<OsString>, Result<Arc<Api>, String>>;

/// The named libraries (empty: the installed ones, or those of `VELLUM_SPDK_LIBRARIES`), opened and started.
pub(super) fn load(names: &[OsString]) -> Result<Arc<Api>, String> {
    static STARTED: Mutex<Option<Started>> = Mutex::new(None);
    let names: Vec<OsString> = match std::env::var_os(LIBRARIES_VARIABLE) {
        _ if !names.is_empty() => names.to_vec(),
        Some(list) => std::env::split_paths(&list).map(OsString::from).collect(),
        None => LIBRARIES.map(OsString::from).to_vec(),
    };
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let once = || {
        let api = Api::find(open(&names)?)?;
        // In a thread of its own: DPDK binds the thread that starts it to a core.
        std::thread::scope(|scope| scope.spawn(|| start(&api)).join())
            .unwrap_or_else(|_| Err("DPDK panicked".into()))?;
        Ok(Arc::new(api))
    };
    started.get_or_insert_default().entry(names.clone()).or_insert_with(once).clone()
}
