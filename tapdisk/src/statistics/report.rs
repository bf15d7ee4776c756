//! The document of `tap-ctl stats`.
//!
//! Its first keys, their order and their spelling are those of blktap's tapdisk, up to
//! `read_caching`; the storage manager and xapi read `secs`, `images[].hits`, `images[].name`,
//! `images[].driver.name`, `FIXME_enospc_redirect_count` (the name is theirs), `nbd_mirror_failed`
//! and `reqs_outstanding`. Keys of our own come after.

use super::counters::{DiskStats, ImageStats, OpClass};
use super::json::Json;

/// What the driver of an image says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverStatus {
    /// Nothing: `null`.
    None,
    /// Of a raw image.
    Requests {
        /// How many it can have in flight.
        max: u64,
        /// How many are.
        pending: u64,
    },
}

/// One image of the chain.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a> {
    /// The path, without the type.
    pub name: &'a str,
    /// The number of the driver in blktap's table of types: 0 aio, 4 vhd, ...
    pub driver_type: u32,
    /// The name of the driver: `aio`, `vhd`, ...
    pub driver: &'a str,
    /// What it served and failed.
    pub stats: ImageStats,
    /// What the driver adds.
    pub status: DriverStatus,
}

/// The queue of file I/O.
#[derive(Clone, Copy, Debug)]
pub struct QueueView<'a> {
    /// The engine's name.
    pub engine: &'a str,
    /// How many I/Os it can have in flight.
    pub depth: u64,
    /// How many are.
    pub pending: u64,
    /// How many wait for room.
    pub deferred: u64,
}

/// The NBD server of the disk.
#[derive(Clone, Copy, Debug)]
pub struct NbdView {
    /// Connected clients.
    pub clients: u64,
    /// Requests: taken, answered.
    pub reqs: [u64; 2],
}

/// The kernel's ring.
#[derive(Clone, Copy, Debug)]
pub struct TapView {
    /// Of the device.
    pub minor: u64,
    /// Requests: taken, answered.
    pub reqs: [u64; 2],
    /// Notifications: received, sent.
    pub kicks: [u64; 2],
}

/// All that the document shows.
#[derive(Clone, Copy, Debug)]
pub struct StatsView<'a> {
    /// `type:path`; `None` when the disk was never opened or is closed.
    pub name: Option<&'a str>,
    /// The counters.
    pub disk: &'a DiskStats,
    /// The chain, leaf first; empty when it is not open (also while paused).
    pub images: &'a [ImageView<'a>],
    /// Sectors that went to the secondary because the leaf had no space.
    pub enospc_redirects: u64,
    /// Whether the mirror was given up.
    pub nbd_mirror_failed: bool,
    /// Whether the files are read through the page cache.
    pub read_caching: bool,
    /// When the disk is open.
    pub queue: Option<QueueView<'a>>,
    /// Requests that wait until the storage has space.
    pub awaiting_space: u64,
    /// Lines of the log that were lost, of the whole process.
    pub log_dropped: u64,
    /// When it is served by NBD.
    pub nbd: Option<NbdView>,
    /// When it has a kernel ring.
    pub tap: Option<TapView>,
}

/// The document of one disk: one line, without a newline at its end.
#[must_use]
pub fn stats_json(view: &StatsView<'_>) -> String {
    let mut json = Json::new();
    write_disk(&mut json, view);
    json.into_string()
}

/// The documents of all disks, as a list.
#[must_use]
pub fn stats_json_all(views: &[StatsView<'_>]) -> String {
    let mut json = Json::new();
    json.array(|json| views.iter().for_each(|view| write_disk(json, view)));
    json.into_string()
}

fn write_disk(json: &mut Json, view: &StatsView<'_>) {
    json.object(|json| {
        write_established(json, view);
        write_own(json, view);
    });
}

/// The keys that every tapdisk has.
fn write_established(json: &mut Json, view: &StatsView<'_>) {
    json.key("name").string(view.name.unwrap_or("(null)"));
    json.key("secs").numbers(&view.disk.sectors());
    json.key("images").array(|json| {
        view.images.iter().for_each(|image| write_image(json, image));
    });
    json.key("FIXME_enospc_redirect_count").number(view.enospc_redirects);
    json.key("nbd_mirror_failed").number(u64::from(view.nbd_mirror_failed));
    json.key("reqs_outstanding").number(view.disk.outstanding);
    json.key("read_caching").string(if view.read_caching { "true" } else { "false" });
}

fn write_image(json: &mut Json, image: &ImageView<'_>) {
    json.object(|json| {
        json.key("name").string(image.name);
        json.key("hits").numbers(&image.stats.hits);
        json.key("fail").numbers(&image.stats.fail);
        json.key("driver").object(|json| {
            json.key("type").number(u64::from(image.driver_type));
            json.key("name").string(image.driver);
            json.key("status");
            match image.status {
                DriverStatus::None => json.null(),
                DriverStatus::Requests { max, pending } => json.object(|json| {
                    json.key("reqs").object(|json| {
                        json.key("max").number(max);
                        json.key("pending").number(pending);
                    });
                }),
            }
        });
    });
}

/// The keys of our own.
fn write_own(json: &mut Json, view: &StatsView<'_>) {
    json.key("latency_us").object(|json| {
        for (class, histogram) in OpClass::ALL.iter().zip(&view.disk.latency) {
            json.key(class.name()).array(|json| {
                histogram.buckets().for_each(|(upper, count)| json.numbers(&[upper, count]));
            });
        }
    });
    json.key("retries").number(view.disk.retries);
    json.key("waiting_for_space").number(view.awaiting_space);
    if let Some(queue) = &view.queue {
        json.key("queue").object(|json| {
            json.key("engine").string(queue.engine);
            json.key("depth").number(queue.depth);
            json.key("pending").number(queue.pending);
            json.key("deferred").number(queue.deferred);
        });
    }
    json.key("log_dropped").number(view.log_dropped);
    if let Some(nbd) = &view.nbd {
        json.key("nbd").object(|json| {
            json.key("clients").number(nbd.clients);
            json.key("reqs").numbers(&nbd.reqs);
        });
    }
    if let Some(tap) = &view.tap {
        json.key("tap").object(|json| {
            json.key("minor").number(tap.minor);
            json.key("reqs").numbers(&tap.reqs);
            json.key("kicks").numbers(&tap.kicks);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// As blktap's tapdisk printed them.
    const TAIL: &str = concat!(
        r#" ], "FIXME_enospc_redirect_count": 0, "nbd_mirror_failed": 0, "#,
        r#""reqs_outstanding": 0, "read_caching": "false" }"#,
    );
    const CLOSED: &str = r#"{ "name": "(null)", "secs": [ 0, 0 ], "images": [ "#;
    const PAUSED: &str = r#"{ "name": "vhd:/d/a.vhd", "secs": [ 0, 0 ], "images": [ "#;
    const CHAIN: &str = concat!(
        r#"{ "name": "vhd:/d/b.vhd", "secs": [ 0, 0 ], "images": [ "#,
        r#"{ "name": "/d/b.vhd", "hits": [ 0, 0 ], "fail": [ 0, 0 ], "#,
        r#""driver": { "type": 4, "name": "vhd", "status": null } }, "#,
        r#"{ "name": "/d/a.vhd", "hits": [ 0, 0 ], "fail": [ 0, 0 ], "#,
        r#""driver": { "type": 4, "name": "vhd", "status": null } }"#,
    );

    fn view(disk: &DiskStats) -> StatsView<'_> {
        StatsView {
            name: None,
            disk,
            images: &[],
            enospc_redirects: 0,
            nbd_mirror_failed: false,
            read_caching: false,
            queue: None,
            awaiting_space: 0,
            log_dropped: 0,
            nbd: None,
            tap: None,
        }
    }

    fn vhd(name: &str) -> ImageView<'_> {
        let stats = ImageStats::default();
        ImageView { name, driver_type: 4, driver: "vhd", stats, status: DriverStatus::None }
    }

    fn established(view: &StatsView<'_>) -> String {
        let mut json = Json::new();
        json.object(|json| write_established(json, view));
        json.into_string()
    }

    #[test]
    fn the_established_keys_are_spelled_as_ever() {
        let disk = DiskStats::default();
        let closed = view(&disk);
        assert_eq!(established(&closed), format!("{CLOSED}{TAIL}"));
        let paused = StatsView { name: Some("vhd:/d/a.vhd"), ..closed };
        assert_eq!(established(&paused), format!("{PAUSED}{TAIL}"));
        let images = ["/d/b.vhd", "/d/a.vhd"].map(vhd);
        let chain = StatsView { name: Some("vhd:/d/b.vhd"), images: &images, ..closed };
        assert_eq!(established(&chain), format!("{CHAIN}{TAIL}"));
        let caching = StatsView { read_caching: true, ..chain };
        let tail = TAIL.replace("false", "true");
        assert_eq!(established(&caching), format!("{CHAIN}{tail}"));
    }

    #[test]
    fn our_own_keys_come_after_the_established_ones() {
        let disk = DiskStats::default();
        let document = stats_json(&view(&disk));
        let whole = format!("{CLOSED}{TAIL}");
        let rest = document.strip_prefix(whole.strip_suffix(" }").unwrap()).unwrap();
        let own = concat!(
            r#", "latency_us": { "read": [  ], "write": [  ], "#,
            r#""flush": [  ], "other": [  ] }, "retries": 0, "waiting_for_space": 0, "log_dropped": 0 }"#,
        );
        assert_eq!(rest, own);
    }

    #[test]
    fn a_raw_image_tells_its_requests() {
        let disk = DiskStats::default();
        let status = DriverStatus::Requests { max: 352, pending: 7 };
        let image = ImageView { driver_type: 0, driver: "aio", status, ..vhd("/d/raw") };
        let document = stats_json(&StatsView { images: &[image], ..view(&disk) });
        let driver = concat!(
            r#""driver": { "type": 0, "name": "aio", "#,
            r#""status": { "reqs": { "max": 352, "pending": 7 } } }"#,
        );
        assert!(document.contains(driver), "{document}");
    }

    #[test]
    fn doors_and_queue_are_shown_when_they_are_there() {
        let mut disk = DiskStats::default();
        disk.latency[1].record(Duration::from_micros(100));
        let queue = QueueView { engine: "aio", depth: 402, pending: 1, deferred: 0 };
        let nbd = NbdView { clients: 2, reqs: [5, 4] };
        let tap = TapView { minor: 3, reqs: [9, 8], kicks: [7, 6] };
        let all = StatsView { queue: Some(queue), nbd: Some(nbd), tap: Some(tap), ..view(&disk) };
        let value: serde_json::Value = serde_json::from_str(&stats_json(&all)).unwrap();
        assert_eq!(value["latency_us"]["write"], serde_json::json!([[112, 1]]));
        assert_eq!(value["queue"]["depth"], 402);
        assert_eq!(value["nbd"]["reqs"], serde_json::json!([5, 4]));
        assert_eq!(value["tap"]["kicks"], serde_json::json!([7, 6]));
    }

    #[test]
    fn a_hostile_path_stays_inside_its_string() {
        let disk = DiskStats::default();
        let name = "vhd:/d/\", \"reqs_outstanding\": 9, \"x\": \"\n";
        let document = stats_json(&StatsView { name: Some(name), ..view(&disk) });
        let value: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(value["name"], name);
        assert_eq!(value["reqs_outstanding"], 0);
        assert_eq!(document.lines().count(), 1);
    }

    #[test]
    fn all_disks_are_a_list() {
        let disk = DiskStats::default();
        let one = stats_json(&view(&disk));
        assert_eq!(stats_json_all(&[view(&disk), view(&disk)]), format!("[ {one}, {one} ]"));
        assert_eq!(stats_json_all(&[]), "[  ]");
    }
}
