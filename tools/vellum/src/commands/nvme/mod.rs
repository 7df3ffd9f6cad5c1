//! nvme: what controllers say of themselves, and what they can do; [`bus`]: who has them.

mod bus;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vellum_bench::perf::{self, Load};
use vellum_nvme::emu::{ControllerConfig, Medium, NamespaceConfig, Subsystem};
use vellum_nvme::spec::{SmartLog, Status};
use vellum_nvme::vfio_user::{Server, ServerConfig};
use vellum_nvme::{Image, NvmeController};

use crate::cli::{Nvme, NvmeEmulate, NvmeOn, NvmePerf, Pattern};
use crate::exit::{Exit, WithExit};
use crate::{device, size};

pub fn run(command: &Nvme) -> Result<()> {
    match command {
        Nvme::List { json } => bus::list(*json),
        Nvme::Setup(args) => bus::setup(args),
        Nvme::Reset { addresses, yes } => bus::reset(addresses, *yes),
        Nvme::Identify(on) => identify(on),
        Nvme::Smart(on) => smart(on),
        Nvme::Log(on) => log(on),
        Nvme::Reservations { on, clear } => reservations(on, *clear),
        Nvme::Perf(args) => perf(args),
        Nvme::Emulate(args) => emulate(args),
        Nvme::Format { device, lba, destroy_all_data } => format(device, *lba, *destroy_all_data),
        Nvme::WriteZeroes { device, at, len, destroy_all_data } => write_zeroes(device, *at, *len, *destroy_all_data),
    }
}

fn print(as_json: bool, value: &Value, text: impl FnOnce() -> String) {
    if as_json {
        println!("{value}");
    } else {
        print!("{}", text());
    }
}

fn open(spec: &str) -> Result<(Arc<dyn NvmeController>, Option<u32>)> {
    let opened = vellum_nvme::open_controller(spec);
    opened
        .with_context(|| format!("{spec:?} is no NVMe controller: want nvme:ADDRESS or the like"))
        .exit(Exit::Usage)?
        .exit(Exit::Device)
}

fn identify(on: &NvmeOn) -> Result<()> {
    let (controller, only) = open(&on.device)?;
    let info = controller.info();
    let ids = match only {
        Some(nsid) => vec![nsid],
        None => controller.namespace_ids().exit(Exit::Device)?,
    };
    let namespaces: Vec<_> = ids.iter().map(|nsid| (*nsid, controller.namespace(*nsid))).collect();
    let described: Vec<Value> = namespaces
        .iter()
        .map(|(nsid, ns)| match ns {
            Ok(ns) => json!({
                "nsid": nsid, "size_bytes": ns.size_bytes(), "lba_bytes": ns.lba_bytes(), "shared": ns.shared,
                "nguid": hex(&ns.nguid), "eui64": hex(&ns.eui64), "formats": ns.formats,
            }),
            Err(err) => json!({ "nsid": nsid, "error": err.to_string() }),
        })
        .collect();
    let value = json!({
        "device": controller.name(), "reached_by": controller.reached_by(), "model": info.model, "serial": info.serial, "firmware": info.firmware,
        "subsystem": info.subsystem, "nvme_version": info.version, "controller_id": info.controller_id,
        "max_transfer_bytes": info.max_transfer_bytes, "io_queues": controller.granted_queues(),
        "volatile_write_cache": info.volatile_write_cache, "dataset_management": info.dsm,
        "write_zeroes": info.write_zeroes, "reservations": info.reservations, "sgl": info.sgl, "doorbell_buffers": info.doorbell_buffers,
        "namespaces": described,
    });
    print(on.json, &value, || {
        let mut out =
            format!("{}  {}  serial {}  firmware {}\n", controller.name(), info.model, info.serial, info.firmware);
        out += &format!("reached by {}\n", controller.reached_by());
        let transfer = info.max_transfer_bytes.map_or("unlimited".to_owned(), size::show);
        out += &format!(
            "NVMe {}, {} IO queues, transfers up to {transfer}, {} write cache\n",
            info.version,
            controller.granted_queues(),
            if info.volatile_write_cache { "volatile" } else { "no volatile" }
        );
        let has = [
            (info.dsm, "dataset management"),
            (info.write_zeroes, "write zeroes"),
            (info.reservations, "reservations"),
            (info.sgl, "SGL"),
            (info.doorbell_buffers, "doorbell buffers"),
        ];
        let has: Vec<&str> = has.iter().filter(|(yes, _)| *yes).map(|(_, name)| *name).collect();
        out += &format!("optional: {}\n", has.join(", "));
        for (nsid, ns) in &namespaces {
            out += &match ns {
                Ok(ns) => format!(
                    "namespace {nsid}: {}, LBAs of {} bytes{}, nguid {}\n",
                    size::show(ns.size_bytes()),
                    ns.lba_bytes(),
                    if ns.shared { ", may be shared" } else { "" },
                    hex(&ns.nguid)
                ),
                Err(err) => format!("{err}\n"),
            };
        }
        out
    });
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn smart(on: &NvmeOn) -> Result<()> {
    let (controller, _) = open(&on.device)?;
    let log = controller.smart().exit(Exit::Device)?;
    let celsius = i32::from(log.temperature_kelvin.get()) - 273;
    let counters: Vec<(&str, u128)> = [
        ("data_units_read", log.data_units_read),
        ("data_units_written", log.data_units_written),
        ("host_reads", log.host_reads),
        ("host_writes", log.host_writes),
        ("busy_minutes", log.busy_minutes),
        ("power_cycles", log.power_cycles),
        ("power_on_hours", log.power_on_hours),
        ("unsafe_shutdowns", log.unsafe_shutdowns),
        ("media_errors", log.media_errors),
        ("error_log_entries", log.error_log_entries),
    ]
    .map(|(name, field)| (name, SmartLog::counter(field)))
    .to_vec();
    let mut value = json!({
        "warnings": log.warnings(), "temperature_celsius": celsius, "available_spare_percent": log.available_spare,
        "spare_threshold_percent": log.spare_threshold, "used_percent": log.percentage_used,
    });
    for (name, count) in &counters {
        value[*name] = json!(u64::try_from(*count).unwrap_or(u64::MAX));
    }
    print(on.json, &value, || {
        let mut out: String = log.warnings().iter().map(|warning| format!("WARNING: {warning}\n")).collect();
        out += &format!("temperature          {celsius} C\n");
        out += &format!("spare                {} % (threshold {} %)\n", log.available_spare, log.spare_threshold);
        out += &format!("used                 {} %\n", log.percentage_used);
        for (name, count) in &counters {
            out += &format!("{:<20} {count}\n", name.replace('_', " "));
        }
        out
    });
    Ok(())
}

fn log(on: &NvmeOn) -> Result<()> {
    let (controller, _) = open(&on.device)?;
    let entries = controller.error_log().exit(Exit::Device)?;
    let rows: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let status = Status(entry.status_phase.get() >> 1);
            json!({
                "count": entry.error_count.get(), "queue": entry.sq_id.get(), "command": entry.cid.get(),
                "status": status.to_string(), "nsid": entry.nsid.get(), "lba": entry.lba.get(),
            })
        })
        .collect();
    print(on.json, &json!(rows), || {
        if rows.is_empty() {
            return "the error log is empty\n".to_owned();
        }
        let line = |row: &Value| {
            format!(
                "#{} queue {} namespace {} lba {}: {}\n",
                row["count"], row["queue"], row["nsid"], row["lba"], row["status"]
            )
        };
        rows.iter().map(line).collect()
    });
    Ok(())
}

/// Whom [`reservations`] registers to clear, for a moment.
const CLEARING_HOST: [u8; 16] = *b"vellum nvme tool";
const CLEARING_KEY: u64 = 1;

fn reservations(on: &NvmeOn, clear: bool) -> Result<()> {
    let (controller, nsid) = open(&on.device)?;
    let device = controller.device(nsid, false).exit(Exit::Device)?;
    let reservations = device
        .reservations()
        .with_context(|| format!("{} has no reservations (ONCS bit 5)", on.device))
        .exit(Exit::Device)?;
    if clear {
        reservations.register(CLEARING_HOST, CLEARING_KEY).exit(Exit::Device)?;
        reservations.clear(CLEARING_KEY).exit(Exit::Device)?;
    }
    let report = reservations.report().exit(Exit::Device)?;
    let rows: Vec<Value> = report
        .registrants
        .iter()
        .map(|one| {
            json!({
                "host": hex(&one.host), "key": format!("{:#018x}", one.key), "holds": one.holds,
                "controller": one.controller,
            })
        })
        .collect();
    let kind = report.kind.map(|kind| kind.to_string());
    let value = json!({
        "reservation": kind, "generation": report.generation, "persists": report.persists, "registrants": rows,
    });
    print(on.json, &value, || {
        let mut out = match &kind {
            Some(kind) => format!("reserved: {kind}\n"),
            None => "not reserved: everybody may write\n".to_owned(),
        };
        for one in &report.registrants {
            let holds = if one.holds { "  holds it" } else { "" };
            out += &format!("host {}  key {:#018x}  controller {}{holds}\n", hex(&one.host), one.key, one.controller);
        }
        out
    });
    Ok(())
}

fn perf(args: &NvmePerf) -> Result<()> {
    let (random, read_percent) = match args.pattern {
        Pattern::Read => (false, 100),
        Pattern::Write => (false, 0),
        Pattern::Randread => (true, 100),
        Pattern::Randwrite => (true, 0),
        Pattern::Randrw => (true, args.read_percent),
    };
    if read_percent < 100 && !args.destroy_all_data {
        bail!("this pattern overwrites {}: add --destroy-all-data", args.device);
    }
    let device =
        if read_percent == 100 { device::open_still(&args.device)? } else { device::open_alone(&args.device)? };
    let load = Load {
        depth: args.depth.max(1),
        io_bytes: usize::try_from(args.io_size)?,
        random,
        read_percent,
        time: Duration::from_secs(args.seconds.max(1)),
        cores: args.cores.as_ref().map(|cores| cores.0.clone()),
    };
    let result = perf::run(&device, &load).exit(Exit::Device)?;
    print(args.json, &serde_json::to_value(&result)?, || result.table());
    Ok(())
}

fn emulate(args: &NvmeEmulate) -> Result<()> {
    if let Some(core) = args.core {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))?;
    }
    let size_bytes = args.size / 4096 * 4096;
    let medium = if args.null { Medium::Null } else { Medium::memory(Image::zeroed(size_bytes), false) };
    let subsystem = Subsystem::new("EMU", false, vec![NamespaceConfig { size_bytes, lba_bytes: 4096, medium }]);
    let controller = ControllerConfig { io_queues: args.queues.clamp(1, 128), ..ControllerConfig::default() };
    let config = ServerConfig { controller, spin: args.core.is_some() };
    let server = Server::bind(&args.socket, subsystem, config)
        .with_context(|| format!("cannot serve on {}", args.socket.display()))
        .exit(Exit::Endpoint)?;
    println!("serving on {}", args.socket.display());
    Ok(server.run()?)
}

fn format(spec: &str, lba: u32, destroy: bool) -> Result<()> {
    let (controller, nsid) = open(spec)?;
    let nsid = nsid.with_context(|| format!("which namespace? want {spec}/NSID")).exit(Exit::Usage)?;
    let ns = controller.namespace(nsid);
    let formats = ns.as_ref().map(|ns| ns.formats.clone()).unwrap_or_else(|_| vec![512, 4096]);
    let index = formats.iter().position(|bytes| *bytes == lba);
    let index = index
        .with_context(|| format!("the namespace knows LBAs of {formats:?} bytes (0: not usable here)"))
        .exit(Exit::Usage)?;
    if !destroy {
        bail!("this destroys all data of {spec}: add --destroy-all-data");
    }
    controller.format(nsid, index as u8).exit(Exit::Device)?;
    println!("{spec} is formatted with LBAs of {lba} bytes");
    Ok(())
}

fn write_zeroes(spec: &str, at: u64, len: Option<u64>, destroy: bool) -> Result<()> {
    let (controller, nsid) = open(spec)?;
    let nsid = nsid.with_context(|| format!("which namespace? want {spec}/NSID")).exit(Exit::Usage)?;
    let end = controller.namespace(nsid).exit(Exit::Device)?.size_bytes();
    let len = len.unwrap_or_else(|| end.saturating_sub(at));
    if !destroy {
        bail!("this destroys {} at {at} of {spec}: add --destroy-all-data", size::show(len));
    }
    controller.write_zeroes(nsid, at, len).exit(Exit::Device)?;
    println!("{} of zeros written at {at}", size::show(len));
    Ok(())
}
