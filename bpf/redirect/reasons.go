// SPDX-License-Identifier: Apache-2.0

package redirect

// A Reason is one way out of a program, as enum reason in redirect.c numbers
// them. Its Hook and Name are what metrics and pages show.
type Reason struct{ Hook, Name string }

// reasons has the names of enum reason in order; append only.
func reasons() []Reason {
	return []Reason{
		{"connect", "captured"},
		{"connect", "own_socket"},
		{"connect", "loopback"},
		{"connect", "self"},
		{"connect", "refused_bound_to_device"},
		{"connect", "refused_link_local"},
		{"connect", "refused_mark"},
		{"connect", "refused_no_memory"},
		{"connect", "refused_port_collision"},
		{"sock_create", "marked"},
		{"egress", "dropped_escape"},
		{"sockops", "delivery_announced"},
		{"sockops", "delivery_announce_failed"},
		{"sockops", "probe_announced"},
		{"sockops", "probe_announce_failed"},
		{"sk_lookup", "outbound"},
		{"sk_lookup", "inbound_plaintext"},
		{"sk_lookup", "inbound_hbone"},
		{"sk_lookup", "dns_udp"},
		{"sk_lookup", "dns_tcp"},
		{"sk_lookup", "pass_loopback"},
		{"sk_lookup", "pass_self"},
		{"sk_lookup", "pass_delivery"},
		{"sk_lookup", "pass_host"},
		{"sk_lookup", "announcement_expired"},
		{"sk_lookup", "dropped_no_listener"},
		{"sk_lookup", "dropped_assign"},
		{"sockops", "accepted_confined"},
		{"sockops", "accepted_no_memory"},
		{"tc", "held_no_listener"},
		{"sockops", "listener_gone"},
		{"sockops", "listener_untold"},
	}
}
