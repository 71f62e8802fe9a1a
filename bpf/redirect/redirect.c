//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */

/* Capture of a pod's sockets. No address is ever rewritten: a mark brings the
 * flow to lo, where the pod's own instance of `steer` hands it to the proxy.
 *
 *   program   attached to             runs when                  does
 *   connect4  cgroup root             an IPv4 connect            confine + mark, or refuse
 *   connect6  cgroup root             an IPv6 connect            the same
 *   create    cgroup root             a socket is made           mark UDP, for its DNS
 *   guard     cgroup root             a packet leaves a socket   drop what escapes lo
 *   events    cgroup root             TCP opens and closes       announce deliveries, tell of
 * listeners that end probe     cgroup root or kubelet  TCP opens and closes       announce the
 * host's probes hold      lo and eth0 of a pod     a packet comes in          drop SYNs while
 * nobody listens steer     one pod's namespace     no socket has the flow     choose the listener
 *
 * Marks steer routing and are never credentials: any pod may forge them. Who a
 * socket belongs to is written in `sockets`, by descriptor or by these programs.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "address.h"
#include "count.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Not in the headers we allow ourselves; all are user space ABI. */
#define SOCK_STREAM	   1
#define SOL_SOCKET	   1
#define SO_MARK		   36
#define IPPROTO_TCP	   6
#define IPPROTO_UDP	   17
#define ETH_P_IP	   0x0800
#define ETH_P_IPV6	   0x86dd
#define TCP_FLAGS	   13 /* where they are in the header */
#define TCP_SYN		   0x02
#define TCP_ACK		   0x10
#define TC_ACT_UNSPEC	   -1 /* whatever else is attached may decide */
#define TC_ACT_SHOT	   2
#define LOOPBACK_IFINDEX   1 /* of every namespace, include/net/flow.h */

#define PASS		   1
#define REFUSE		   0 /* connect(2) returns EPERM; a packet is dropped */

#define MARK_CAPTURE	   0x1000
#define MARK_CAPTURE_MASK  0xf000
#define MARK_DELIVERY	   0x111
#define MARK_DELIVERY_MASK 0xfff

#define PORT_DNS	   53
#define PORT_HBONE	   15008

/* How long an announced SYN may take, retransmissions included. */
#define PASS_NANOSECONDS 10000000000ULL

#include "maps.h"

static __always_inline int with(int verdict, enum reason why)
{
	count_in(&counters, why);
	return verdict;
}

static __always_inline bool is_enrolled(__u64 netns)
{
	return bpf_map_lookup_elem(&enrolled, &netns) != 0;
}

static __always_inline bool is_own_address(__u64 netns, const struct address *a)
{
	struct own_key key = {.netns = netns, .address = *a};

	return bpf_map_lookup_elem(&addresses, &key) != 0;
}

static __always_inline bool is_delivery(__u32 mark)
{
	return (mark & MARK_DELIVERY_MASK) == MARK_DELIVERY;
}

static __always_inline bool is_capture(__u32 mark)
{
	return (mark & MARK_CAPTURE_MASK) == MARK_CAPTURE;
}

/* ---- connect: out of a pod ---- */

/* A delivery's source port may be that of a live connection of the same client
 * to the same application port. Its SYN would hit that connection, whose
 * challenge ACK makes the kernel answer with a reset that kills it. v4 is the
 * program's family: neither may read the other's address. */
static __always_inline bool collides(struct bpf_sock_addr *ctx, struct bpf_sock *sk, bool v4)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *found;
	bool live;

	if (v4) {
		t.ipv4.saddr = sk->src_ip4;
		t.ipv4.sport = bpf_htons(sk->src_port);
		t.ipv4.daddr = READ(ctx, user_ip4);
		t.ipv4.dport = READ(ctx, user_port);
		found = bpf_sk_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		t.ipv6.saddr[0] = sk->src_ip6[0];
		t.ipv6.saddr[1] = sk->src_ip6[1];
		t.ipv6.saddr[2] = sk->src_ip6[2];
		t.ipv6.saddr[3] = sk->src_ip6[3];
		t.ipv6.sport = bpf_htons(sk->src_port);
		t.ipv6.daddr[0] = READ(ctx, user_ip6[0]);
		t.ipv6.daddr[1] = READ(ctx, user_ip6[1]);
		t.ipv6.daddr[2] = READ(ctx, user_ip6[2]);
		t.ipv6.daddr[3] = READ(ctx, user_ip6[3]);
		t.ipv6.dport = READ(ctx, user_port);
		found = bpf_sk_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!found)
		return 0;
	live = found->state != BPF_TCP_LISTEN && found->state != BPF_TCP_TIME_WAIT;
	bpf_sk_release(found);
	return live;
}

/* The decision for one connect(2). Also for MSG_FASTOPEN, non-blocking
 * connects, and the subflows of MPTCP sockets: all of them come by here before
 * the route is looked up. */
static __always_inline int connecting(struct bpf_sock_addr *ctx, const struct address *dst, bool v4)
{
	struct bpf_sock *sk = ctx->sk;
	__u64 netns = bpf_get_netns_cookie(ctx);
	__u32 mark = MARK_CAPTURE;
	__u32 none = ROLE_NONE;
	__u32 *role;

	if (ctx->type != SOCK_STREAM || ctx->protocol != IPPROTO_TCP || !sk)
		return PASS;

	role = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!is_enrolled(netns)) {
		/* A socket that outlived its pod's enrolment is free again. */
		if (role && *role != ROLE_OWN)
			*role = ROLE_NONE;
		return PASS;
	}
	if (role && *role == ROLE_OWN) {
		if (is_delivery(sk->mark) && collides(ctx, sk, v4))
			return with(REFUSE, CONNECT_REFUSED_COLLISION);
		return with(PASS, CONNECT_OWN);
	}

	/* Not ours, whatever mark it carries. Confine it first, so that no mark
	 * or device set later, and no rule that goes missing, lets it leave. */
	role = bpf_sk_storage_get(&sockets, sk, &none, BPF_SK_STORAGE_GET_F_CREATE);
	if (!role)
		return with(REFUSE, CONNECT_REFUSED_STORAGE);
	*role = ROLE_CONFINED;

	if (sk->bound_dev_if && sk->bound_dev_if != LOOPBACK_IFINDEX)
		return with(REFUSE, CONNECT_REFUSED_DEVICE);
	if (is_loopback(dst) || is_unspecified(dst))
		return with(PASS, CONNECT_LOOPBACK);
	if (is_own_address(netns, dst))
		return with(PASS, CONNECT_SELF);
	if (is_link_local6(dst))
		return with(REFUSE, CONNECT_REFUSED_LINK_LOCAL);
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return with(REFUSE, CONNECT_REFUSED_MARK);
	return with(PASS, CONNECT_CAPTURED);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct address dst = from_ip4(READ(ctx, user_ip4));

	return connecting(ctx, &dst, 1);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct address dst = {{READ(ctx, user_ip6[0]), READ(ctx, user_ip6[1]),
			       READ(ctx, user_ip6[2]), READ(ctx, user_ip6[3])}};

	return connecting(ctx, &dst, 0);
}

/* The mark of a UDP socket counts from its first packet on, which a sendmsg
 * hook is too late for. The pod's rule takes only port 53 of it. */
SEC("cgroup/sock_create")
int create(struct bpf_sock *sk)
{
	if (sk->protocol != IPPROTO_UDP)
		return PASS;
	if (!is_enrolled(bpf_get_netns_cookie(sk)))
		return PASS;
	sk->mark = MARK_CAPTURE;
	return with(PASS, CREATE_MARKED);
}

/* ---- guard: nothing captured leaves but through lo ---- */

SEC("cgroup_skb/egress")
int guard(struct __sk_buff *skb)
{
	struct bpf_sock *sk;
	__u32 *role;

	if (skb->ifindex == LOOPBACK_IFINDEX)
		return PASS;
	sk = skb->sk;
	if (!sk)
		return PASS;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return PASS;
	role = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!role || *role != ROLE_CONFINED)
		return PASS;
	return with(REFUSE, GUARD_DROPPED);
}

/* ---- events: announce connections before their SYN leaves ---- */

static __always_inline struct flow flow_of(struct bpf_sock_ops *ctx, __u64 owner)
{
	struct flow f = {.owner = owner};

	if (ctx->family == AF_INET) {
		f.from = from_ip4(READ(ctx, local_ip4));
		f.to = from_ip4(READ(ctx, remote_ip4));
	} else {
		f.from.word[0] = READ(ctx, local_ip6[0]);
		f.from.word[1] = READ(ctx, local_ip6[1]);
		f.from.word[2] = READ(ctx, local_ip6[2]);
		f.from.word[3] = READ(ctx, local_ip6[3]);
		f.to.word[0] = READ(ctx, remote_ip6[0]);
		f.to.word[1] = READ(ctx, remote_ip6[1]);
		f.to.word[2] = READ(ctx, remote_ip6[2]);
		f.to.word[3] = READ(ctx, remote_ip6[3]);
	}
	f.from_port = ctx->local_port;
	f.to_port = bpf_ntohl(ctx->remote_port);
	return f;
}

static __always_inline int announce(struct bpf_sock_ops *ctx, __u64 owner, enum reason done,
				    enum reason failed)
{
	struct flow f = flow_of(ctx, owner);
	__u64 now = bpf_ktime_get_ns();

	if (bpf_map_update_elem(&pass, &f, &now, BPF_ANY))
		return with(PASS, failed);
	/* Be told when the attempt or the connection is over. */
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return with(PASS, done);
}

/* An entry is good for one connection. While that lives, its socket in the pod
 * has the tuple; afterwards nobody may use it again. */
static __always_inline int withdraw(struct bpf_sock_ops *ctx, __u64 owner)
{
	__u32 state = ctx->args[1];
	struct flow f;

	if (state == BPF_TCP_SYN_SENT || state == BPF_TCP_ESTABLISHED)
		return PASS;
	f = flow_of(ctx, owner);
	bpf_map_delete_elem(&pass, &f);
	return PASS;
}

/* What a pod's listener accepted over lo from the proxy, or the proxy's from
 * the pod, has inherited the mark (tcp_fwmark_accept) and is confined as well:
 * its next bytes would leave in plaintext once the rules are gone. */
static __always_inline int accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u32 none = ROLE_NONE;
	__u32 *role = bpf_sk_storage_get(&sockets, sk, &none, BPF_SK_STORAGE_GET_F_CREATE);

	/* A listener's wish to be told of is inherited. */
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!role)
		return with(PASS, EVENT_STORAGE_FAILED);
	if (is_delivery(sk->mark) || is_capture(sk->mark)) {
		*role = ROLE_CONFINED;
		return with(PASS, EVENT_CONFINED);
	}
	*role = ROLE_PASSIVE;
	return PASS;
}

/* A socket of the pod begins to listen. The proxy's own are of no interest. */
static __always_inline int listening(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u32 none = ROLE_NONE;
	__u32 *role = bpf_sk_storage_get(&sockets, sk, &none, BPF_SK_STORAGE_GET_F_CREATE);

	if (!role)
		return with(PASS, EVENT_STORAGE_FAILED);
	if (*role == ROLE_OWN)
		return PASS;
	*role = ROLE_LISTENER;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return PASS;
}

/* It is still to be found when this runs, for a moment. */
static __always_inline int unlistening(__u64 netns)
{
	if (bpf_ringbuf_output(&unheard, &netns, sizeof(netns), 0))
		return with(PASS, EVENT_LISTENER_UNTOLD);
	return with(PASS, EVENT_LISTENER_GONE);
}

SEC("sockops")
int events(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;
	__u64 netns;
	__u32 *role;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB &&
	    ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	if (!is_enrolled(netns))
		return PASS;
	if (ctx->op == BPF_SOCK_OPS_STATE_CB && ctx->args[0] == BPF_TCP_LISTEN)
		return unlistening(netns);
	sk = ctx->sk;
	if (!sk)
		return PASS;
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return accepted(ctx, sk);
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		return listening(ctx, sk);

	role = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!role || *role != ROLE_OWN || !is_delivery(sk->mark))
		return PASS;
	if (ctx->op == BPF_SOCK_OPS_STATE_CB)
		return withdraw(ctx, netns);
	return announce(ctx, netns, EVENT_ANNOUNCED, EVENT_ANNOUNCE_FAILED);
}

SEC("sockops")
int probe(struct bpf_sock_ops *ctx)
{
	__u64 netns;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB)
		return PASS;
	netns = bpf_get_netns_cookie(ctx);
	if (netns != (host ? host : bpf_get_netns_cookie(0)))
		return PASS;
	if (ctx->op == BPF_SOCK_OPS_STATE_CB)
		return withdraw(ctx, HOST);
	return announce(ctx, HOST, PROBE_ANNOUNCED, PROBE_ANNOUNCE_FAILED);
}

/* ---- steer: into the proxy ---- */

static __always_inline int steered(int verdict, enum reason why)
{
	count_in(&pod_counters, why);
	return with(verdict, why);
}

static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 slot, enum reason why)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&listeners, &slot);
	long err;

	/* The kernel refuses what is dropped here; hold keeps it from coming. */
	if (!sk)
		return steered(SK_DROP, STEER_DROPPED_NO_LISTENER);
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	if (err)
		return steered(SK_DROP, STEER_DROPPED_ASSIGN);
	return steered(SK_PASS, why);
}

/* Whether owner announced the flow, and lately. */
static __always_inline bool announced(struct flow *f, __u64 owner)
{
	__u64 *since;

	f->owner = owner;
	since = bpf_map_lookup_elem(&pass, f);
	if (!since)
		return 0;
	if (bpf_ktime_get_ns() - *since < PASS_NANOSECONDS)
		return 1;
	bpf_map_delete_elem(&pass, f);
	count_in(&counters, STEER_EXPIRED);
	return 0;
}

/* Where a new TCP connection goes: a slot, or PASSES with the reason why the
 * kernel may choose. The flow's owner is scratch. */
#define PASSES SLOTS

static __always_inline __u32 choose(struct flow *f, bool came_by_lo, enum reason *why)
{
	bool to_self;

	if (is_loopback(&f->to) || is_loopback(&f->from)) {
		*why = STEER_PASS_LOOPBACK;
		return PASSES;
	}
	to_self = is_own_address(self, &f->to);
	if (came_by_lo && !to_self) {
		*why = STEER_DNS_TCP;
		if (dns && f->to_port == PORT_DNS)
			return is_ip4(&f->to) ? SLOT_DNS_TCP4 : SLOT_DNS_TCP6;
		*why = STEER_OUTBOUND;
		return SLOT_OUTBOUND;
	}
	*why = STEER_PASS_SELF;
	if (is_own_address(self, &f->from))
		return PASSES;
	/* Assigned, not just bound: an application may have bound the port. */
	*why = STEER_HBONE;
	if (f->to_port == PORT_HBONE)
		return SLOT_HBONE;
	*why = STEER_PASS_DELIVERY;
	if (announced(f, self))
		return PASSES;
	*why = STEER_PASS_HOST;
	if (announced(f, HOST))
		return PASSES;
	*why = STEER_PLAINTEXT;
	return SLOT_PLAINTEXT;
}

/* Of UDP only DNS, and only what the pod's rule has brought to lo. */
static __always_inline __u32 choose_udp(struct flow *f, bool came_by_lo)
{
	if (!dns || !came_by_lo || f->to_port != PORT_DNS)
		return PASSES;
	if (is_loopback(&f->to) || is_own_address(self, &f->to))
		return PASSES;
	return is_ip4(&f->to) ? SLOT_DNS_UDP4 : SLOT_DNS_UDP6;
}

/* Asked only for what no established socket has: SYNs and unconnected UDP. For
 * an address of the pod's own, ingress_ifindex is the device that owns it, also
 * when the packet came by lo; so lo and a foreign address together are what was
 * captured here. */
SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	__u32 ifindex = pretend ? pretend : ctx->ingress_ifindex;
	bool came_by_lo = ifindex == LOOPBACK_IFINDEX;
	struct flow f = {};
	enum reason why;
	__u32 slot;

	if (!is_enrolled(self))
		return SK_PASS;
	if (!ifindex)
		return SK_PASS; /* collides() is asking */

	if (ctx->family == AF_INET) {
		f.from = from_ip4(READ(ctx, remote_ip4));
		f.to = from_ip4(READ(ctx, local_ip4));
	} else {
		f.from.word[0] = READ(ctx, remote_ip6[0]);
		f.from.word[1] = READ(ctx, remote_ip6[1]);
		f.from.word[2] = READ(ctx, remote_ip6[2]);
		f.from.word[3] = READ(ctx, remote_ip6[3]);
		f.to.word[0] = READ(ctx, local_ip6[0]);
		f.to.word[1] = READ(ctx, local_ip6[1]);
		f.to.word[2] = READ(ctx, local_ip6[2]);
		f.to.word[3] = READ(ctx, local_ip6[3]);
	}
	f.from_port = bpf_ntohs(ctx->remote_port);
	f.to_port = ctx->local_port;

	if (ctx->protocol == IPPROTO_UDP) {
		slot = choose_udp(&f, came_by_lo);
		return slot == PASSES ? SK_PASS : assign(ctx, slot, STEER_DNS_UDP);
	}
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	slot = choose(&f, came_by_lo, &why);
	if (slot == PASSES)
		return steered(SK_PASS, why);
	return assign(ctx, slot, why);
}

/* ---- hold: while nobody listens ---- */

/* What the headers say, as far as they are looked at. */
struct headers {
	struct flow flow;
	__u8 protocol;
	__u8 flags; /* of TCP */
};

static __always_inline bool read_headers(struct __sk_buff *skb, struct headers *h)
{
	__u8 ip[40];
	__be16 ports[2];
	__u32 at;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(skb, 0, ip, 20, BPF_HDR_START_NET))
			return 0;
		h->protocol = ip[9];
		h->flow.from = from_ip4(*(__u32 *)(ip + 12));
		h->flow.to = from_ip4(*(__u32 *)(ip + 16));
		at = (ip[0] & 0xf) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes_relative(skb, 0, ip, 40, BPF_HDR_START_NET))
			return 0;
		h->protocol = ip[6];
		__builtin_memcpy(&h->flow.from, ip + 8, 16);
		__builtin_memcpy(&h->flow.to, ip + 24, 16);
		at = 40;
	} else {
		return 0;
	}
	if (h->protocol != IPPROTO_TCP && h->protocol != IPPROTO_UDP)
		return 0;
	if (bpf_skb_load_bytes_relative(skb, at, ports, sizeof(ports), BPF_HDR_START_NET))
		return 0;
	h->flow.from_port = bpf_ntohs(ports[0]);
	h->flow.to_port = bpf_ntohs(ports[1]);
	if (h->protocol == IPPROTO_UDP)
		return 1;
	return !bpf_skb_load_bytes_relative(skb, at + TCP_FLAGS, &h->flags, 1, BPF_HDR_START_NET);
}

/* A dropped lookup is answered with a reset (inet_lookup_run_sk_lookup takes it
 * for ECONNREFUSED) or "port unreachable". A SYN or query that never arrives is
 * sent again, by when a new process may be listening. So the same decision is
 * made before the lookup, for the sake of an empty slot only; whatever cannot be
 * read here goes on to steer, which captures it or has it refused. */
SEC("tc")
int hold(struct __sk_buff *skb)
{
	bool came_by_lo = skb->ifindex == LOOPBACK_IFINDEX;
	struct headers h = {};
	struct bpf_sock *sk;
	enum reason why;
	__u32 slot;

	if (!read_headers(skb, &h))
		return TC_ACT_UNSPEC;
	if (h.protocol == IPPROTO_TCP && (h.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return TC_ACT_UNSPEC;
	if (!is_enrolled(self))
		return TC_ACT_UNSPEC;
	slot = h.protocol == IPPROTO_TCP ? choose(&h.flow, came_by_lo, &why)
					 : choose_udp(&h.flow, came_by_lo);
	if (slot == PASSES)
		return TC_ACT_UNSPEC;
	sk = bpf_map_lookup_elem(&listeners, &slot);
	if (!sk)
		return steered(TC_ACT_SHOT, HOLD_DROPPED);
	bpf_sk_release(sk);
	return TC_ACT_UNSPEC;
}
