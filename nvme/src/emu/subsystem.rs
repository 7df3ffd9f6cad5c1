//! An NVM subsystem: its namespaces, which all of its controllers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Medium;
use super::reservation::Reservations;

/// Namespace ids go from 1 to this.
pub const MAX_NAMESPACES: usize = 64;

pub struct NamespaceConfig {
    pub size_bytes: u64,
    /// 512 or 4096.
    pub lba_bytes: u32,
    pub medium: Medium,
}

pub struct Namespace {
    pub nsid: u32,
    pub size_bytes: u64,
    /// Changed by Format NVM.
    lba_shift: AtomicU32,
    detached: AtomicBool,
    pub medium: Medium,
    pub nguid: [u8; 16],
    pub(super) reservations: Reservations,
}

impl Namespace {
    pub fn lba_shift(&self) -> u32 {
        self.lba_shift.load(Ordering::Relaxed)
    }

    pub fn set_lba_shift(&self, shift: u32) {
        self.lba_shift.store(shift, Ordering::Relaxed);
    }

    pub fn size_lbas(&self) -> u64 {
        self.size_bytes >> self.lba_shift()
    }
}

pub struct Subsystem {
    pub serial: String,
    pub volatile_write_cache: bool,
    namespaces: Vec<Namespace>,
    next_controller: AtomicU32,
}

impl Subsystem {
    /// `volatile_write_cache` is what the controllers say of all media.
    pub fn new(serial: &str, volatile_write_cache: bool, namespaces: Vec<NamespaceConfig>) -> Arc<Subsystem> {
        assert!(namespaces.len() <= MAX_NAMESPACES, "at most {MAX_NAMESPACES} namespaces");
        let namespaces = namespaces
            .into_iter()
            .zip(1..)
            .map(|(config, nsid)| {
                assert!(matches!(config.lba_bytes, 512 | 4096), "LBAs are 512 or 4096 bytes");
                let mut nguid = [0; 16];
                let name = format!("{serial}/{nsid}");
                nguid[..8].copy_from_slice(&u64::from(vellum_base::crc32c(name.as_bytes())).to_be_bytes());
                nguid[8..].copy_from_slice(&u64::from(nsid).to_be_bytes());
                Namespace {
                    nsid,
                    size_bytes: config.size_bytes,
                    lba_shift: AtomicU32::new(config.lba_bytes.trailing_zeros()),
                    detached: AtomicBool::new(false),
                    medium: config.medium,
                    nguid,
                    reservations: Reservations::default(),
                }
            })
            .collect();
        Arc::new(Subsystem {
            serial: serial.to_owned(),
            volatile_write_cache,
            namespaces,
            next_controller: AtomicU32::new(1),
        })
    }

    pub(super) fn new_controller_id(&self) -> u16 {
        self.next_controller.fetch_add(1, Ordering::Relaxed) as u16
    }

    /// The namespace, while it is attached.
    #[inline]
    pub fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        let namespace = self.namespaces.get((nsid as usize).wrapping_sub(1))?;
        (!namespace.detached.load(Ordering::Relaxed)).then_some(namespace)
    }

    pub fn attached(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().filter(|namespace| !namespace.detached.load(Ordering::Relaxed))
    }

    pub fn highest_nsid(&self) -> u32 {
        self.namespaces.len() as u32
    }

    pub fn set_detached(&self, nsid: u32, detached: bool) {
        if let Some(namespace) = self.namespaces.get((nsid as usize).wrapping_sub(1)) {
            namespace.detached.store(detached, Ordering::Relaxed);
        }
    }

    pub fn lose_power(&self) {
        self.namespaces.iter().for_each(|namespace| namespace.medium.lose_power());
    }
}
