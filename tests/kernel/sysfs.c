// SPDX-License-Identifier: GPL-2.0-only
/*
 * The class blktap2 and the attributes of a tap.
 *
 * None of them waits for anything slow, and none takes the mutex under which devices come and go:
 * FREE waits for them.
 */
#include <linux/module.h>
#include <linux/pid.h>

#include "blktap.h"
#include "compat.h"

struct class *blktap_class;
int blktap_verbosity;

static ssize_t name_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	struct blktap *tap = dev_get_drvdata(dev);
	ssize_t length;

	spin_lock(&tap->lock);
	if (tap->name[0])
		length = sysfs_emit(buffer, "%s\n", tap->name);
	else
		length = sysfs_emit(buffer, "%u\n", tap->minor);
	spin_unlock(&tap->lock);
	return length;
}

static ssize_t name_store(struct device *dev, struct device_attribute *attr, const char *buffer,
			  size_t size)
{
	struct blktap *tap = dev_get_drvdata(dev);
	size_t length = size;

	if (length && buffer[length - 1] == '\n')
		length--;
	if (length >= BLKTAP_NAME_SIZE)
		return -ENAMETOOLONG;
	spin_lock(&tap->lock);
	memset(tap->name, 0, sizeof(tap->name));
	memcpy(tap->name, buffer, length);
	spin_unlock(&tap->lock);
	return size;
}
static DEVICE_ATTR_RW(name);

static ssize_t task_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	struct blktap *tap = dev_get_drvdata(dev);
	struct pid *task;
	ssize_t length = 0;

	spin_lock(&tap->lock);
	task = get_pid(tap->task);
	spin_unlock(&tap->lock);
	if (task)
		length = sysfs_emit(buffer, "%d\n", pid_vnr(task));
	put_pid(task);
	return length;
}
static DEVICE_ATTR_RO(task);

static ssize_t pool_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "default\n");
}

static ssize_t pool_store(struct device *dev, struct device_attribute *attr, const char *buffer,
			  size_t size)
{
	return sysfs_streq(buffer, "default") ? size : -ENOENT;
}
static DEVICE_ATTR_RW(pool);

static ssize_t blktap_show_ring(struct blktap *tap, char *buffer, ssize_t length)
{
	const struct blktap_mapping *mapping;

	mutex_lock(&tap->ring_mutex);
	mapping = tap->mapping;
	if (!mapping) {
		length += sysfs_emit_at(buffer, length, "ring: not mapped\n");
	} else {
		length += sysfs_emit_at(buffer, length,
					"ring: published %u consumed %u pending %08x\n",
					mapping->req_prod, mapping->rsp_cons, mapping->pending);
	}
	mutex_unlock(&tap->ring_mutex);
	return length;
}

static ssize_t debug_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	struct blktap *tap = dev_get_drvdata(dev);
	ssize_t length = 0;

	spin_lock(&tap->lock);
	length += sysfs_emit_at(buffer, length, "tap %u:%u name '%s' %s\n", blktap_ring_major,
				tap->minor, tap->name, tap->state == BLKTAP_LIVE ? "live" : "none");
	length += sysfs_emit_at(buffer, length, "pool: default\n");
	if (tap->state == BLKTAP_LIVE) {
		const struct blktap_params *params = &tap->params;

		length += sysfs_emit_at(buffer, length, "capacity: %llu sectors of %u bytes%s%s%s\n",
					params->capacity, params->sector_size,
					params->read_only ? ", read-only" : "",
					params->flush ? ", flush" : "",
					params->trim ? ", trim" : "");
	}
	length += sysfs_emit_at(buffer, length, "openers: %u closed: %d\n", tap->openers,
				tap->is_closed);
	length += sysfs_emit_at(buffer, length, "waiting: %d woken: %d\n",
				!list_empty(&tap->waiting), tap->is_woken);
	length += sysfs_emit_at(buffer, length, "bad responses: %llu\n", tap->bad_responses);
	spin_unlock(&tap->lock);
	return blktap_show_ring(tap, buffer, length);
}
static DEVICE_ATTR(debug, 0400, debug_show, NULL);

static struct attribute *blktap_attrs[] = {
	&dev_attr_name.attr,
	&dev_attr_task.attr,
	&dev_attr_pool.attr,
	&dev_attr_debug.attr,
	NULL,
};
static const struct attribute_group blktap_group = { .attrs = blktap_attrs };
const struct attribute_group *blktap_groups[] = { &blktap_group, NULL };

static ssize_t verbosity_show(BLKTAP_CLASS_CONST struct class *class,
			      BLKTAP_CLASS_CONST struct class_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%d\n", READ_ONCE(blktap_verbosity));
}

static ssize_t verbosity_store(BLKTAP_CLASS_CONST struct class *class,
			       BLKTAP_CLASS_CONST struct class_attribute *attr, const char *buffer,
			       size_t size)
{
	int value;
	int err = kstrtoint(buffer, 0, &value);

	if (err)
		return err;
	WRITE_ONCE(blktap_verbosity, value);
	return size;
}
static CLASS_ATTR_RW(verbosity);

static ssize_t devices_show(BLKTAP_CLASS_CONST struct class *class,
			    BLKTAP_CLASS_CONST struct class_attribute *attr, char *buffer)
{
	return blktap_show_devices(buffer);
}
static CLASS_ATTR_RO(devices);

int blktap_class_init(void)
{
	int err;

	blktap_class = blktap_class_create("blktap2");
	if (IS_ERR(blktap_class))
		return PTR_ERR(blktap_class);
	err = class_create_file(blktap_class, &class_attr_verbosity);
	if (err)
		goto out_class;
	err = class_create_file(blktap_class, &class_attr_devices);
	if (err)
		goto out_verbosity;
	return 0;

out_verbosity:
	class_remove_file(blktap_class, &class_attr_verbosity);
out_class:
	class_destroy(blktap_class);
	return err;
}

void blktap_class_exit(void)
{
	class_remove_file(blktap_class, &class_attr_devices);
	class_remove_file(blktap_class, &class_attr_verbosity);
	class_destroy(blktap_class);
}
