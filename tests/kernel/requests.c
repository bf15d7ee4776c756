// SPDX-License-Identifier: GPL-2.0-only
/*
 * Requests: into the ring and out of it. All of it under the ring's mutex, but where a mapping or a
 * list of requests belongs to the caller alone.
 *
 * What the server writes is read once, checked, and used from the copy. The layout of a request's
 * data is computed from the request each time, never read back from the ring.
 */
#include <linux/bvec.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/workqueue.h>

#include "blktap.h"

static u8 blktap_operation(const struct request *rq)
{
	switch (req_op(rq)) {
	case REQ_OP_READ:
		return BLKTAP_OP_READ;
	case REQ_OP_WRITE:
		return BLKTAP_OP_WRITE;
	case REQ_OP_FLUSH:
		return BLKTAP_OP_FLUSH;
	default:
		return BLKTAP_OP_TRIM;
	}
}

static bool blktap_has_data(const struct request *rq)
{
	return req_op(rq) == REQ_OP_READ || req_op(rq) == REQ_OP_WRITE;
}

/*
 * The segments of a request: as they lie in the caller's pages or, should one of them not consist
 * of sectors, packed. 0: too many, which the limits of the queue rule out.
 */
static unsigned int blktap_layout(struct request *rq, struct blktap_segment *segments)
{
	unsigned int bytes = blk_rq_bytes(rq);
	unsigned int count = 0;
	struct req_iterator iter;
	struct bio_vec piece;

	rq_for_each_segment(piece, rq, iter) {
		if ((piece.bv_offset | piece.bv_len) & (SECTOR_SIZE - 1))
			goto packed;
		if (count == BLKTAP_SEGMENTS_MAX)
			return 0;
		segments[count].first_sect = piece.bv_offset >> SECTOR_SHIFT;
		segments[count].last_sect =
			((piece.bv_offset + piece.bv_len) >> SECTOR_SHIFT) - 1;
		count++;
	}
	return count;

packed:
	if (bytes > BLKTAP_SEGMENTS_MAX * PAGE_SIZE)
		return 0;
	for (count = 0; bytes; count++) {
		unsigned int here = min_t(unsigned int, bytes, PAGE_SIZE);

		segments[count].first_sect = 0;
		segments[count].last_sect = (here >> SECTOR_SHIFT) - 1;
		bytes -= here;
	}
	return count;
}

/* Where the next byte of a request lies in the data pages. */
struct blktap_cursor {
	const struct blktap_segment *segment;
	struct page **page;
	unsigned int offset;
	unsigned int left;	/* of this segment */
};

static void blktap_cursor_set(struct blktap_cursor *cursor)
{
	const struct blktap_segment *segment = cursor->segment;

	cursor->offset = segment->first_sect << SECTOR_SHIFT;
	cursor->left = (segment->last_sect - segment->first_sect + 1) << SECTOR_SHIFT;
}

static void blktap_cursor_copy(struct blktap_cursor *cursor, u8 *bytes, unsigned int size,
			       bool to_ring)
{
	while (size) {
		unsigned int here;
		u8 *ring;

		if (!cursor->left) {
			cursor->segment++;
			cursor->page++;
			blktap_cursor_set(cursor);
		}
		here = min(size, cursor->left);
		ring = (u8 *)page_address(*cursor->page) + cursor->offset;
		if (to_ring)
			memcpy(ring, bytes, here);
		else
			memcpy(bytes, ring, here);
		cursor->offset += here;
		cursor->left -= here;
		bytes += here;
		size -= here;
	}
}

/* Copies the data of a request between its own pages and those of its slot. */
static void blktap_copy(struct blktap_mapping *mapping, unsigned int slot, struct request *rq,
			const struct blktap_segment *segments, bool to_ring)
{
	struct blktap_cursor cursor = {
		.segment = segments,
		.page = &mapping->pages[1 + slot * BLKTAP_SEGMENTS_MAX],
	};
	struct req_iterator iter;
	struct bio_vec piece;

	blktap_cursor_set(&cursor);
	rq_for_each_segment(piece, rq, iter) {
		u8 *bytes = bvec_kmap_local(&piece);

		blktap_cursor_copy(&cursor, bytes, piece.bv_len, to_ring);
		if (!to_ring)
			flush_dcache_page(piece.bv_page);
		kunmap_local(bytes);
	}
}

/* Puts a request into a free slot and into the ring; its index is not published yet. */
static bool blktap_fill(struct blktap_mapping *mapping, struct request *rq)
{
	unsigned int slot = ffz(mapping->pending);
	struct blktap_request entry = {
		.operation = blktap_operation(rq),
		.id = slot,
	};

	if (blktap_has_data(rq)) {
		entry.nr_segments = blktap_layout(rq, entry.segments);
		if (WARN_ON_ONCE(!entry.nr_segments))
			return false;
		entry.sector_number = blk_rq_pos(rq);
		if (entry.operation == BLKTAP_OP_WRITE)
			blktap_copy(mapping, slot, rq, entry.segments, true);
	} else if (entry.operation == BLKTAP_OP_TRIM) {
		entry.sector_number = blk_rq_pos(rq);
		entry.nr_sectors = blk_rq_sectors(rq);
	}
	mapping->ring->entries[mapping->req_prod % BLKTAP_RING_SIZE].request = entry;
	mapping->req_prod++;
	mapping->slots[slot] = rq;
	mapping->pending |= BIT(slot);
	return true;
}

static struct request *blktap_next_waiting(struct blktap *tap)
{
	struct blktap_cmd *cmd;

	spin_lock(&tap->lock);
	cmd = list_first_entry_or_null(&tap->waiting, struct blktap_cmd, node);
	if (cmd)
		list_del(&cmd->node);
	else
		tap->is_woken = false;
	spin_unlock(&tap->lock);
	return cmd ? blk_mq_rq_from_pdu(cmd) : NULL;
}

/* Moves what waits into free slots. Returns whether there was any. */
bool blktap_publish(struct blktap *tap, struct blktap_mapping *mapping)
{
	u32 before = mapping->req_prod;

	while (mapping->pending != U32_MAX) {
		struct request *rq = blktap_next_waiting(tap);

		if (!rq)
			break;
		if (!blktap_fill(mapping, rq))
			blk_mq_end_request(rq, BLK_STS_IOERR);
	}
	if (mapping->req_prod == before)
		return false;
	smp_store_release(&mapping->ring->req_prod, mapping->req_prod);
	return true;
}

static blk_status_t blktap_status(const struct request *rq,
				  const struct blktap_response *response)
{
	if (response->operation != blktap_operation(rq))
		return BLK_STS_IOERR;
	if (response->status == BLKTAP_STATUS_OKAY)
		return BLK_STS_OK;
	/* For what is optional this is no failure of the storage. */
	if (response->status == BLKTAP_STATUS_UNSUPPORTED && !blktap_has_data(rq))
		return BLK_STS_NOTSUPP;
	return BLK_STS_IOERR;
}

/* Ends the request that a response names. Returns false when there is none. */
static bool blktap_end(struct blktap_mapping *mapping, const struct blktap_response *response)
{
	unsigned int slot = response->id;
	blk_status_t status;
	struct request *rq;

	if (response->id >= BLKTAP_RING_SIZE || !(mapping->pending & BIT(slot)))
		return false;
	rq = mapping->slots[slot];
	mapping->slots[slot] = NULL;
	mapping->pending &= ~BIT(slot);
	status = blktap_status(rq, response);
	if (!status && req_op(rq) == REQ_OP_READ) {
		struct blktap_segment segments[BLKTAP_SEGMENTS_MAX];

		/* It fitted when it was published. */
		blktap_layout(rq, segments);
		blktap_copy(mapping, slot, rq, segments, false);
	}
	blk_mq_end_request(rq, status);
	return true;
}

/*
 * Takes the published responses. Those that cannot be are counted; more than there are entries
 * are not looked at.
 */
void blktap_consume(struct blktap *tap, struct blktap_mapping *mapping)
{
	u32 rsp_prod = smp_load_acquire(&mapping->ring->rsp_prod);
	u64 bad = 0;

	if (rsp_prod - mapping->rsp_cons > BLKTAP_RING_SIZE) {
		rsp_prod = mapping->rsp_cons;
		bad++;
	}
	for (; mapping->rsp_cons != rsp_prod; mapping->rsp_cons++) {
		const struct blktap_response *shared =
			&mapping->ring->entries[mapping->rsp_cons % BLKTAP_RING_SIZE].response;
		struct blktap_response response = {
			.id = READ_ONCE(shared->id),
			.operation = READ_ONCE(shared->operation),
			.status = READ_ONCE(shared->status),
		};

		bad += !blktap_end(mapping, &response);
	}
	if (bad) {
		spin_lock(&tap->lock);
		tap->bad_responses += bad;
		spin_unlock(&tap->lock);
	}
}

/*
 * Failing requests, for a server that goes away. Not in its own context: whoever asked for a request
 * may have closed the device since, and then the end of the request is the last that holds the open
 * file. The kernel closes that file in the task in which this happens, when the task gets to it. A
 * server that ends would wait in the release of its ring for a close that comes after it.
 */
struct blktap_failing {
	struct work_struct work;
	struct blktap *tap;
	struct blktap_mapping *mapping;
};

/* With a thread of its own when memory is short: the requests may be those that free some. */
static struct workqueue_struct *blktap_failing_queue;

int blktap_requests_init(void)
{
	blktap_failing_queue = alloc_workqueue("blktap", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	return blktap_failing_queue ? 0 : -ENOMEM;
}

void blktap_requests_exit(void)
{
	destroy_workqueue(blktap_failing_queue);
}

static void blktap_fail(struct blktap *tap, struct blktap_mapping *mapping, work_func_t how)
{
	struct blktap_failing failing = { .tap = tap, .mapping = mapping };

	INIT_WORK_ONSTACK(&failing.work, how);
	queue_work(blktap_failing_queue, &failing.work);
	flush_work(&failing.work);
	destroy_work_on_stack(&failing.work);
}

static void blktap_end_pending(struct blktap_mapping *mapping)
{
	while (mapping->pending) {
		unsigned int slot = __ffs(mapping->pending);
		struct request *rq = mapping->slots[slot];

		mapping->slots[slot] = NULL;
		mapping->pending &= ~BIT(slot);
		blk_mq_end_request(rq, BLK_STS_IOERR);
	}
}

static void blktap_fail_pending_work(struct work_struct *work)
{
	blktap_end_pending(container_of(work, struct blktap_failing, work)->mapping);
}

static void blktap_fail_all_work(struct work_struct *work)
{
	struct blktap *tap = container_of(work, struct blktap_failing, work)->tap;
	struct blktap_cmd *cmd, *next;
	LIST_HEAD(waiting);

	/* One that poll has in its hands is in a slot when this has the mutex. */
	mutex_lock(&tap->ring_mutex);
	spin_lock(&tap->lock);
	list_splice_init(&tap->waiting, &waiting);
	tap->is_woken = false;
	spin_unlock(&tap->lock);
	if (tap->mapping)
		blktap_end_pending(tap->mapping);
	mutex_unlock(&tap->ring_mutex);
	list_for_each_entry_safe(cmd, next, &waiting, node)
		blk_mq_end_request(blk_mq_rq_from_pdu(cmd), BLK_STS_IOERR);
}

/* Fails what is in the ring, whose mapping nobody else knows. */
void blktap_fail_pending(struct blktap_mapping *mapping)
{
	blktap_fail(NULL, mapping, blktap_fail_pending_work);
}

/* Fails all that there is. No more comes: the block device is not live. */
void blktap_fail_all(struct blktap *tap)
{
	blktap_fail(tap, NULL, blktap_fail_all_work);
}
