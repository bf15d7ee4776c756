// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control device: allocates and frees taps.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kobject.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "blktap.h"

/* What the pool of the production driver has: two rings full of segments. There is none here. */
#define BLKTAP_POOL_PAGES	(2 * BLKTAP_DATA_PAGES)

static long blktap_control_alloc(void __user *argument)
{
	struct blktap *tap = blktap_alloc();
	struct blktap_handle handle;

	if (IS_ERR(tap))
		return PTR_ERR(tap);
	handle.ring_major = blktap_ring_major;
	handle.block_major = blktap_block_major;
	handle.minor = tap->minor;
	if (!copy_to_user(argument, &handle, sizeof(handle)))
		return 0;
	/* Whoever guessed the number meanwhile keeps it. */
	blktap_free(handle.minor);
	return -EFAULT;
}

static long blktap_control_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	switch (number) {
	case BLKTAP_IOCTL_ALLOC_TAP:
		return blktap_control_alloc((void __user *)argument);
	case BLKTAP_IOCTL_FREE_TAP:
		return blktap_free(argument);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations blktap_control_fops = {
	.owner = THIS_MODULE,
	.open = nonseekable_open,
	.unlocked_ioctl = blktap_control_ioctl,
	.llseek = noop_llseek,
};

static ssize_t default_pool_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "default\n");
}
static DEVICE_ATTR_RO(default_pool);

static struct attribute *blktap_control_attrs[] = {
	&dev_attr_default_pool.attr,
	NULL,
};
ATTRIBUTE_GROUPS(blktap_control);

static struct miscdevice blktap_control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "blktap/control",
	.nodename = "blktap/control",
	.mode = 0600,
	.fops = &blktap_control_fops,
	.groups = blktap_control_groups,
};

static ssize_t size_show(struct kobject *kobj, struct kobj_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%d\n", BLKTAP_POOL_PAGES);
}

static struct kobj_attribute size_attr = __ATTR_RO(size);
static struct kobj_attribute free_attr = __ATTR(free, 0444, size_show, NULL);
static const struct attribute *blktap_pool_attrs[] = {
	&size_attr.attr,
	&free_attr.attr,
	NULL,
};

static struct kobject *blktap_pools;
static struct kobject *blktap_pool;

static int blktap_pools_init(struct kobject *parent)
{
	int err;

	blktap_pools = kobject_create_and_add("pools", parent);
	if (!blktap_pools)
		return -ENOMEM;
	blktap_pool = kobject_create_and_add("default", blktap_pools);
	if (!blktap_pool) {
		kobject_put(blktap_pools);
		return -ENOMEM;
	}
	err = sysfs_create_files(blktap_pool, blktap_pool_attrs);
	if (err) {
		kobject_put(blktap_pool);
		kobject_put(blktap_pools);
	}
	return err;
}

int blktap_control_init(void)
{
	int err = misc_register(&blktap_control);

	if (err)
		return err;
	err = blktap_pools_init(&blktap_control.this_device->kobj);
	if (err)
		misc_deregister(&blktap_control);
	return err;
}

void blktap_control_exit(void)
{
	sysfs_remove_files(blktap_pool, blktap_pool_attrs);
	kobject_put(blktap_pool);
	kobject_put(blktap_pools);
	misc_deregister(&blktap_control);
}
