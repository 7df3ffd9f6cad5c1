//! Slots of quorum members as the command line names them, and as the superblock keeps them.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use vellum_format::superblock::{MAX_SLOTS, SLOT_BYTES};

/// `N=ADDR:PORT`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotAddress {
    pub slot: u8,
    pub addr: SocketAddr,
}

/// A slot's number.
pub fn parse_number(text: &str) -> Result<u8, String> {
    let number = text.parse::<u8>().ok().filter(|n| usize::from(*n) < MAX_SLOTS);
    number.ok_or_else(|| format!("{text:?} is no slot: 0 to {}", MAX_SLOTS - 1))
}

pub fn parse(text: &str) -> Result<SlotAddress, String> {
    let Some((number, addr)) = text.split_once('=') else {
        return Err(format!("{text:?} is not N=ADDR:PORT, such as 1=192.0.2.1:7400"));
    };
    let slot = parse_number(number)?;
    let addr: SocketAddr = addr
        .parse()
        .map_err(|_| format!("{addr:?} is no ADDR:PORT; names are not looked up, since members must agree on them"))?;
    if addr.port() == 0 || addr.ip().is_unspecified() {
        return Err(format!("{addr} is nothing that other members can send to"));
    }
    Ok(SlotAddress { slot, addr })
}

/// The superblock's list: text by slot, empty where there is none. Refuses what could not work.
pub fn to_table(slots: &[SlotAddress]) -> Result<Vec<String>> {
    let mut table = vec![String::new(); MAX_SLOTS];
    for (i, SlotAddress { slot, addr }) in slots.iter().enumerate() {
        if let Some(other) = slots.iter().take(i).find(|other| other.slot == *slot || other.addr == *addr) {
            let same = if other.slot == *slot { format!("slot {slot}") } else { format!("address {addr}") };
            bail!("{same} is given twice: each member has a slot and an address of its own");
        }
        let text = addr.to_string();
        match table.get_mut(usize::from(*slot)) {
            Some(place) if text.len() < SLOT_BYTES => *place = text,
            _ => bail!("slot {slot}={addr} has no room in the superblock"),
        }
    }
    if slots.is_empty() {
        table.clear();
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_and_nonsense_is_refused() {
        let one = parse("1=192.0.2.1:7400").unwrap();
        assert_eq!((one.slot, one.addr.port()), (1, 7400));
        let two = parse("14=[2001:db8::1]:7400").unwrap();
        let table = to_table(&[one, two]).unwrap();
        assert_eq!((table[1].as_str(), table[14].as_str()), ("192.0.2.1:7400", "[2001:db8::1]:7400"));
        assert_eq!(table.iter().filter(|text| !text.is_empty()).count(), 2);
        assert!(to_table(&[]).unwrap().is_empty());
        for bad in [
            "",
            "1",
            "=1.2.3.4:5",
            "15=1.2.3.4:5",
            "-1=1.2.3.4:5",
            "1=host:5",
            "1=1.2.3.4",
            "1=0.0.0.0:5",
            "1=1.2.3.4:0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let other = |slot, addr| SlotAddress { slot, addr };
        assert!(to_table(&[one, other(1, two.addr)]).unwrap_err().to_string().contains("slot 1 is given twice"));
        assert!(to_table(&[one, other(2, one.addr)]).unwrap_err().to_string().contains("address 192.0.2.1:7400"));
    }
}
