/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* Addresses as every program and map of ours has them: sixteen bytes in network
 * order, IPv4 in its mapped form, so that an AF_INET6 socket that speaks IPv4
 * needs no case of its own. The functions are pure. */

#ifndef ZTUNNEL_ADDRESS_H
#define ZTUNNEL_ADDRESS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

typedef _Bool bool;

/* A load of a 32-bit context field at its constant offset, which the verifier
 * insists on; the compiler would rather share an address between two loads. */
#define READ(ctx, field)                                                                  \
	({                                                                                \
		__u64 value_;                                                             \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                     \
			     : "=r"(value_)                                               \
			     : "r"(ctx), "i"(__builtin_offsetof(typeof(*(ctx)), field))); \
		(__u32) value_;                                                           \
	})

/* From socket.h and if_arp.h, which drag half of libc in. */
#define AF_INET	 2
#define AF_INET6 10

struct address {
	__u32 word[4];
};

static __always_inline struct address from_ip4(__u32 ip4)
{
	return (struct address){{0, 0, bpf_htonl(0xffff), ip4}};
}

static __always_inline bool is_ip4(const struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

/* 127.0.0.0/8, mapped or not, and ::1. */
static __always_inline bool is_loopback(const struct address *a)
{
	if (is_ip4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->word[0] && !a->word[1] && !a->word[2] && a->word[3] == bpf_htonl(1);
}

/* 0.0.0.0 and ::, which connect(2) takes for "this host". */
static __always_inline bool is_unspecified(const struct address *a)
{
	if (is_ip4(a))
		return !a->word[3];
	return !a->word[0] && !a->word[1] && !a->word[2] && !a->word[3];
}

/* fe80::/10: reached through the device of its scope and no other. */
static __always_inline bool is_link_local6(const struct address *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

#endif
