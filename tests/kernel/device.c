// SPDX-License-Identifier: GPL-2.0-only
/*
 * The block device of a tap: created and removed by the server, opened by anybody.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/log2.h>
#include <linux/module.h>

#include "blktap.h"
#include "compat.h"

/* How often the wait for the last close looks again, so that it is no hung task for the kernel. */
#define BLKTAP_LOOK_AGAIN	(30 * HZ)

/* Takes a request. It waits until the server polls. */
static blk_status_t blktap_queue_rq(struct blk_mq_hw_ctx *hctx,
				    const struct blk_mq_queue_data *data)
{
	struct blktap *tap = hctx->queue->queuedata;
	struct request *rq = data->rq;
	struct blktap_cmd *cmd = blk_mq_rq_to_pdu(rq);
	blk_status_t status = BLK_STS_OK;
	bool wake = false;

	switch (req_op(rq)) {
	case REQ_OP_READ:
	case REQ_OP_FLUSH:
		break;
	case REQ_OP_WRITE:
	case REQ_OP_DISCARD:
		/* The block layer only warns of them. */
		if (tap->params.read_only)
			return BLK_STS_IOERR;
		break;
	default:
		return BLK_STS_NOTSUPP;
	}
	/* Before anybody can end it. */
	blk_mq_start_request(rq);
	spin_lock(&tap->lock);
	if (tap->state == BLKTAP_LIVE) {
		list_add_tail(&cmd->node, &tap->waiting);
		wake = data->last && !tap->is_woken;
		tap->is_woken |= wake;
	} else {
		status = BLK_STS_IOERR;
	}
	spin_unlock(&tap->lock);
	if (wake)
		blktap_wake(tap);
	return status;
}

/* The block layer announced more than it sent. */
static void blktap_commit_rqs(struct blk_mq_hw_ctx *hctx)
{
	struct blktap *tap = hctx->queue->queuedata;
	bool wake;

	spin_lock(&tap->lock);
	wake = !list_empty(&tap->waiting) && !tap->is_woken;
	tap->is_woken |= wake;
	spin_unlock(&tap->lock);
	if (wake)
		blktap_wake(tap);
}

static const struct blk_mq_ops blktap_mq_ops = {
	.queue_rq = blktap_queue_rq,
	.commit_rqs = blktap_commit_rqs,
};

static int blktap_block_opened(struct blktap *tap)
{
	int err = 0;

	spin_lock(&tap->lock);
	if (tap->state == BLKTAP_LIVE)
		tap->openers++;
	else
		err = -ENXIO;
	spin_unlock(&tap->lock);
	return err;
}

/* The disk's open_mutex is held, which del_gendisk takes, too: the tap stays until that is over. */
static void blktap_block_closed(struct blktap *tap)
{
	bool is_last;

	spin_lock(&tap->lock);
	is_last = --tap->openers == 0;
	tap->is_closed |= is_last;
	spin_unlock(&tap->lock);
	if (!is_last)
		return;
	blktap_wake(tap);
	wake_up(&tap->close_wait);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
static int blktap_block_open(struct gendisk *disk, blk_mode_t mode)
{
	return blktap_block_opened(disk->private_data);
}

static void blktap_block_release(struct gendisk *disk)
{
	blktap_block_closed(disk->private_data);
}
#else
static int blktap_block_open(struct block_device *device, fmode_t mode)
{
	return blktap_block_opened(device->bd_disk->private_data);
}

static void blktap_block_release(struct gendisk *disk, fmode_t mode)
{
	blktap_block_closed(disk->private_data);
}
#endif

const struct block_device_operations blktap_block_fops = {
	.owner = THIS_MODULE,
	.open = blktap_block_open,
	.release = blktap_block_release,
};

static int blktap_check(const struct blktap_params *params)
{
	bool is_good = params->capacity && params->capacity <= LLONG_MAX >> SECTOR_SHIFT &&
		       is_power_of_2(params->sector_size) && params->sector_size >= 512 &&
		       params->sector_size <= PAGE_SIZE && is_power_of_2(params->physical_size) &&
		       params->physical_size >= 512;

	if (params->trim && params->trim_size)
		is_good &= is_power_of_2(params->trim_size) && params->trim_size >= 512;
	return is_good ? 0 : -EINVAL;
}

static u32 blktap_trim_size(const struct blktap_params *params)
{
	return max(params->trim_size, params->sector_size);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
static struct gendisk *blktap_alloc_disk(struct blktap *tap, const struct blktap_params *params)
{
	struct queue_limits limits = {
		.logical_block_size = params->sector_size,
		.physical_block_size = max(params->physical_size, params->sector_size),
		.alignment_offset = params->physical_offset,
		.max_hw_sectors = 512,
		.max_segments = BLKTAP_SEGMENTS_MAX,
		.max_segment_size = PAGE_SIZE,
		.seg_boundary_mask = PAGE_SIZE - 1,
		.dma_alignment = SECTOR_SIZE - 1,
	};
	struct gendisk *disk;

	if (params->trim) {
		limits.max_hw_discard_sectors = UINT_MAX >> SECTOR_SHIFT;
		limits.discard_granularity = blktap_trim_size(params);
		limits.discard_alignment = params->trim_offset;
	}
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	if (params->flush)
		limits.features |= BLK_FEAT_WRITE_CACHE;
#endif
	disk = blk_mq_alloc_disk(&tap->tag_set, &limits, tap);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
	if (!IS_ERR(disk)) {
		blk_queue_write_cache(disk->queue, params->flush, false);
		blk_queue_flag_set(QUEUE_FLAG_NONROT, disk->queue);
	}
#endif
	return disk;
}
#else
static struct gendisk *blktap_alloc_disk(struct blktap *tap, const struct blktap_params *params)
{
	struct gendisk *disk = blk_mq_alloc_disk(&tap->tag_set, tap);
	struct request_queue *queue;

	if (IS_ERR(disk))
		return disk;
	queue = disk->queue;
	blk_queue_logical_block_size(queue, params->sector_size);
	blk_queue_physical_block_size(queue, max(params->physical_size, params->sector_size));
	blk_queue_alignment_offset(queue, params->physical_offset);
	blk_queue_max_hw_sectors(queue, 512);
	blk_queue_max_segments(queue, BLKTAP_SEGMENTS_MAX);
	blk_queue_max_segment_size(queue, PAGE_SIZE);
	blk_queue_segment_boundary(queue, PAGE_SIZE - 1);
	blk_queue_dma_alignment(queue, SECTOR_SIZE - 1);
	blk_queue_write_cache(queue, params->flush, false);
	blk_queue_flag_set(QUEUE_FLAG_NONROT, queue);
	if (params->trim) {
		blk_queue_max_discard_sectors(queue, UINT_MAX >> SECTOR_SHIFT);
		queue->limits.discard_granularity = blktap_trim_size(params);
		queue->limits.discard_alignment = params->trim_offset;
	}
	return disk;
}
#endif

/* tda to tdz, tdaa, ... */
static void blktap_name_disk(char *name, u32 minor)
{
	char letters[8];
	unsigned int count = 0;
	int number;

	for (number = minor; number >= 0; number = number / 26 - 1)
		letters[count++] = 'a' + number % 26;
	*name++ = 't';
	*name++ = 'd';
	while (count)
		*name++ = letters[--count];
	*name = 0;
}

static void blktap_set_state(struct blktap *tap, enum blktap_state state)
{
	spin_lock(&tap->lock);
	tap->state = state;
	spin_unlock(&tap->lock);
}

static int blktap_add_disk(struct blktap *tap, const struct blktap_params *params)
{
	struct gendisk *disk = blktap_alloc_disk(tap, params);
	int err;

	if (IS_ERR(disk))
		return PTR_ERR(disk);
	disk->major = blktap_block_major;
	disk->first_minor = tap->minor;
	disk->minors = 1;
	/* No partitions: nothing here reads the disk before the server serves it. */
	disk->flags |= GENHD_FL_NO_PART;
	disk->fops = &blktap_block_fops;
	disk->private_data = tap;
	blktap_name_disk(disk->disk_name, tap->minor);
	set_capacity(disk, params->capacity);
	set_disk_ro(disk, params->read_only);
	/* It can be opened before add_disk returns. */
	spin_lock(&tap->lock);
	tap->params = *params;
	tap->openers = 0;
	tap->is_closed = false;
	tap->state = BLKTAP_LIVE;
	spin_unlock(&tap->lock);
	err = add_disk(disk);
	if (err) {
		blktap_set_state(tap, BLKTAP_NONE);
		blktap_fail_all(tap);
		put_disk(disk);
		return err;
	}
	tap->disk = disk;
	return 0;
}

int blktap_create_device(struct blktap *tap, const struct blktap_params *params)
{
	int err;

	mutex_lock(&tap->device_mutex);
	err = tap->disk ? -EEXIST : blktap_check(params);
	if (err)
		goto out;
	memset(&tap->tag_set, 0, sizeof(tap->tag_set));
	tap->tag_set.ops = &blktap_mq_ops;
	tap->tag_set.nr_hw_queues = 1;
	tap->tag_set.queue_depth = BLKTAP_QUEUE_DEPTH;
	tap->tag_set.numa_node = NUMA_NO_NODE;
	tap->tag_set.cmd_size = sizeof(struct blktap_cmd);
	tap->tag_set.flags = BLKTAP_TAG_FLAGS;
	err = blk_mq_alloc_tag_set(&tap->tag_set);
	if (err)
		goto out;
	err = blktap_add_disk(tap, params);
	if (err)
		blk_mq_free_tag_set(&tap->tag_set);
out:
	mutex_unlock(&tap->device_mutex);
	if (!err)
		blktap_info(tap, "device created, %llu sectors\n", params->capacity);
	return err;
}

/* The device is not live and not open. Ends what is there, so that nothing waits for the server. */
static void blktap_delete(struct blktap *tap)
{
	blktap_fail_all(tap);
	del_gendisk(tap->disk);
	put_disk(tap->disk);
	tap->disk = NULL;
	blk_mq_free_tag_set(&tap->tag_set);
	blktap_info(tap, "device removed\n");
}

/* On the server's behalf. */
int blktap_remove_device(struct blktap *tap)
{
	int err = 0;

	mutex_lock(&tap->device_mutex);
	if (!tap->disk)
		goto out;
	spin_lock(&tap->lock);
	if (tap->openers)
		err = -EBUSY;
	else
		tap->state = BLKTAP_NONE;
	spin_unlock(&tap->lock);
	if (!err)
		blktap_delete(tap);
out:
	mutex_unlock(&tap->device_mutex);
	return err;
}

static bool blktap_has_openers(struct blktap *tap)
{
	bool has_openers;

	spin_lock(&tap->lock);
	has_openers = tap->openers;
	spin_unlock(&tap->lock);
	return has_openers;
}

/*
 * The server ends: no more requests, no more openers, and what there is fails. Waits for nobody, so
 * it can be done for all disks of a process before the release of the first waits for its users.
 */
void blktap_orphan_device(struct blktap *tap)
{
	mutex_lock(&tap->device_mutex);
	if (tap->disk) {
		blktap_set_state(tap, BLKTAP_NONE);
		blktap_fail_all(tap);
	}
	mutex_unlock(&tap->device_mutex);
}

/* The server is gone, so nobody else creates or removes. No new openers come; waits for the rest. */
void blktap_destroy_device(struct blktap *tap)
{
	mutex_lock(&tap->device_mutex);
	if (tap->disk) {
		blktap_set_state(tap, BLKTAP_NONE);
		blktap_fail_all(tap);
		while (!wait_event_timeout(tap->close_wait, !blktap_has_openers(tap),
					   BLKTAP_LOOK_AGAIN))
			;
		blktap_delete(tap);
	}
	mutex_unlock(&tap->device_mutex);
}
