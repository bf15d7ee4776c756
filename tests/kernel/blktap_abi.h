/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The blktap2 ABI: what the driver and its server in user space share.
 *
 * All numbers are in host order. The ioctl numbers are plain numbers, without direction and size.
 */
#ifndef BLKTAP_ABI_H
#define BLKTAP_ABI_H

#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <linux/types.h>

/* On the control device. */
#define BLKTAP_IOCTL_ALLOC_TAP			200
#define BLKTAP_IOCTL_FREE_TAP			201

/* On a ring. */
#define BLKTAP_IOCTL_RESPOND			1
#define BLKTAP_IOCTL_CREATE_DEVICE_COMPAT	202
#define BLKTAP_IOCTL_REMOVE_DEVICE		207
#define BLKTAP_IOCTL_CREATE_DEVICE		208

#define BLKTAP_NAME_SIZE			256

/* Argument of ALLOC_TAP, out. */
struct blktap_handle {
	__u32 ring_major;
	__u32 block_major;
	__u32 minor;
};
static_assert(sizeof(struct blktap_handle) == 12);

/* Argument of CREATE_DEVICE_COMPAT. */
struct blktap_compat_params {
	char name[BLKTAP_NAME_SIZE];
	__u64 capacity;
	__u64 sector_size;
};
static_assert(sizeof(struct blktap_compat_params) == 272);

/*
 * Argument of CREATE_DEVICE. Two generations share the number and the first 24 bytes but for the
 * word at 12; see the module's parameter device_info_bytes.
 */
struct blktap_info_56 {
	__u64 capacity;			/* in 512 bytes, whatever sector_size is */
	__u32 sector_size;
	__u32 physical_sector_size;
	__u64 flags;			/* BLKTAP_FLAG_READ_ONLY alone */
	__u64 reserved[4];
};
static_assert(sizeof(struct blktap_info_56) == 56);

struct blktap_info_40 {
	__u64 capacity;
	__u32 sector_size;
	__u32 hole;
	__u64 flags;			/* in; out: those of them that the driver knows */
	__u32 physical_block_size;	/* from here on copied in as far as flags ask for */
	__u32 physical_block_offset;
	__u32 trim_block_size;
	__u32 trim_block_offset;
};
static_assert(sizeof(struct blktap_info_40) == 40);
static_assert(offsetof(struct blktap_info_40, flags) == 16);
static_assert(offsetof(struct blktap_info_40, trim_block_size) == 32);

#define BLKTAP_FLAG_READ_ONLY			0x01
#define BLKTAP_FLAG_PHYSICAL_SIZE		0x02
#define BLKTAP_FLAG_FLUSH			0x04
#define BLKTAP_FLAG_TRIM			0x08
#define BLKTAP_FLAG_TRIM_READS_ZERO		0x10
#define BLKTAP_FLAGS_40				0x1f

#define BLKTAP_OP_READ				0
#define BLKTAP_OP_WRITE				1
#define BLKTAP_OP_FLUSH				2	/* 40-byte generation */
#define BLKTAP_OP_TRIM				3	/* 40-byte generation */

#define BLKTAP_STATUS_OKAY			0
#define BLKTAP_STATUS_UNSUPPORTED		(-2)

#define BLKTAP_RING_SIZE			32
#define BLKTAP_SEGMENTS_MAX			11

/* A mapping: the ring's page, then a page for each segment of each request. */
#define BLKTAP_DATA_PAGES			(BLKTAP_RING_SIZE * BLKTAP_SEGMENTS_MAX)
#define BLKTAP_MAP_PAGES			(1 + BLKTAP_DATA_PAGES)

struct blktap_segment {
	__u32 pad;
	__u8 first_sect;	/* both in 512 bytes, of a page */
	__u8 last_sect;
	__u8 tail[2];
};
static_assert(sizeof(struct blktap_segment) == 8);

struct blktap_request {
	__u8 operation;
	__u8 nr_segments;
	__u16 pad;
	__u32 hole;
	__u64 id;			/* the slot: names the data pages */
	__u64 sector_number;		/* in 512 bytes */
	union {
		struct blktap_segment segments[BLKTAP_SEGMENTS_MAX];
		__u64 nr_sectors;	/* of a trim */
	};
};
static_assert(sizeof(struct blktap_request) == 112);
static_assert(offsetof(struct blktap_request, segments) == 24);

struct blktap_response {
	__u64 id;
	__u8 operation;
	__u8 pad;
	__s16 status;
	__u32 tail;
};
static_assert(sizeof(struct blktap_response) == 16);
static_assert(offsetof(struct blktap_response, status) == 10);

union blktap_entry {
	struct blktap_request request;
	struct blktap_response response;
};

struct blktap_ring_page {
	__u32 req_prod;		/* the driver's */
	__u32 req_event;
	__u32 rsp_prod;		/* the server's */
	__u32 rsp_event;
	__u8 message;
	__u8 reserved[47];
	union blktap_entry entries[BLKTAP_RING_SIZE];
};
static_assert(offsetof(struct blktap_ring_page, entries) == 64);
static_assert(sizeof(struct blktap_ring_page) <= 4096);

#endif
