//! Xen: its packages, what dom0 needs, and the files of its guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::Files;
use crate::host::Found;
use crate::kernel::Kernel;
use crate::machine::{self, PATH};
use crate::packages::Packages;
use crate::plan::Plan;
use crate::qemu::escaped;
use crate::{Result, VmError, host};

/// Where a guest's kernel and its first file system are in dom0.
pub(crate) const GUEST_KERNEL: &str = "/guest/vmlinux";
pub(crate) const GUEST_FILES: &str = "/guest/initial.cpio";

/// Modules of dom0.
pub(crate) const MODULES: [&str; 6] =
    ["xenfs", "xen_gntdev", "xen_gntalloc", "xen_evtchn", "xen_privcmd", "xen_blkback"];
/// Modules of a guest.
const GUEST_MODULES: [&str; 4] = ["xen_blkfront", "crc32c_generic", "crct10dif_generic", "ext4"];

/// What dom0 does before it takes commands: `xl` works afterwards.
pub(crate) const START: &str = "\
mkdir -p /proc/xen /run/xen /run/xenstored /var/log/xen /var/lib/xen /var/lib/xenstored
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /run/xen/xenstored.pid
xen-init-dom0
xenconsoled --pid-file=/run/xen/xenconsoled.pid --log=all --log-dir=/var/log/xen
";

/// Xen's packages, of the version that Debian's meta-package depends on.
pub(crate) fn fetch() -> Result<Packages> {
    static FETCHED: Found<Packages> = Found::new();
    FETCHED.get("", find_packages)
}

fn find_packages() -> Result<Packages> {
    // Without apt, the reason is told where packages are fetched.
    if host::find("apt-cache").is_none() {
        return Packages::fetch(&[]);
    }
    let only = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
    let mut command = Command::new("apt-cache");
    command.args(["depends", "--recurse"]).args(only.map(|kind| format!("--no-{kind}")));
    let text = host::capture(command.args(["xen-system-amd64", "xenstore-utils"]))
        .map_err(|error| VmError::Unavailable(error.to_string()))?;
    let names = wanted(&text);
    Packages::fetch(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// From all that Xen depends on, what is Xen's. The rest every Debian has.
fn wanted(text: &str) -> Vec<String> {
    const OURS: [&str; 5] =
        ["xen-hypervisor-4", "xen-utils-", "xenstore-utils", "libxen", "libyajl"];
    let names = text.lines().filter(|line| !line.starts_with([' ', '<', '|']));
    let mut names: Vec<String> = names
        .filter(|name| OURS.iter().any(|ours| name.starts_with(ours)))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The folder of the toolstack's programs, with the version of Xen in its name.
fn toolstack(packages: &Packages) -> Result<PathBuf> {
    let entries = packages.folders().flat_map(|top| fs::read_dir(top.join("usr/lib")));
    let mut folders = entries.flatten().flatten().map(|entry| entry.path().join("bin"));
    let found = folders.find(|folder| folder.join("xl").is_file());
    found.ok_or_else(|| VmError::Failed("Xen's packages have no xl".into()))
}

/// Adds what dom0 needs, and what its guests need.
pub(crate) fn add(
    files: &mut Files,
    packages: &Packages,
    kernel: &Kernel,
    folder: &Path,
) -> Result<()> {
    let programs = toolstack(packages)?;
    let home = programs.parent().and_then(Path::file_name).unwrap_or_default();
    let home = format!("/usr/lib/{}/bin", home.to_string_lossy());
    for name in ["xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper"] {
        files.program(&programs.join(name), &format!("{home}/{name}"))?;
        files.link(&format!("/usr/sbin/{name}"), &format!("{home}/{name}"));
    }
    for name in ["xenstore-read", "xenstore-write", "xenstore-ls", "xenstore-list", "xenstore-rm"] {
        let program = packages.program(name);
        let program = program.ok_or_else(|| VmError::Failed(format!("There is no {name}")))?;
        files.program(&program, &format!("/usr/bin/{name}"))?;
    }
    let common = packages.folder("xen-utils-common")?;
    files.copies(&common.join("etc/xen/scripts"), "/etc/xen/scripts")?;
    files.text("/etc/xen/xl.conf", "autoballoon=\"off\"\n", 0o644);
    let mut guest = machine::base(packages, kernel, &GUEST_MODULES.map(str::to_owned))?;
    // From then on the console is the channel: the kernel's words stay in its log.
    guest.text("/etc/vm/start", "dmesg -n 1\n", 0o755);
    let guest_files = folder.join("guest.cpio");
    guest.write(&guest_files)?;
    files.copy(&kernel.image, GUEST_KERNEL, 0o644);
    files.copy(&guest_files, GUEST_FILES, 0o644);
    Ok(())
}

/// Words that spare a kernel on Xen what an emulated processor takes seconds for: its page tables
/// are looked through for what is writable, and a key is loaded that opens nothing.
const BRIEF: &str = "rodata=off initcall_blacklist=load_system_certificate_list,crypto_kdf108_init";

/// A guest's words for its kernel.
pub(crate) fn guest_words() -> String {
    let brief = machine::BRIEF;
    format!("quiet {brief} {BRIEF} panic=-1 rdinit=/init PATH={PATH} VM_CHANNEL=/dev/hvc0")
}

/// QEMU's words for Xen and dom0.
pub(crate) fn words(
    plan: &Plan,
    packages: &Packages,
    kernel: &Kernel,
    folder: &Path,
    initial: &Path,
) -> Result<Vec<String>> {
    let hypervisor = folder.join("xen");
    unpack_hypervisor(packages, &hypervisor)?;
    // `spec-ctrl=no` alone would turn on the lazy switching of the floating point unit, with which
    // emulated guests compute wrong results.
    let xen = "dom0_mem=1024M,max:1024M com1=115200,8n1 console=com1 loglvl=warning \
               guest_loglvl=warning no-real-mode vga=none smt=0 bootscrub=false \
               spec-ctrl=no,eager-fpu";
    let dom0 = format!("console=hvc0 earlyprintk=xen {BRIEF} {}", machine::common_words(plan));
    let kernel = kernel.image.to_string_lossy();
    // A comma separates multiboot modules; two are one.
    let modules = format!("{kernel} {},{}", dom0.replace(',', ",,"), escaped(initial));
    let words = ["-kernel", &hypervisor.to_string_lossy(), "-append", xen, "-initrd", &modules];
    Ok(words.map(str::to_owned).to_vec())
}

/// The hypervisor as an ELF file, which QEMU starts.
fn unpack_hypervisor(packages: &Packages, to: &Path) -> Result<()> {
    let files = packages.folders().flat_map(|top| fs::read_dir(top.join("boot")));
    let mut files = files.flatten().flatten().map(|entry| entry.path());
    let is_xen = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("xen-") && name.ends_with(".gz"))
    };
    let packed = files.find(is_xen);
    let packed = packed.ok_or_else(|| VmError::Failed("The package has no hypervisor".into()))?;
    let output = Command::new("gzip").args(["-d", "-c"]).arg(&packed).output();
    let output =
        output.map_err(|error| VmError::Unavailable(format!("Cannot run gzip: {error}")))?;
    if !output.status.success() {
        return Err(VmError::Failed(format!("gzip failed on {}", packed.display())));
    }
    host::write_whole(to, &output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_that_xen_depends_on_its_own_packages_are_taken() {
        let text = "xen-utils-4.17\n  Depends: libc6\n  Depends: libxenmisc4.17\n |Depends: x\n\
                    libc6\nlibxenmisc4.17\n<python3:any>\nxen-hypervisor-4.17-amd64\n\
                    xen-hypervisor-common\nlibyajl2\nxen-utils-4.17\n";
        let names = ["libxenmisc4.17", "libyajl2", "xen-hypervisor-4.17-amd64", "xen-utils-4.17"];
        assert_eq!(wanted(text), names);
    }
}
