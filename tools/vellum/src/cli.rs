//! The command line: every command, argument and help text. What they do is in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::slots::{self, SlotAddress};
use crate::{duration, size};

#[derive(Parser)]
#[command(name = "vellum", version, about = "A filesystem engine for archives", max_term_width = 110)]
pub struct Cli {
    /// Say more: -v for progress, -vv for debugging. RUST_LOG overrides.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a filesystem on a device (a file, a block device). Destroys what is on it.
    Mkfs(Mkfs),
    /// Serve a device to gateways.
    Serve(Serve),
    /// Mount a filesystem. Stays in the foreground until unmounted.
    Mount(Mount),
    /// List what changed since a sequence number, oldest first, without walking the tree.
    Walk(Walk),
    /// Show a file's inode: sequences, data version, blocks.
    Stat(Stat),
    /// Show every path of an inode, from its link backrefs.
    InoPath(InoPath),
    /// Look at, or change, the members of a cluster.
    #[command(subcommand)]
    Quorum(Quorum),
    /// Show total, used and available space.
    Df(On),
    /// Show what the engine is doing, and the bounds it keeps (all of it with --json).
    Status(On),
    /// Show who holds which locks and who waits for them, the longest waits first.
    Locks(List),
    /// Show the clients of an engine, or give one up.
    Clients(Clients),
    /// Take in the space that a device has become larger by, also while it is served.
    Grow(Grow),
    /// Give a shard to another reactor of a running engine. It does so by itself where one has clearly more to do.
    MoveShard(MoveShard),
    /// Verify everything that a running engine has on its device, in the background, and repair what has a good copy.
    Scrub(Scrub),
    /// Verify a device that nobody serves: every reference, extent, checksum and link count. Changes nothing without
    /// --repair.
    Check(Check),
    /// Print a device's structures.
    Dump(Dump),
    /// Merge everything that the engine has into one level for each shard. It keeps itself in order without.
    Compact(Compact),
    /// Run compactions for an engine that shares its device, until SIGTERM.
    #[command(hide = true)]
    CompactWorker(CompactWorker),
    /// Measure, beside a peer or a limit in the same run.
    Bench(Bench),
    /// Look at and prepare NVMe controllers for the polled driver.
    #[command(subcommand)]
    Nvme(Nvme),
    /// See it work: make an image, ingest a tree, kill the engine, recover, verify every byte.
    Quickstart(Quickstart),
    /// Make the certificates that prove who nodes and clients are.
    #[command(subcommand)]
    Keys(Keys),
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
}

#[derive(Args)]
pub struct Mkfs {
    /// A path, nvme:ADDRESS[/NSID], vfio-user:PATH[/NSID], or another form of docs/OPERATING.md, "Devices".
    pub device: String,
    /// Size of the filesystem; a missing or shorter file is extended to it. Default: the device's size.
    #[arg(long, value_parser = size::parse)]
    pub size: Option<u64>,
    /// Write what the file is extended by, once: its blocks are then allocated, as a device's are, and flushes are faster.
    #[arg(long, requires = "size")]
    pub preallocate: bool,
    /// A quorum member of a cluster: N (0 to 14) and the address at which it listens for members and clients. Give it once
    /// for each member.
    #[arg(long = "slot", value_name = "N=ADDR:PORT", value_parser = slots::parse)]
    pub slots: Vec<SlotAddress>,
    /// Copies of the segments, which hold names, inodes and extents: 1, or 2 for a device that nothing beneath mirrors.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub metadata_copies: u8,
    /// Overwrite what is there, also another filesystem.
    #[arg(long)]
    pub force: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum Poll {
    /// Spin while there is work, then sleep in the kernel.
    Adaptive,
    /// Never sleep: for dedicated cores.
    Always,
}

#[derive(Args)]
pub struct EngineArgs {
    /// Cores to pin one reactor each to, such as 0,2-3. Default: every core, unpinned; a mount
    /// leaves one to its gateway.
    #[arg(long, value_parser = parse_cores)]
    pub cores: Option<Cores>,
    #[arg(long, value_enum, default_value = "adaptive")]
    pub poll: Poll,
    /// Bytes of block cache over all reactors.
    #[arg(long, value_parser = size::parse)]
    pub cache: Option<u64>,
}

#[derive(Args, Default)]
pub struct KeyArgs {
    /// Directory with the keys of this node or client (vellum keys). With them TCP is TLS; without, it stays on loopback.
    #[arg(id = "keys", long = "keys", value_name = "DIR", env = "VELLUM_KEYS")]
    pub dir: Option<PathBuf>,
}

#[derive(Args)]
pub struct Serve {
    pub device: String,
    /// unix:PATH or tcp:ADDR:PORT (beyond loopback with --keys); may be given several times. Default without --slot:
    /// unix:/run/vellum/PID.sock. With --slot: besides the slot's own address, while this member leads.
    #[arg(long)]
    pub listen: Vec<String>,
    /// Be the member of the device's cluster in this slot: vote, and serve whenever this member leads.
    #[arg(long, value_name = "N", value_parser = slots::parse_number)]
    pub slot: Option<u8>,
    /// How earlier leaders are fenced: host (kills processes of this host), reservation (the NVMe device refuses what they
    /// write; for all members or for none) or script:PATH. May be given several times: they are asked in turn until one
    /// succeeds.
    #[arg(long, requires = "slot", default_value = "host", value_name = "host|reservation|script:PATH")]
    pub fence: Vec<String>,
    /// A leader that is silent for so many milliseconds is succeeded (500 to 60000).
    #[arg(long, requires = "slot", default_value_t = 2000, value_name = "MS", value_parser = clap::value_parser!(u64).range(500..=60_000))]
    pub heartbeat_timeout: u64,
    /// Give figures to a monitoring system (Prometheus text, GET /metrics) at ADDR:PORT of loopback, or unix:PATH. A member
    /// of a cluster does whether it leads or not; `vellum status metrics:ADDR:PORT` asks there.
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub metrics: Option<String>,
    /// Begin a scrub (vellum scrub) by itself so long after the last one: 12h, 30d, 4w, or never.
    #[arg(long, value_name = "INTERVAL", default_value = "30d", value_parser = duration::parse_every)]
    pub scrub_every: duration::Every,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Args)]
pub struct Mount {
    /// unix:PATH, tcp:ADDR:PORT, or file:DEVICE (with the engine inside this process).
    pub endpoint: String,
    pub dir: PathBuf,
    /// Go into the background once mounted.
    #[arg(long)]
    pub daemon: bool,
    /// Let other users in (root does so anyway).
    #[arg(long)]
    pub allow_other: bool,
    #[arg(long)]
    pub read_only: bool,
    /// Bytes of items (names, attributes, places of content) that the gateway keeps.
    #[arg(long, value_parser = size::parse, default_value = "128M")]
    pub item_cache: u64,
    /// Inodes that the kernel may hold of this mount before it is asked to forget some (Linux 6.18).
    #[arg(long, value_name = "N", default_value_t = vellum_fuse::KERNEL_INODES)]
    pub kernel_inodes: usize,
    /// What idle cores do while requests come in quick succession (awake needs write access to /dev/cpu_dma_latency).
    #[arg(long, value_enum, default_value_t = IdleCores::Awake)]
    pub idle_cores: IdleCores,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum IdleCores {
    /// Poll for work, so that an application is woken at once.
    Awake,
    /// Halt, as the machine is set up: saves power, or a virtual machine's host the time of its core.
    Halt,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum Index {
    /// Any change of an inode.
    MetaSeq,
    /// A change of its content.
    DataSeq,
}

#[derive(Args)]
pub struct Walk {
    #[arg(value_enum)]
    pub index: Index,
    /// First sequence to show.
    pub from: u64,
    /// [TO] ENDPOINT|DIR: last sequence to show (default: the newest durable one), and where to ask.
    #[arg(num_args = 1..=2, required = true, value_names = ["TO", "ENDPOINT|DIR"])]
    pub rest: Vec<String>,
    /// Keep showing what becomes durable.
    #[arg(long)]
    pub follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct Stat {
    pub path: PathBuf,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct InoPath {
    pub ino: u64,
    /// unix:PATH, tcp:ADDR:PORT, file:DEVICE, or a directory of a mount.
    pub on: String,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct On {
    /// unix:PATH, tcp:ADDR:PORT, file:DEVICE, or a directory of a mount.
    pub on: String,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Subcommand)]
pub enum Keys {
    /// Make the authority of an installation. It belongs on a machine of its own, or in a safe.
    Init {
        /// Must not exist.
        dir: PathBuf,
    },
    /// Make the keys of a node: DIR/nodes/NAME, to be copied to it.
    Node {
        /// The authority's directory.
        dir: PathBuf,
        name: String,
        /// IP address at which clients and other nodes reach it; may be given several times.
        #[arg(long, required = true)]
        address: Vec<String>,
        #[command(flatten)]
        validity: KeyValidity,
    },
    /// Make the keys of a client (a gateway, a tool): DIR/clients/NAME, to be copied to it.
    Client {
        /// The authority's directory.
        dir: PathBuf,
        name: String,
        /// It may look, and change nothing.
        #[arg(long)]
        read_only: bool,
        /// This directory is all that it sees: its mounts show it as their root.
        #[arg(long, value_name = "DIRECTORY")]
        path: Option<PathBuf>,
        #[command(flatten)]
        validity: KeyValidity,
    },
    /// Show whose keys were made, and until when they are valid.
    List {
        /// The authority's directory.
        dir: PathBuf,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub struct KeyValidity {
    /// Days until they must be renewed.
    #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=7300))]
    pub days: u32,
    /// Replace the keys of this name. The same name is the same client to an engine.
    #[arg(long)]
    pub renew: bool,
}

#[derive(Subcommand)]
pub enum Quorum {
    /// Show slots, terms, the leader, and how late heartbeats were: of a device's blocks (also while it is served), or
    /// as the leader sees it.
    Status {
        /// A device, unix:PATH, tcp:ADDR:PORT (several after commas), or a directory of a mount.
        on: String,
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Change the slots: through the leader while the cluster serves, one member at a time; or of a device whose members are
    /// all stopped.
    Change(QuorumChange),
}

#[derive(Args)]
pub struct QuorumChange {
    /// A device, unix:PATH, tcp:ADDR:PORT (several after commas), or a directory of a mount.
    pub on: String,
    /// Add a member, or give the one in that slot another address.
    #[arg(long = "set", value_name = "N=ADDR:PORT", value_parser = slots::parse)]
    pub set: Vec<SlotAddress>,
    /// Take a member out.
    #[arg(long = "remove", value_name = "N", value_parser = slots::parse_number)]
    pub remove: Vec<u8>,
    /// The member that is changed is not heard, and known to be dead or powered off. While nobody serves: so are all members
    /// whose last leadership has no orderly end on the device. Wrong, it lets two processes write.
    #[arg(long)]
    pub confirm_dead: bool,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    pub on: On,
    /// List at most so many; the rest is counted.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max: u32,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Clients {
    /// unix:PATH, tcp:ADDR:PORT, file:DEVICE, or a directory of a mount.
    #[arg(required = true)]
    pub on: Option<String>,
    #[arg(long)]
    pub json: bool,
    /// List at most so many; the rest is counted.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max: u32,
    #[command(flatten)]
    pub keys: KeyArgs,
    #[command(subcommand)]
    pub command: Option<ClientsCommand>,
}

#[derive(Subcommand)]
pub enum ClientsCommand {
    /// Give a client up as if it had died: its mounts fail, what it held goes to others when its lease is over, and what it
    /// had not made durable is lost. For root, the engine's own user, and nodes.
    Evict {
        /// As `vellum clients` shows it.
        rid: String,
        #[command(flatten)]
        on: On,
    },
}

#[derive(Args)]
pub struct Compact {
    /// unix:PATH or tcp:ADDR:PORT.
    pub on: String,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct CompactWorker {
    /// The device of the engine, which must have opened it shared.
    pub device: String,
    /// unix:PATH or tcp:ADDR:PORT.
    pub on: String,
    /// Quorum slot of this process; without one it is known by its pid.
    #[arg(long)]
    pub slot: Option<u8>,
    /// Compactions at a time.
    #[arg(long, default_value_t = 1)]
    pub jobs: u32,
    /// Core to run on. Default: any.
    #[arg(long)]
    pub core: Option<usize>,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct Grow {
    /// unix:PATH, tcp:ADDR:PORT or a directory of a mount, of an engine that serves the device; or the device, when nobody
    /// does.
    pub on: String,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct MoveShard {
    /// unix:PATH, tcp:ADDR:PORT, or a directory of a mount.
    pub on: String,
    /// A bucket of the shard, 0 to 255: `vellum status` says who has which.
    pub bucket: u8,
    /// The reactor that is to have it.
    pub reactor: u16,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct Scrub {
    /// unix:PATH, tcp:ADDR:PORT, or a directory of a mount.
    pub on: String,
    /// Bytes that it may read in a second, such as 64M; 0 is no bound. Also changes the rate of one that runs.
    #[arg(long, value_parser = size::parse)]
    pub rate: Option<u64>,
    /// Begin, and do not wait for the end.
    #[arg(long, conflicts_with_all = ["status", "stop"])]
    pub background: bool,
    /// Only tell how far it is, or how the last one ended.
    #[arg(long, conflicts_with = "stop")]
    pub status: bool,
    /// End the one that runs.
    #[arg(long)]
    pub stop: bool,
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub keys: KeyArgs,
}

#[derive(Args)]
pub struct Check {
    pub device: String,
    /// First repair what has a second copy: superblock, manifest, and segments where two are kept.
    #[arg(long)]
    pub repair: bool,
    /// Also read every block of file data and verify its checksum.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub data: bool,
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum What {
    Superblock,
    Manifest,
    Log,
    Items,
    Space,
}

#[derive(Args)]
pub struct Dump {
    pub device: String,
    #[arg(value_enum)]
    pub what: What,
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum Suite {
    /// Echo round trips, cross-core messages, device reads; against plain sockets and files.
    Runtime,
    /// Puts and gets of the store; against fjall.
    Items,
    /// File operations through the mount; against the FUSE ceiling and the host's filesystem.
    Mount,
    /// One large file: streams, blocks at random places, fragmentation; against the FUSE ceiling and the host's filesystem.
    Data,
    /// A real tree; against cp -r and sync.
    Ingest,
    /// One directory of many names, listed through the mount, and what engine and gateway have in memory meanwhile; against
    /// the host's filesystem.
    Directory,
    /// What changed, by the index; against find -newer.
    Walk,
    /// From the start of a killed engine until it serves, by the bytes of its logs; against one that was stopped.
    Recovery,
    /// Bytes of metadata per small file, before and after merging; against the design's limit.
    Small,
    /// Locks from request to grant; against bare messages in memory.
    Locks,
    /// Two gateways on directories of their own, and on one that they take from each other; against one gateway.
    Cluster,
    /// What requests wait for while everything is merged: not at all, by the engine itself, by a worker.
    Compaction,
    /// The NVMe driver over a controller model that stores nothing; against the model alone.
    Nvme,
    /// Every suite, and a report of all as JSON and HTML.
    All,
}

#[derive(Args)]
pub struct Bench {
    #[arg(value_enum)]
    pub suite: Suite,
    /// Where images and peers' files go. Default: a temporary directory.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// The tree that `ingest` copies.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Names in the largest directory of `directory`.
    #[arg(long)]
    pub entries: Option<u64>,
    /// Where `all` writes bench.json and bench.html. Default: bench-report.
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Shrinks every size for a quick look; figures from it are worth little.
    #[arg(long)]
    pub quick: bool,
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Quickstart {
    /// The tree to ingest. Default: /usr.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Stop after this many files.
    #[arg(long, default_value_t = 30_000)]
    pub files: u64,
    /// Keep the image here instead of deleting it.
    #[arg(long)]
    pub image: Option<PathBuf>,
    /// Ingest through the library even where a mount is possible.
    #[arg(long)]
    pub no_mount: bool,
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Nvme {
    /// Show the controllers on the bus and who drives them.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Hand controllers to vfio-pci, and reserve huge pages. Shows what it will do; does it with --yes.
    Setup(NvmeSetup),
    /// Give controllers back to the kernel's driver. Shows what it will do; does it with --yes.
    Reset {
        /// Such as 0000:00:10.0.
        #[arg(required = true)]
        addresses: Vec<String>,
        #[arg(long)]
        yes: bool,
    },
    /// Show a controller and its namespaces.
    Identify(NvmeOn),
    /// Show the health log.
    Smart(NvmeOn),
    /// Show the error log, newest first.
    Log(NvmeOn),
    /// Show which hosts may write a shared namespace: who is registered, who holds a reservation.
    Reservations {
        #[command(flatten)]
        on: NvmeOn,
        /// End the reservation and unregister every host. Members of a cluster that use it are fenced by this.
        #[arg(long)]
        clear: bool,
    },
    /// Measure a device: any DEVICE, not only NVMe.
    Perf(NvmePerf),
    /// Serve the modelled controller on a unix socket, for `vfio-user:` and other such clients. Until killed.
    Emulate(NvmeEmulate),
    /// Format a namespace. Destroys what is on it.
    Format {
        /// nvme:ADDRESS/NSID.
        device: String,
        /// Bytes of an LBA: 512 or 4096.
        #[arg(long)]
        lba: u32,
        /// Without it nothing is done.
        #[arg(long)]
        destroy_all_data: bool,
    },
    /// Write zeros over a part of a namespace, or all of it.
    WriteZeroes {
        /// nvme:ADDRESS/NSID.
        device: String,
        #[arg(long, default_value = "0", value_parser = size::parse)]
        at: u64,
        /// Default: to the end.
        #[arg(long, value_parser = size::parse)]
        len: Option<u64>,
        /// Without it nothing is done.
        #[arg(long)]
        destroy_all_data: bool,
    },
}

#[derive(Args)]
pub struct NvmeOn {
    /// nvme:ADDRESS, vfio-user:PATH or emu:SIZE.
    pub device: String,
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct NvmeEmulate {
    pub socket: PathBuf,
    #[arg(long, default_value = "1G", value_parser = size::parse)]
    pub size: u64,
    /// Keep nothing: reads and writes move no data. For measurements.
    #[arg(long)]
    pub null: bool,
    /// IO queue pairs that it grants.
    #[arg(long, default_value_t = 8)]
    pub queues: u16,
    /// Run on this core and never yield it.
    #[arg(long)]
    pub core: Option<usize>,
}

#[derive(Args)]
pub struct NvmeSetup {
    /// Such as 0000:00:10.0.
    #[arg(required = true)]
    pub addresses: Vec<String>,
    /// Huge pages of 2 MiB to reserve.
    #[arg(long)]
    pub hugepages: Option<u32>,
    /// User id that may then use the controllers without being root.
    #[arg(long)]
    pub owner: Option<u32>,
    #[arg(long)]
    pub yes: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
pub enum Pattern {
    Read,
    Write,
    Randread,
    Randwrite,
    /// A mix of both, by -M.
    Randrw,
}

#[derive(Args)]
pub struct NvmePerf {
    pub device: String,
    /// Operations in flight per core.
    #[arg(short = 'q', default_value_t = 32)]
    pub depth: u32,
    /// Bytes of an operation.
    #[arg(short = 'o', default_value = "4K", value_parser = size::parse)]
    pub io_size: u64,
    #[arg(short = 'w', value_enum, default_value = "randread")]
    pub pattern: Pattern,
    /// Per cent of reads in randrw.
    #[arg(short = 'M', default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_percent: u8,
    /// Seconds.
    #[arg(short = 't', default_value_t = 5)]
    pub seconds: u64,
    /// One thread on each, such as 0,2-3. Default: one thread, unpinned.
    #[arg(short = 'c', value_parser = parse_cores)]
    pub cores: Option<Cores>,
    /// Needed for patterns that write: they overwrite the device.
    #[arg(long)]
    pub destroy_all_data: bool,
    #[arg(long)]
    pub json: bool,
}

/// A list of cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// "0,2-3" as [0, 2, 3].
pub fn parse_cores(text: &str) -> Result<Cores, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let number =
            |s: &str| s.trim().parse::<usize>().map_err(|_| format!("{text:?} is no list of cores such as 0,2-3"));
        let (first, last) = match part.split_once('-') {
            Some((a, b)) => (number(a)?, number(b)?),
            None => (number(part)?, number(part)?),
        };
        if first > last || last > 1023 {
            return Err(format!("{part:?} is no range of cores"));
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    cores.dedup();
    Ok(Cores(cores))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn core_lists_are_read() {
        assert_eq!(parse_cores("0,2-3,2"), Ok(Cores(vec![0, 2, 3])));
        assert!(parse_cores("3-1").is_err() && parse_cores("a").is_err() && parse_cores("").is_err());
    }
}
