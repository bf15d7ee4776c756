//! Guests of Xen: the agent in a guest is reached through the guest's console.

use std::ops::Deref;
use std::time::Duration;

use crate::machine::Machine;
use crate::plan::Kind;
use crate::remote::Remote;
use crate::{Result, VmError, xen};

/// How long a guest may take until it takes commands.
const BOOT: Duration = Duration::from_secs(200);

/// A guest that runs, and takes commands. It stays when this is dropped.
#[derive(Debug)]
pub struct Guest {
    remote: Remote,
    /// Its number.
    pub domain: u32,
}

impl Deref for Guest {
    type Target = Remote;

    fn deref(&self) -> &Remote {
        &self.remote
    }
}

impl Machine {
    /// Writes the configuration of a guest, for `xl create`: returns its path. `kind` is `pv` or
    /// `pvh`; the disks are as `xl` wants them.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn guest_file(&self, name: &str, kind: &str, disks: &[&str]) -> Result<String> {
        if self.kind() != Kind::Xen {
            return Err(VmError::Failed("Only Xen has guests".into()));
        }
        let disks: Vec<String> = disks.iter().map(|disk| format!("'{disk}'")).collect();
        let text = format!(
            "name = '{name}'\ntype = '{kind}'\nkernel = '{}'\nramdisk = '{}'\nmemory = 192\n\
             vcpus = 1\nextra = '{}'\ndisk = [ {} ]\non_reboot = 'restart'\non_crash = 'destroy'\n",
            xen::GUEST_KERNEL,
            xen::GUEST_FILES,
            xen::guest_words(),
            disks.join(", ")
        );
        let path = format!("/etc/xen/{name}.cfg");
        let write = self.start(["sh", "-c", &format!("cat >{path}")])?;
        write.write_input(text.as_bytes())?;
        write.close_input()?;
        write.wait(BOOT)?;
        Ok(path)
    }

    /// Connects with the agent in a guest that was created: waits until it takes commands.
    ///
    /// # Errors
    /// When there is no such guest, or it does not start.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let listed = self.run(["xl", "domid", name])?;
        let domain: u32 = listed
            .stdout
            .trim()
            .parse()
            .map_err(|_| VmError::Failed(format!("There is no guest {name}: {listed:?}")))?;
        // A restart gives it a name first and a console later.
        let line = format!(
            "until xenstore-read /local/domain/{domain}/console/tty 2>/dev/null; do sleep 0.2; done"
        );
        let terminal = self.start(["sh", "-c", &line])?.wait(BOOT)?;
        let bridge = self.start(["vm-agent", "bridge", terminal.stdout.trim()])?;
        let to = bridge.input();
        let remote = Remote::connect(name, bridge, to, self.transcript(name)?, BOOT);
        let remote = remote.map_err(|error| {
            let log = format!("/var/log/xen/guest-{name}.log");
            let said = self.run(["tail", "-n", "30", &log]).map(|ran| ran.stdout);
            VmError::Failed(format!(
                "{error}\nits console said last:\n{}",
                said.unwrap_or_default()
            ))
        })?;
        Ok(Guest { remote, domain })
    }
}
