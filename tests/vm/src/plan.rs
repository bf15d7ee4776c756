//! What a machine shall have, before it is started.

use std::path::PathBuf;

use crate::debug_kernel::is_debug_kernel;
use crate::machine::Machine;
use crate::{Result, qemu};

/// Which kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A Linux kernel, nothing below it but QEMU.
    Plain,
    /// Xen, and Linux as its dom0.
    Xen,
}

/// What an instruction takes where a machine's clock counts them, in nanoseconds.
pub const INSTRUCTION_NS: u32 = 2;

/// The file system of the folder that a machine shares with this one.
pub(crate) const SHARE_MODULES: [&str; 2] = ["9pnet_virtio", "9p"];

/// A machine that can be started. Without further words it has two processors - one with Xen -,
/// our programs,
/// busybox, the tools of ext4, and, without Xen, the empty folder `/share` that it shares with this
/// machine.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) kind: Kind,
    pub(crate) label: String,
    pub(crate) memory_mib: u32,
    pub(crate) processors: u32,
    pub(crate) storage_bytes: Option<u64>,
    pub(crate) disks: Vec<(String, u64)>,
    pub(crate) modules: Vec<String>,
    pub(crate) foreign_modules: Vec<PathBuf>,
    pub(crate) packages: Vec<String>,
    pub(crate) programs: Vec<String>,
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) kernel_words: Vec<String>,
    pub(crate) qemu_words: Vec<String>,
    pub(crate) has_terminal: bool,
    pub(crate) has_share: bool,
    pub(crate) counts_instructions: bool,
}

/// Loaded in every machine, where they are no part of the kernel.
const MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic",
    "crct10dif_generic",
    "ext4",
    "loop",
];

impl Plan {
    pub(crate) fn new(kind: Kind) -> Self {
        // Two emulated processors of dom0 wait for each other's locks, and on a busy machine that
        // takes most of their time.
        let (label, memory_mib, processors) = match kind {
            // What the debug kernel notes about memory and locks needs as much again.
            Kind::Plain if is_debug_kernel() => ("plain", 2048, 2),
            Kind::Plain => ("plain", 1024, 2),
            Kind::Xen => ("xen", 2048, 1),
        };
        Self {
            kind,
            label: label.into(),
            memory_mib,
            processors,
            storage_bytes: None,
            disks: Vec::new(),
            modules: MODULES.map(str::to_owned).to_vec(),
            foreign_modules: Vec::new(),
            packages: Vec::new(),
            programs: Vec::new(),
            files: Vec::new(),
            kernel_words: Vec::new(),
            qemu_words: Vec::new(),
            has_terminal: false,
            has_share: kind == Kind::Plain,
            counts_instructions: false,
        }
    }

    /// The name of its folder `target/vm/LABEL`, which has its console's log. Two machines at once
    /// with one label get a number behind it.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.label = label.into();
        self
    }

    /// Its memory, in MiB; 1024 without this, 2048 with Xen.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// How many processors; 2 without this, 1 with Xen.
    #[must_use]
    pub fn processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }

    /// A new ext4 file system, mounted at `/sr`: on a disk, so that it has direct I/O.
    #[must_use]
    pub fn with_storage(mut self, bytes: u64) -> Self {
        self.storage_bytes = Some(bytes);
        self
    }

    /// An empty virtio disk, `/dev/disk/NAME`.
    #[must_use]
    pub fn with_disk(mut self, name: &str, bytes: u64) -> Self {
        self.disks.push((name.into(), bytes));
        self
    }

    /// Modules of the kernel's package, with those that they need: loaded at the start.
    #[must_use]
    pub fn with_modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// A module of our own, from [`crate::build_module`]: `/lib/modules/NAME.ko`, not loaded.
    #[must_use]
    pub fn with_foreign_module(mut self, path: PathBuf) -> Self {
        self.foreign_modules.push(path);
        self
    }

    /// Debian packages in which [`Plan::with_programs`] finds programs that are not installed here.
    #[must_use]
    pub fn with_packages(mut self, names: &[&str]) -> Self {
        self.packages.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Programs of this machine, or of the plan's packages, with their libraries. One that is in
    /// neither makes the machine unavailable.
    #[must_use]
    pub fn with_programs(mut self, names: &[&str]) -> Self {
        self.programs.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// A file of this machine, executable, with its libraries when it is a program.
    #[must_use]
    pub fn with_file(mut self, from: PathBuf, path: &str) -> Self {
        self.files.push((from, path.into()));
        self
    }

    /// Words for the kernel's command line.
    #[must_use]
    pub fn with_kernel_words(mut self, words: &[&str]) -> Self {
        self.kernel_words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Words for QEMU's command line.
    #[must_use]
    pub fn with_qemu_words(mut self, words: &[&str]) -> Self {
        self.qemu_words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// A terminal: this process's own, connected with [`Machine::terminal`].
    #[must_use]
    pub fn with_terminal(mut self) -> Self {
        self.has_terminal = true;
        self
    }

    /// The folder `/share` for a machine with Xen, where the modules for it take seconds to load.
    #[must_use]
    pub fn with_share(mut self) -> Self {
        self.has_share = true;
        self
    }

    /// Emulated, whatever the processor can, with a clock that goes on by [`INSTRUCTION_NS`] with
    /// each instruction, and by itself only while the machine has nothing to do: times are then
    /// numbers of instructions, the same on every host. It takes one processor.
    #[must_use]
    pub fn with_counted_instructions(mut self) -> Self {
        self.counts_instructions = true;
        self.processors = 1;
        self
    }

    /// Starts it and waits until it takes commands: with hardware virtualisation where that works,
    /// else without.
    ///
    /// # Errors
    /// [`crate::VmError::Unavailable`] when QEMU or a package cannot be had; else what failed, with
    /// the end of the console's log.
    pub fn boot(&self) -> Result<Machine> {
        qemu::boot(self)
    }
}
