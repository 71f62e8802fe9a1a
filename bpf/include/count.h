/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* Counting by reason in a per-CPU array: no atomic is needed. */

#ifndef ZTUNNEL_COUNT_H
#define ZTUNNEL_COUNT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static __always_inline void count_in(void *counters, __u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(counters, &reason);

	if (value)
		*value += 1;
}

#endif
