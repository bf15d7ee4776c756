// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ring's file: open, mmap, poll, ioctl, close.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/pid.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "blktap.h"
#include "compat.h"

static unsigned int device_info_bytes = sizeof(struct blktap_info_40);
module_param(device_info_bytes, uint, 0644);
MODULE_PARM_DESC(device_info_bytes,
		 "The struct of CREATE_DEVICE: 40 (dkms, with flush and trim) or 56 (XCP)");

/* Wakes the server, whose poll then moves what waits into the ring. */
void blktap_wake(struct blktap *tap)
{
	wake_up_interruptible_poll(&tap->poll_wait, EPOLLIN | EPOLLRDNORM);
}

static void blktap_wake_if_waiting(struct blktap *tap)
{
	bool is_waiting;

	spin_lock(&tap->lock);
	is_waiting = !list_empty(&tap->waiting);
	tap->is_woken |= is_waiting;
	spin_unlock(&tap->lock);
	if (is_waiting)
		blktap_wake(tap);
}

static int blktap_ring_open(struct inode *inode, struct file *file)
{
	struct blktap *tap = blktap_open(iminor(inode));

	if (IS_ERR(tap))
		return PTR_ERR(tap);
	file->private_data = tap;
	spin_lock(&tap->lock);
	tap->task = get_pid(task_tgid(current));
	spin_unlock(&tap->lock);
	return nonseekable_open(inode, file);
}

/*
 * A process that ends comes here with each of its files before the first one is released, and the
 * releases come one after the other: one that waits for its device's users would keep the requests
 * of all other disks waiting for a server that is gone.
 */
static int blktap_ring_flush(struct file *file, fl_owner_t id)
{
	struct blktap *tap = file->private_data;
	bool is_server;

	if (!(current->flags & PF_EXITING))
		return 0;
	/* Others may have got the file from it. */
	spin_lock(&tap->lock);
	is_server = tap->task == task_tgid(current);
	spin_unlock(&tap->lock);
	if (is_server)
		blktap_orphan_device(tap);
	return 0;
}

/*
 * Areas of memory hold the file, so the ring is not mapped any more. Waits for the last close of
 * the block device, which has failed all its requests by then.
 */
static int blktap_ring_release(struct inode *inode, struct file *file)
{
	struct blktap *tap = file->private_data;
	struct pid *task;

	WARN_ON_ONCE(tap->mapping);
	blktap_destroy_device(tap);
	spin_lock(&tap->lock);
	task = tap->task;
	tap->task = NULL;
	spin_unlock(&tap->lock);
	put_pid(task);
	blktap_close(tap);
	return 0;
}

static void blktap_mapping_free(struct blktap_mapping *mapping)
{
	unsigned int i;

	/* Pages that are under somebody's I/O live on until that ends. */
	for (i = 0; i < BLKTAP_MAP_PAGES && mapping->pages[i]; i++)
		__free_page(mapping->pages[i]);
	kvfree(mapping);
}

static struct blktap_mapping *blktap_mapping_alloc(void)
{
	struct blktap_mapping *mapping = kvzalloc(sizeof(*mapping), GFP_KERNEL);
	unsigned int i;

	if (!mapping)
		return NULL;
	for (i = 0; i < BLKTAP_MAP_PAGES; i++) {
		mapping->pages[i] = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
		if (!mapping->pages[i]) {
			blktap_mapping_free(mapping);
			return NULL;
		}
	}
	mapping->ring = page_address(mapping->pages[0]);
	mapping->ring->req_event = 1;
	mapping->ring->rsp_event = 1;
	return mapping;
}

/* mremap makes the new area before it closes the old one. */
static void blktap_area_open(struct vm_area_struct *area)
{
	struct blktap *tap = area->vm_file->private_data;
	struct blktap_mapping *mapping = area->vm_private_data;

	mutex_lock(&tap->ring_mutex);
	mapping->areas++;
	mutex_unlock(&tap->ring_mutex);
}

static void blktap_area_close(struct vm_area_struct *area)
{
	struct blktap *tap = area->vm_file->private_data;
	struct blktap_mapping *mapping = area->vm_private_data;
	bool is_last;

	mutex_lock(&tap->ring_mutex);
	is_last = --mapping->areas == 0;
	if (is_last) {
		WARN_ON_ONCE(tap->mapping != mapping);
		tap->mapping = NULL;
	}
	mutex_unlock(&tap->ring_mutex);
	if (!is_last)
		return;
	/* Nobody else knows it any more. */
	blktap_fail_pending(mapping);
	blktap_mapping_free(mapping);
	blktap_info(tap, "unmapped\n");
}

/* The pages come and go together. */
static int blktap_area_may_split(struct vm_area_struct *area, unsigned long address)
{
	return -EINVAL;
}

/* All pages are there from the start, but may have been dropped by madvise. */
static vm_fault_t blktap_area_fault(struct vm_fault *fault)
{
	struct blktap_mapping *mapping = fault->vma->vm_private_data;

	if (fault->pgoff >= BLKTAP_MAP_PAGES)
		return VM_FAULT_SIGBUS;
	fault->page = mapping->pages[fault->pgoff];
	get_page(fault->page);
	return 0;
}

static const struct vm_operations_struct blktap_area_ops = {
	.open = blktap_area_open,
	.close = blktap_area_close,
	.may_split = blktap_area_may_split,
	.fault = blktap_area_fault,
};

static int blktap_ring_mmap(struct file *file, struct vm_area_struct *area)
{
	struct blktap *tap = file->private_data;
	struct blktap_mapping *mapping;
	unsigned long count = BLKTAP_MAP_PAGES;
	unsigned int noio;
	int err;

	if (!(area->vm_flags & VM_SHARED) || area->vm_pgoff || vma_pages(area) != count)
		return -EINVAL;
	/* Reclaim must not wait for writes to a device that waits for this mapping. */
	noio = memalloc_noio_save();
	mapping = blktap_mapping_alloc();
	if (!mapping) {
		err = -ENOMEM;
		goto out_noio;
	}
	mapping->mm = area->vm_mm;
	mapping->areas = 1;
	mutex_lock(&tap->ring_mutex);
	if (tap->mapping) {
		err = -EBUSY;
	} else {
		err = vm_insert_pages(area, area->vm_start, mapping->pages, &count);
		if (!err)
			tap->mapping = mapping;
	}
	mutex_unlock(&tap->ring_mutex);
	if (err) {
		blktap_mapping_free(mapping);
		goto out_noio;
	}
	area->vm_private_data = mapping;
	area->vm_ops = &blktap_area_ops;
	blktap_vm_flags_set(area, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	/* What has been waiting for a ring. */
	blktap_wake_if_waiting(tap);
	blktap_info(tap, "mapped\n");
out_noio:
	memalloc_noio_restore(noio);
	return err;
}

/* The mapping, when the caller's address space is the one that has it. */
static struct blktap_mapping *blktap_own_mapping(struct blktap *tap)
{
	struct blktap_mapping *mapping = tap->mapping;

	return mapping && mapping->mm == current->mm ? mapping : NULL;
}

/*
 * The only place where requests move into the ring. Readable means: this very call has moved some,
 * or the block device was closed.
 */
static __poll_t blktap_ring_poll(struct file *file, struct poll_table_struct *table)
{
	struct blktap *tap = file->private_data;
	struct blktap_mapping *mapping;
	bool has_news = false;

	poll_wait(file, &tap->poll_wait, table);
	mutex_lock(&tap->ring_mutex);
	mapping = blktap_own_mapping(tap);
	if (mapping) {
		has_news = blktap_publish(tap, mapping);
		spin_lock(&tap->lock);
		has_news |= tap->is_closed;
		tap->is_closed = false;
		spin_unlock(&tap->lock);
	}
	mutex_unlock(&tap->ring_mutex);
	return has_news ? EPOLLIN | EPOLLRDNORM : 0;
}

static int blktap_ring_respond(struct blktap *tap)
{
	struct blktap_mapping *mapping;

	mutex_lock(&tap->ring_mutex);
	mapping = blktap_own_mapping(tap);
	if (mapping)
		blktap_consume(tap, mapping);
	mutex_unlock(&tap->ring_mutex);
	if (!mapping)
		return -EACCES;
	/* There is room for it now. */
	blktap_wake_if_waiting(tap);
	return 0;
}

static int blktap_ring_create_compat(struct blktap *tap, void __user *argument)
{
	struct blktap_compat_params from;
	struct blktap_params params = {};
	int err;

	if (copy_from_user(&from, argument, sizeof(from)))
		return -EFAULT;
	if (from.sector_size > U32_MAX)
		return -EINVAL;
	params.capacity = from.capacity;
	params.sector_size = from.sector_size;
	params.physical_size = from.sector_size;
	err = blktap_create_device(tap, &params);
	if (err || !from.name[0])
		return err;
	from.name[BLKTAP_NAME_SIZE - 1] = 0;
	spin_lock(&tap->lock);
	memcpy(tap->name, from.name, sizeof(tap->name));
	spin_unlock(&tap->lock);
	return 0;
}

static int blktap_ring_create_56(struct blktap *tap, void __user *argument)
{
	struct blktap_info_56 info;
	struct blktap_params params = {};

	if (copy_from_user(&info, argument, sizeof(info)))
		return -EFAULT;
	params.capacity = info.capacity;
	params.sector_size = info.sector_size;
	params.physical_size = info.physical_sector_size;
	params.read_only = info.flags & BLKTAP_FLAG_READ_ONLY;
	return blktap_create_device(tap, &params);
}

static int blktap_ring_create_40(struct blktap *tap, void __user *argument)
{
	struct blktap_info_40 __user *user = argument;
	struct blktap_info_40 info = {};
	struct blktap_params params = {};
	size_t size = offsetof(struct blktap_info_40, physical_block_size);

	if (copy_from_user(&info, user, size))
		return -EFAULT;
	info.flags &= BLKTAP_FLAGS_40;
	if (info.flags & BLKTAP_FLAG_TRIM)
		size = sizeof(info);
	else if (info.flags & BLKTAP_FLAG_PHYSICAL_SIZE)
		size = offsetof(struct blktap_info_40, trim_block_size);
	/* The flags are taken from the first copy. */
	if (size > offsetofend(struct blktap_info_40, flags) &&
	    copy_from_user(&info.physical_block_size, &user->physical_block_size,
			   size - offsetof(struct blktap_info_40, physical_block_size)))
		return -EFAULT;
	if (put_user(info.flags, &user->flags))
		return -EFAULT;
	params.capacity = info.capacity;
	params.sector_size = info.sector_size;
	params.physical_size = info.sector_size;
	params.read_only = info.flags & BLKTAP_FLAG_READ_ONLY;
	params.flush = info.flags & BLKTAP_FLAG_FLUSH;
	params.trim = info.flags & BLKTAP_FLAG_TRIM;
	if (info.flags & BLKTAP_FLAG_PHYSICAL_SIZE) {
		params.physical_size = info.physical_block_size;
		params.physical_offset = info.physical_block_offset;
	}
	if (params.trim) {
		params.trim_size = info.trim_block_size;
		params.trim_offset = info.trim_block_offset;
	}
	return blktap_create_device(tap, &params);
}

static bool blktap_is_own(struct blktap *tap)
{
	bool is_own;

	mutex_lock(&tap->ring_mutex);
	is_own = blktap_own_mapping(tap);
	mutex_unlock(&tap->ring_mutex);
	return is_own;
}

static long blktap_ring_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	struct blktap *tap = file->private_data;
	void __user *pointer = (void __user *)argument;

	if (number == BLKTAP_IOCTL_RESPOND)
		return blktap_ring_respond(tap);
	if (!blktap_is_own(tap))
		return -EACCES;
	switch (number) {
	case BLKTAP_IOCTL_CREATE_DEVICE_COMPAT:
		return blktap_ring_create_compat(tap, pointer);
	case BLKTAP_IOCTL_REMOVE_DEVICE:
		return blktap_remove_device(tap);
	case BLKTAP_IOCTL_CREATE_DEVICE:
		if (READ_ONCE(device_info_bytes) == sizeof(struct blktap_info_56))
			return blktap_ring_create_56(tap, pointer);
		return blktap_ring_create_40(tap, pointer);
	default:
		return -ENOTTY;
	}
}

const struct file_operations blktap_ring_fops = {
	.owner = THIS_MODULE,
	.open = blktap_ring_open,
	.flush = blktap_ring_flush,
	.release = blktap_ring_release,
	.mmap = blktap_ring_mmap,
	.poll = blktap_ring_poll,
	.unlocked_ioctl = blktap_ring_ioctl,
	.llseek = noop_llseek,
};
