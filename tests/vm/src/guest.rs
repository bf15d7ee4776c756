//! Guests of Xen: the agent in a guest is reached through the guest's console.

use std::ops::Deref;
use std::time::Duration;

use crate::machine::Machine;
use crate::plan::Kind;
use crate::remote::Remote;
use crate::{Result, VmError, xen};

/// How long a guest may take until it takes commands: ten times what a loaded machine needed.
const BOOT: Duration = Duration::from_secs(400);

/// Prints number and console of the guest `$1`, once it has both and is another one than `$2`.
const CONSOLE: &str = r#"
while :; do
    domain=$(xl domid "$1" 2>/dev/null)
    [ -n "$domain" ] && [ "$domain" != "$2" ] &&
        console=$(xenstore-read "/local/domain/$domain/console/tty" 2>/dev/null) &&
        [ -n "$console" ] && break
    sleep 0.3
done
echo "$domain $console""#;

/// What to look at when something is wrong with the guest `$1`.
const TOLD: &str = r#"
xl list
tap-ctl list | cat
xenstore-ls /local/domain | head -n 200
for log in "/var/log/xen/xl-$1.log" "/var/log/xen/guest-$1.log"; do
    echo "== $log"; tail -n 40 "$log"
done
dmesg | tail -n 20"#;

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
            "name = '{name}'\ntype = '{kind}'\nkernel = '{}'\nramdisk = '{}'\nmemory = 128\n\
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
    /// When there is no such guest, or it does not start: with what dom0 knows about it.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let listed = self.run(["xl", "domid", name])?;
        if listed.status != 0 {
            return Err(VmError::Failed(format!("There is no guest {name}: {listed:?}")));
        }
        self.connect_guest(name, None)
    }

    /// Connects with the agent in the guest that takes the place of another one with this name: of
    /// one that restarts.
    ///
    /// # Errors
    /// When none comes, or it does not start: with what dom0 knows about it.
    pub fn guest_after(&self, name: &str, before: &Guest) -> Result<Guest> {
        self.connect_guest(name, Some(before.domain))
    }

    fn connect_guest(&self, name: &str, before: Option<u32>) -> Result<Guest> {
        let connected = self.try_connect_guest(name, before);
        connected.map_err(|error| {
            let words = ["sh", "-c", TOLD, "sh", name];
            let told = self.run(words).map(|ran| ran.stdout).unwrap_or_default();
            VmError::Failed(format!("{error}\nwhat dom0 knows of {name}:\n{told}"))
        })
    }

    fn try_connect_guest(&self, name: &str, before: Option<u32>) -> Result<Guest> {
        // A restart gives it a name first and a console later.
        let before = before.map_or_else(String::new, |domain| domain.to_string());
        let wait = self.start(["sh", "-c", CONSOLE, "sh", name, &before])?;
        let said = wait.wait(BOOT)?.stdout;
        let words = said.trim().split_once(' ');
        let found = words.and_then(|(domain, console)| Some((domain.parse().ok()?, console)));
        let (domain, console) =
            found.ok_or_else(|| VmError::Failed(format!("{name} has no console: {said:?}")))?;
        let bridge = self.start(["vm-agent", "bridge", console])?;
        let to = bridge.input();
        let remote = Remote::connect(name, bridge, to, self.transcript(name)?, BOOT)?;
        Ok(Guest { remote, domain })
    }
}
