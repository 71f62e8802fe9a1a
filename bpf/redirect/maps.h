/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* What redirect.c is told, counts and remembers. Layouts are shared with user
 * space and with pins of earlier processes: whoever changes one raises ABI in
 * redirect.go. docs/wire/redirect.md has all of it in tables. */

#ifndef ZTUNNEL_REDIRECT_MAPS_H
#define ZTUNNEL_REDIRECT_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "address.h"

/* Set before loading. */
const volatile __u64 self = 0;	  /* steer: cookie of the namespace it is attached to */
const volatile __u8 dns = 0;	  /* steer: there is a DNS server for this pod */
const volatile __u32 pretend = 0; /* steer: in test runs, which cannot say it, ingress_ifindex */
const volatile __u64 host = 0;	  /* probe: cookie of the host's namespace; 0: the initial one */

/* Every way out of a program that an operator may ask about. User space reads
 * the counters by index: append only. Names are in reasons.go. */
enum reason {
	CONNECT_CAPTURED,
	CONNECT_OWN,
	CONNECT_LOOPBACK,
	CONNECT_SELF,
	CONNECT_REFUSED_DEVICE,
	CONNECT_REFUSED_LINK_LOCAL,
	CONNECT_REFUSED_MARK,
	CONNECT_REFUSED_STORAGE,
	CONNECT_REFUSED_COLLISION,
	CREATE_MARKED,
	GUARD_DROPPED,
	EVENT_ANNOUNCED,
	EVENT_ANNOUNCE_FAILED,
	PROBE_ANNOUNCED,
	PROBE_ANNOUNCE_FAILED,
	STEER_OUTBOUND,
	STEER_PLAINTEXT,
	STEER_HBONE,
	STEER_DNS_UDP,
	STEER_DNS_TCP,
	STEER_PASS_LOOPBACK,
	STEER_PASS_SELF,
	STEER_PASS_DELIVERY,
	STEER_PASS_HOST,
	STEER_EXPIRED,
	STEER_DROPPED_NO_LISTENER,
	STEER_DROPPED_ASSIGN,
	EVENT_CONFINED,
	EVENT_STORAGE_FAILED,
	HOLD_DROPPED,
	EVENT_LISTENER_GONE,
	EVENT_LISTENER_UNTOLD,
	REASONS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* One pod's share of the STEER counters. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} pod_counters SEC(".maps");

/* The namespaces whose sockets are captured, by cookie; cookies are never used
 * twice. The value is the generation of the process that wrote it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} enrolled SEC(".maps");

/* The addresses that a namespace has. */
struct own_key {
	__u64 netns;
	struct address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct own_key);
	__type(value, __u32);
} addresses SEC(".maps");

/* What we know of a socket. */
enum role {
	ROLE_NONE,
	ROLE_OWN,      /* the proxy's; only user space writes it, by descriptor */
	ROLE_CONFINED, /* captured: may send through lo only */
	ROLE_PASSIVE,  /* accepted, from outside */
	ROLE_LISTENER, /* an application's that listens: its end is told */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} sockets SEC(".maps");

/* Connections that may reach an application of the pod directly. The owner is
 * the namespace of the connecting socket: the pod's own, in which only the
 * proxy's sockets are announced, or HOST. Tuples alone could be forged from
 * any other pod. Ports are in host order. */
#define HOST 0 /* no namespace has this cookie */

struct flow {
	__u64 owner;
	struct address from, to;
	__u16 from_port, to_port;
	__u32 zero; /* explicit: keys are compared as bytes */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u64); /* bpf_ktime_get_ns of the announcement */
} pass SEC(".maps");

/* One pod's listeners. */
enum slot {
	SLOT_OUTBOUND,
	SLOT_PLAINTEXT,
	SLOT_HBONE,
	SLOT_DNS_UDP4,
	SLOT_DNS_UDP6,
	SLOT_DNS_TCP4,
	SLOT_DNS_TCP6,
	SLOTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64); /* 8 bytes: user space reads cookies back */
} listeners SEC(".maps");

/* Namespaces, by cookie, of which an application has stopped to listen. Each
 * process has its own and is told while the programs are its: two readers of
 * one ring would each miss what the other has read. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} unheard SEC(".maps");

/* One element: the generation of the process that may write the maps. Read by
 * user space only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} generation SEC(".maps");

#endif
