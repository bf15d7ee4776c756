/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where kernels from 6.1 on differ.
 */
#ifndef BLKTAP_COMPAT_H
#define BLKTAP_COMPAT_H

#include <linux/blkdev.h>
#include <linux/device/class.h>
#include <linux/mm.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define BLKTAP_CLASS_CONST const
#define blktap_class_create(name) class_create(name)
#else
#define BLKTAP_CLASS_CONST
#define blktap_class_create(name) class_create(THIS_MODULE, name)
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
#define blktap_vm_flags_set(area, flags) vm_flags_set(area, flags)
#else
#define blktap_vm_flags_set(area, flags) ((area)->vm_flags |= (flags))
#endif

/* All queues merge from here on. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
#define BLKTAP_TAG_FLAGS BLK_MQ_F_NO_SCHED_BY_DEFAULT
#else
#define BLKTAP_TAG_FLAGS (BLK_MQ_F_SHOULD_MERGE | BLK_MQ_F_NO_SCHED_BY_DEFAULT)
#endif

#endif
