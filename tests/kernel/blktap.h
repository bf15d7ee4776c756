/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the driver share. The design - objects, locks, lifetimes - is in README.md.
 */
#ifndef BLKTAP_H
#define BLKTAP_H

#include <linux/blk-mq.h>
#include <linux/device.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/version.h>
#include <linux/wait.h>

#include "blktap_abi.h"

/* The ABI counts in pages of 4096 bytes. */
static_assert(PAGE_SIZE == 4096);

#define BLKTAP_TAPS_MAX		16384

/* Requests that the block layer hands over at most; those in the ring are among them. */
#define BLKTAP_QUEUE_DEPTH	128

/*
 * The pages of one mmap, and what is in them. Owned by its areas of memory (vmas), of which there
 * is one but for the length of an mremap.
 */
struct blktap_mapping {
	struct page *pages[BLKTAP_MAP_PAGES];
	struct blktap_ring_page *ring;	/* the address of the first one */
	/* The address space that it is in: compared, never used. */
	const struct mm_struct *mm;
	unsigned int areas;
	/* Requests published, responses consumed; never read back from the ring. */
	u32 req_prod;
	u32 rsp_cons;
	/* A bit for each slot that holds a request. */
	u32 pending;
	struct request *slots[BLKTAP_RING_SIZE];
};

/* The block device's own. */
enum blktap_state {
	BLKTAP_NONE,		/* there is none; or it is being removed */
	BLKTAP_LIVE,
};

struct blktap_params {
	u64 capacity;		/* in 512 bytes */
	u32 sector_size;
	u32 physical_size;
	u32 physical_offset;
	u32 trim_size;
	u32 trim_offset;
	bool read_only;
	bool flush;
	bool trim;
};

struct blktap {
	u32 minor;
	struct device *dev;

	/* Under the lock of the table. */
	bool is_usable;		/* ALLOC has ended, FREE has not begun */
	bool is_open;		/* the ring's file */

	/* Creating and removing the block device, one at a time. */
	struct mutex device_mutex;
	struct gendisk *disk;
	struct blk_mq_tag_set tag_set;

	/* The ring. Taken inside of mmap_lock, so nothing under it touches user memory. */
	struct mutex ring_mutex;
	struct blktap_mapping *mapping;

	/* All below. Nests inside of every other lock. */
	spinlock_t lock;
	enum blktap_state state;
	unsigned int openers;
	bool is_closed;		/* the last close was not reported yet */
	bool is_woken;		/* the server was woken for what waits */
	struct list_head waiting;
	struct blktap_params params;
	u64 bad_responses;
	struct pid *task;
	char name[BLKTAP_NAME_SIZE];

	wait_queue_head_t poll_wait;	/* the server */
	wait_queue_head_t close_wait;	/* the release of the ring */
};

/* What goes along with a request of the block layer. */
struct blktap_cmd {
	struct list_head node;
};

/* main.c */
extern u32 blktap_ring_major;
extern u32 blktap_block_major;
extern struct class *blktap_class;
extern int blktap_verbosity;
struct blktap *blktap_alloc(void);
int blktap_free(unsigned long minor);
struct blktap *blktap_open(unsigned int minor);
void blktap_close(struct blktap *tap);
ssize_t blktap_show_devices(char *buffer);

/* control.c */
int blktap_control_init(void);
void blktap_control_exit(void);

/* ring.c */
extern const struct file_operations blktap_ring_fops;
void blktap_wake(struct blktap *tap);

/* requests.c */
bool blktap_publish(struct blktap *tap, struct blktap_mapping *mapping);
void blktap_consume(struct blktap *tap, struct blktap_mapping *mapping);
int blktap_requests_init(void);
void blktap_requests_exit(void);
void blktap_fail_pending(struct blktap_mapping *mapping);
void blktap_fail_all(struct blktap *tap);

/* device.c */
extern const struct block_device_operations blktap_block_fops;
int blktap_create_device(struct blktap *tap, const struct blktap_params *params);
int blktap_remove_device(struct blktap *tap);
void blktap_orphan_device(struct blktap *tap);
void blktap_destroy_device(struct blktap *tap);

/* sysfs.c */
extern const struct attribute_group *blktap_groups[];
int blktap_class_init(void);
void blktap_class_exit(void);

#define blktap_info(tap, format, ...) do {					\
	if (blktap_verbosity > 0)						\
		pr_info("tap %u: " format, (tap)->minor, ##__VA_ARGS__);	\
} while (0)

#endif
