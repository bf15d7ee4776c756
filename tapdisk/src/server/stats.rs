//! The document of `tap-ctl stats`, from what a disk shows.

use super::shared::DiskShared;
use crate::disk::life::Life;
use crate::queue::QueueConfig;
use crate::statistics::{
    DriverStatus, ImageView, NbdView, QueueView, StatsView, TapView, stats_json, stats_json_all,
};

/// The document of one disk, with the two newlines that blktap's clients expect at its end.
pub(super) fn one(disk: &DiskShared, log_dropped: u64) -> String {
    with_view(disk, log_dropped, &mut |view| stats_json(view)) + "\n\n"
}

/// The documents of all disks, as a list.
pub(super) fn all<'a>(disks: impl Iterator<Item = &'a DiskShared>, log_dropped: u64) -> String {
    // A view borrows from its disk's copy, so each is written by itself and the list around them
    // here.
    let documents: Vec<String> =
        disks.map(|disk| with_view(disk, log_dropped, &mut |view| stats_json(view))).collect();
    if documents.is_empty() {
        return stats_json_all(&[]) + "\n\n";
    }
    format!("[ {} ]\n\n", documents.join(", "))
}

fn with_view(
    disk: &DiskShared,
    log_dropped: u64,
    write: &mut dyn FnMut(&StatsView<'_>) -> String,
) -> String {
    let public = disk.public();
    let stats = disk.counters.load();
    let gauges = disk.gauges();
    let name = public.name.as_ref().map(|name| name.to_string_lossy());
    let paths: Vec<_> = public.images.iter().map(|image| image.path.to_string_lossy()).collect();
    let [in_flight, deferred] = gauges.queue;
    let depth = u64::try_from(QueueConfig::default().engine_depth).unwrap_or(u64::MAX);
    let images: Vec<_> = public
        .images
        .iter()
        .zip(&paths)
        .enumerate()
        .map(|(layer, (image, path))| ImageView {
            name: path,
            driver_type: image.kind.id,
            driver: image.kind.name,
            stats: disk.counters.image(layer),
            status: match image.kind.name {
                "aio" => DriverStatus::Requests { max: depth, pending: in_flight },
                _ => DriverStatus::None,
            },
        })
        .collect();
    let open = matches!(public.life, Life::Running | Life::Pausing | Life::Closing | Life::Dead);
    let [clients, nbd_taken, nbd_answered] = gauges.nbd;
    let [ring_taken, ring_answered, kicks_in, kicks_out] = gauges.ring;
    write(&StatsView {
        name: name.as_deref(),
        disk: &stats,
        images: &images,
        enospc_redirects: 0,
        nbd_mirror_failed: false,
        read_caching: public.images.iter().any(|image| image.buffered),
        queue: open.then_some(QueueView {
            engine: &disk.engine,
            depth,
            pending: in_flight,
            deferred,
        }),
        awaiting_space: gauges.awaiting_space,
        log_dropped,
        nbd: open.then_some(NbdView { clients, reqs: [nbd_taken, nbd_answered] }),
        tap: disk.has_ring.then(|| TapView {
            minor: u64::from(disk.minor),
            reqs: [ring_taken, ring_answered],
            kicks: [kicks_in, kicks_out],
        }),
    })
}
