// SPDX-License-Identifier: GPL-2.0-only
/*
 * blktap: a block device whose requests a process serves through a ring of shared memory.
 *
 * The table of taps, and the module.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cdev.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "blktap.h"

u32 blktap_ring_major;
u32 blktap_block_major;

static struct cdev blktap_cdev;

static unsigned int taps_max = BLKTAP_TAPS_MAX;
module_param(taps_max, uint, 0644);
MODULE_PARM_DESC(taps_max, "How many taps there may be at once: 1 to 16384");

/* Minors. An entry without a tap is a minor that is reserved while its tap is made. */
static DEFINE_XARRAY_ALLOC(blktap_taps);
/* Guards which taps there are and whose rings are open. Nothing else is taken under it. */
static DEFINE_MUTEX(blktap_taps_mutex);

static struct blktap *blktap_new(void)
{
	struct blktap *tap = kzalloc(sizeof(*tap), GFP_KERNEL);

	if (!tap)
		return NULL;
	mutex_init(&tap->device_mutex);
	mutex_init(&tap->ring_mutex);
	spin_lock_init(&tap->lock);
	INIT_LIST_HEAD(&tap->waiting);
	init_waitqueue_head(&tap->poll_wait);
	init_waitqueue_head(&tap->close_wait);
	return tap;
}

static void blktap_erase(u32 minor)
{
	mutex_lock(&blktap_taps_mutex);
	xa_erase(&blktap_taps, minor);
	mutex_unlock(&blktap_taps_mutex);
}

/* The minor is in the table before the device has its name, and until it has lost it. */
struct blktap *blktap_alloc(void)
{
	u32 last = clamp(READ_ONCE(taps_max), 1U, (unsigned int)BLKTAP_TAPS_MAX) - 1;
	struct blktap *tap = blktap_new();
	int err;

	if (!tap)
		return ERR_PTR(-ENOMEM);
	err = xa_alloc(&blktap_taps, &tap->minor, tap, XA_LIMIT(0, last), GFP_KERNEL);
	if (err) {
		/* EBUSY: all of them are taken. */
		kfree(tap);
		return ERR_PTR(-ENOMEM);
	}
	tap->dev = device_create_with_groups(blktap_class, NULL,
					     MKDEV(blktap_ring_major, tap->minor), tap,
					     blktap_groups, "blktap!blktap%u", tap->minor);
	if (IS_ERR(tap->dev)) {
		err = PTR_ERR(tap->dev);
		blktap_erase(tap->minor);
		kfree(tap);
		return ERR_PTR(err);
	}
	__module_get(THIS_MODULE);
	mutex_lock(&blktap_taps_mutex);
	tap->is_usable = true;
	mutex_unlock(&blktap_taps_mutex);
	blktap_info(tap, "allocated\n");
	return tap;
}

int blktap_free(unsigned long minor)
{
	struct blktap *tap;
	int err = 0;

	if (minor >= BLKTAP_TAPS_MAX)
		return -EINVAL;
	mutex_lock(&blktap_taps_mutex);
	tap = xa_load(&blktap_taps, minor);
	if (!tap || !tap->is_usable)
		err = -ENODEV;
	else if (tap->is_open)
		err = -EBUSY;
	else
		tap->is_usable = false;
	mutex_unlock(&blktap_taps_mutex);
	if (err)
		return err;
	/* Ours alone now. Waits for those who read its attributes. */
	device_unregister(tap->dev);
	blktap_erase(minor);
	blktap_info(tap, "freed\n");
	kfree(tap);
	module_put(THIS_MODULE);
	return 0;
}

/* The one opener of a ring. It keeps the tap from being freed until blktap_close(). */
struct blktap *blktap_open(unsigned int minor)
{
	struct blktap *tap;

	mutex_lock(&blktap_taps_mutex);
	tap = xa_load(&blktap_taps, minor);
	if (!tap || !tap->is_usable)
		tap = ERR_PTR(-ENXIO);
	else if (tap->is_open)
		tap = ERR_PTR(-EBUSY);
	else
		tap->is_open = true;
	mutex_unlock(&blktap_taps_mutex);
	return tap;
}

/* The tap may be gone when this returns. */
void blktap_close(struct blktap *tap)
{
	mutex_lock(&blktap_taps_mutex);
	tap->is_open = false;
	mutex_unlock(&blktap_taps_mutex);
}

/* A line for each tap that has a block device, as far as they fit into a page. */
ssize_t blktap_show_devices(char *buffer)
{
	struct blktap *tap;
	unsigned long minor;
	ssize_t length = 0;

	mutex_lock(&blktap_taps_mutex);
	xa_for_each(&blktap_taps, minor, tap) {
		spin_lock(&tap->lock);
		if (tap->state == BLKTAP_LIVE && tap->name[0])
			length += sysfs_emit_at(buffer, length, "%u %s\n", tap->minor, tap->name);
		else if (tap->state == BLKTAP_LIVE)
			length += sysfs_emit_at(buffer, length, "%u %u\n", tap->minor, tap->minor);
		spin_unlock(&tap->lock);
	}
	mutex_unlock(&blktap_taps_mutex);
	return length;
}

static int __init blktap_init_ring(void)
{
	dev_t first;
	int err = alloc_chrdev_region(&first, 0, BLKTAP_TAPS_MAX, "blktap2");

	if (err)
		return err;
	blktap_ring_major = MAJOR(first);
	cdev_init(&blktap_cdev, &blktap_ring_fops);
	blktap_cdev.owner = THIS_MODULE;
	err = cdev_add(&blktap_cdev, first, BLKTAP_TAPS_MAX);
	if (err)
		unregister_chrdev_region(first, BLKTAP_TAPS_MAX);
	return err;
}

static void blktap_exit_ring(void)
{
	cdev_del(&blktap_cdev);
	unregister_chrdev_region(MKDEV(blktap_ring_major, 0), BLKTAP_TAPS_MAX);
}

static int __init blktap_init(void)
{
	int err = register_blkdev(0, "tapdev");

	if (err < 0)
		return err;
	blktap_block_major = err;
	err = blktap_requests_init();
	if (err)
		goto out_block;
	err = blktap_class_init();
	if (err)
		goto out_requests;
	err = blktap_init_ring();
	if (err)
		goto out_class;
	/* Last: from here on taps can be allocated. */
	err = blktap_control_init();
	if (err)
		goto out_ring;
	return 0;

out_ring:
	blktap_exit_ring();
out_class:
	blktap_class_exit();
out_requests:
	blktap_requests_exit();
out_block:
	unregister_blkdev(blktap_block_major, "tapdev");
	return err;
}

/* Taps hold the module, so there are none. */
static void __exit blktap_exit(void)
{
	blktap_control_exit();
	blktap_exit_ring();
	blktap_class_exit();
	blktap_requests_exit();
	unregister_blkdev(blktap_block_major, "tapdev");
	xa_destroy(&blktap_taps);
}

module_init(blktap_init);
module_exit(blktap_exit);
MODULE_DESCRIPTION("blktap2: block devices served by processes");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
