//! nvme list, setup, reset: controllers on the PCI bus, and who drives them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vellum_nvme::vfio::pci::{self, Info, PciAddress, Step};
use vellum_nvme::vfio::{self, Way};

use super::print;
use crate::cli::NvmeSetup;
use crate::exit::{Exit, WithExit};

pub fn list(as_json: bool) -> Result<()> {
    let all = pci::list().context("looking at the PCI bus")?;
    let rows: Vec<Value> = all
        .iter()
        .map(|info| {
            let way = Way::of(info).ok();
            json!({
                "address": info.address.to_string(),
                "vendor": format!("{:04x}", info.vendor),
                "device": format!("{:04x}", info.device),
                "driver": info.driver,
                "iommu_group": info.iommu_group,
                "way": way.as_ref().map(Way::name),
                "nodes": way.map(|way| [way.node(), way.memory_node().to_owned()]),
                "block_devices": info.block_devices,
                "in_use": info.use_by_kernel(),
            })
        })
        .collect();
    print(as_json, &json!(rows), || {
        if all.is_empty() {
            return "no NVMe controller on the PCI bus\n".to_owned();
        }
        all.iter().map(describe).collect()
    });
    Ok(())
}

fn describe(info: &Info) -> String {
    let driver = info.driver.as_deref().unwrap_or("no driver");
    let group = info.iommu_group.map_or("no IOMMU".to_owned(), |group| format!("IOMMU group {group}"));
    let way = match Way::of(info) {
        Ok(way) => format!("by {way}"),
        Err(why) if is_bound(info) => why,
        Err(_) => info.block_devices.join(" "),
    };
    let uses = info.use_by_kernel().map_or(String::new(), |uses| format!(", {uses}"));
    format!("{}  {:04x}:{:04x}  {driver}  {group}  {way}{uses}\n", info.address, info.vendor, info.device)
}

fn is_bound(info: &Info) -> bool {
    info.driver.as_deref() == Some(pci::VFIO_DRIVER)
}

fn parse(addresses: &[String]) -> Result<Vec<Info>> {
    addresses
        .iter()
        .map(|text| {
            let address: PciAddress =
                text.parse().map_err(|want: &str| anyhow::anyhow!("{text:?}: {want}")).exit(Exit::Usage)?;
            let info = Info::of(address).with_context(|| format!("looking at {address}")).exit(Exit::Device)?;
            if !info.is_nvme() {
                return Err(anyhow::anyhow!("{address} is no NVMe controller")).exit(Exit::Device);
            }
            Ok(info)
        })
        .collect()
}

pub fn setup(args: &NvmeSetup) -> Result<()> {
    let infos = parse(&args.addresses)?;
    for info in &infos {
        if let Some(uses) = info.use_by_kernel().or_else(|| info.use_by_process()) {
            return Err(anyhow::anyhow!("{} is in use: {uses}", info.address)).exit(Exit::Device);
        }
    }
    let mut steps = Vec::new();
    if let Some(count) = args.hugepages {
        let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages".into();
        steps.push(Step { path, content: count.to_string() });
    }
    let unbound = infos.iter().filter(|info| !is_bound(info));
    steps.extend(unbound.flat_map(|info| pci::bind_steps(info, Some(pci::VFIO_DRIVER))));
    if steps.is_empty() && args.owner.is_none() {
        println!("nothing to do");
    }
    run_steps(&steps, args.yes)?;
    for info in &infos {
        let now = if args.yes { Info::of(info.address)? } else { info.clone() };
        give(&now, args.owner, args.yes)?;
    }
    say_whether_done(args.yes);
    Ok(())
}

/// Shows what whoever uses the controller needs, and gives it to `owner`.
fn give(info: &Info, owner: Option<u32>, yes: bool) -> Result<()> {
    let address = info.address;
    if !is_bound(info) && !yes {
        if let Some(owner) = owner {
            println!("chown {owner} what vfio-pci makes for {address}: /dev/vfio/GROUP, or with iommufd");
            println!("    /dev/vfio/devices/vfioN and /dev/iommu");
        }
        return Ok(());
    }
    if !is_bound(info) {
        let driver = info.driver.as_deref().unwrap_or("no driver");
        let why = "is the module loaded (modprobe vfio-pci)?";
        return Err(anyhow::anyhow!("{address} was not taken by vfio-pci (it has {driver}): {why}")).exit(Exit::Device);
    }
    let way = Way::of(info).map_err(|why| anyhow::anyhow!("{address}: {why}")).exit(Exit::Device)?;
    println!("{address} is opened by {}; its users read and write", way.name());
    println!("    {} and {}", way.node().display(), way.memory_node().display());
    let Some(owner) = owner else { return Ok(()) };
    let mut nodes = vec![way.node()];
    if must_be_given(way.memory_node(), owner)? {
        nodes.push(way.memory_node().to_owned());
    }
    for node in nodes {
        println!("chown {owner} {}", node.display());
        if yes {
            let chown = std::os::unix::fs::chown(&node, Some(owner), None);
            chown.with_context(|| format!("chown of {} (root is needed)", node.display()))?;
        }
    }
    Ok(())
}

/// A node that all controllers need, so that giving it may not take it from somebody.
fn must_be_given(node: &Path, owner: u32) -> Result<bool> {
    const OTHERS_READ_AND_WRITE: u32 = 0o6;
    let metadata = node.metadata().with_context(|| format!("looking at {}", node.display()))?;
    let (mode, has) = (metadata.mode(), metadata.uid());
    if mode & OTHERS_READ_AND_WRITE == OTHERS_READ_AND_WRITE || has == owner {
        return Ok(false);
    }
    if has != 0 {
        let node = node.display();
        return Err(anyhow::anyhow!(
            "{node} belongs to user {has}, who uses controllers too: let a group have it (chgrp GROUP {node}; chmod g+rw {node})"
        ))
        .exit(Exit::Device);
    }
    Ok(true)
}

pub fn reset(addresses: &[String], yes: bool) -> Result<()> {
    let mut infos = parse(addresses)?;
    infos.retain(is_bound);
    // The kernel would wait for the process.
    if let Some(info) = infos.iter().find(|info| vfio::is_in_use(info)) {
        return Err(anyhow::anyhow!("{} is in use by a process: end it first", info.address)).exit(Exit::Device);
    }
    let steps: Vec<_> = infos.iter().flat_map(|info| pci::bind_steps(info, None)).collect();
    if steps.is_empty() {
        println!("nothing to do");
        return Ok(());
    }
    run_steps(&steps, yes)?;
    say_whether_done(yes);
    Ok(())
}

fn run_steps(steps: &[Step], yes: bool) -> Result<()> {
    for step in steps {
        println!("{step}");
        if yes {
            step.run().with_context(|| format!("{step} (root is needed)"))?;
        }
    }
    Ok(())
}

fn say_whether_done(yes: bool) {
    if !yes {
        println!("nothing was done: add --yes");
    }
}
