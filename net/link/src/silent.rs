//! How many sockets may be without a greeting: in all, and from one source, so that one attacker does not take the places
//! of everybody else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use vellum_rt::net::Stream;

/// Per reactor; the next is closed at once.
pub const MAX_SILENT: usize = 1024;
/// Of these from one source. Many gateways behind one address come back at once after a failover; who is turned away
/// tries again.
pub const MAX_SILENT_PER_SOURCE: usize = 128;
// Several attackers are needed to fill the room.
const _: () = assert!(4 * MAX_SILENT_PER_SOURCE < MAX_SILENT);

/// Where a socket comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Source {
    Ourselves,
    Uid(u32),
    V4([u8; 4]),
    /// A network of one owner: its hosts' addresses cost nothing.
    V6Net([u8; 8]),
    /// In a simulation.
    Unknown,
}

impl Source {
    pub(crate) fn of(stream: &Stream) -> Source {
        match (stream.peer_cred(), stream.peer_ip()) {
            (Some(cred), _) => Source::Uid(cred.uid),
            (None, Some(ip)) => Source::of_ip(ip),
            (None, None) => Source::Unknown,
        }
    }

    fn of_ip(ip: IpAddr) -> Source {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Source::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Source::V6Net([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_source: HashMap<Source, usize>,
}

#[derive(Clone, Default)]
pub(crate) struct Silent(Rc<RefCell<Counts>>);

/// One silent socket's; given back when dropped.
pub(crate) struct Place {
    counts: Rc<RefCell<Counts>>,
    source: Source,
}

impl Silent {
    /// None when there is no place left.
    pub(crate) fn enter(&self, source: Source) -> Option<Place> {
        let mut counts = self.0.borrow_mut();
        let of_source = counts.by_source.get(&source).copied().unwrap_or(0);
        let bound = match source {
            Source::Ourselves | Source::Unknown => MAX_SILENT,
            _ => MAX_SILENT_PER_SOURCE,
        };
        if counts.all >= MAX_SILENT || of_source >= bound {
            return None;
        }
        counts.all += 1;
        counts.by_source.insert(source, of_source + 1);
        Some(Place { counts: self.0.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.borrow_mut();
        counts.all -= 1;
        if let Some(left) = counts.by_source.get_mut(&self.source) {
            *left -= 1;
            if *left == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_leaves_room_for_others() {
        let silent = Silent::default();
        let attacker = Source::of_ip("10.0.0.1".parse().unwrap());
        let mut places: Vec<Place> = (0..MAX_SILENT_PER_SOURCE).map(|_| silent.enter(attacker).unwrap()).collect();
        assert!(silent.enter(attacker).is_none());
        assert!(silent.enter(Source::of_ip("::ffff:10.0.0.1".parse().unwrap())).is_none(), "the same one");
        let other = silent.enter(Source::of_ip("10.0.0.2".parse().unwrap())).unwrap();
        places.pop();
        places.push(silent.enter(attacker).unwrap());
        let mut others = (0..=u8::MAX).map(|n| Source::V4([10, 1, n, 1])).cycle();
        while let Some(place) = others.next().and_then(|source| silent.enter(source)) {
            places.push(place);
        }
        assert_eq!(silent.0.borrow().all, MAX_SILENT);
        assert!(silent.enter(Source::Uid(0)).is_none(), "no room at all");
        drop((places, other));
        assert!(silent.0.borrow().by_source.is_empty() && silent.0.borrow().all == 0, "nothing is left behind");
    }

    #[test]
    fn a_network_of_one_owner_is_one_source() {
        let of = |text: &str| Source::of_ip(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
