// SPDX-License-Identifier: Apache-2.0

package reason

// The reasons. What each means stands in the table below.
const (
	Unknown Reason = iota

	// Ends that nobody complains of.
	Ended
	ClientGone
	Reset
	TunnelLost

	// What we end.
	Drained
	Severed
	PolicyDenied
	PolicyNotAllowed
	PolicyChanged
	PeerRevoked

	// What must be known first.
	WorkloadUnknown
	CertificateUnavailable
	CertificateLate
	IdentityForgotten
	ControlPlaneSilent
	ControlPlaneUnasked
	ControlPlaneBusy

	// Where to.
	RecursiveCall
	NoService
	NoHealthyUpstream
	NoRoute
	UnknownWaypoint
	UnknownGateway
	NameUnresolved
	NameWithoutAddress

	// What a peer asks for.
	BadMethod
	BadAuthority
	NotThisPod
	HostUnknown
	PortUnresolved
	ServiceWithoutAddress

	// What a SOCKS client asks for.
	SOCKSRefused
	SOCKSName
	SOCKSBroken
	SOCKSLate

	// The next hop.
	ConnectRefused
	ConnectLate
	ConnectUnreachable
	ConnectFailed
	TunnelConnectLate
	NoResources

	// Its TLS, and a client's.
	TLSPeerIdentity
	TLSTrustDomain
	TLSRevoked
	TLSCertificate
	TLSAlert
	TLSLate
	TLSPeerGone
	TLSFailed
	TooManyHandshakes

	// Its tunnel.
	TunnelRefused
	PeerDenied
	PeerCannotReach
	PeerStatus
	PoolDraining
	TunnelFull

	// The application.
	ApplicationRefused
	ApplicationLate
	ApplicationFailed

	// While bytes are carried.
	StreamError
	TunnelError
	PeerTimedOut
	CopyFailed
	CloseFailed

	count
)

// A row is what is known of a reason.
type row struct {
	name  string
	flag  Flag
	means string
	look  string
}

const certificates = "The control plane's log, its address and roots; `/config_dump` shows each certificate's state."

// table has contract 12.5's flags. The metrics of the reference do not know of
// connections that are refused before they are tracked.
var table = [...]row{
	Unknown: {"unknown", FlagConnect, "The proxy has no name for what went wrong.",
		"The line's error; please report it."},

	Ended:      {"ended", FlagNone, "Both directions ended well.", ""},
	ClientGone: {"client_gone", FlagNone, "The client went away before it was answered.", ""},
	Reset:      {"reset", FlagNone, "Client or server reset the connection.", ""},
	TunnelLost: {"tunnel_lost", FlagNone, "The tunnel to the other node was lost.",
		"Whether the other node or its proxy ended."},

	Drained: {"drained", FlagNone, "The proxy, or the pod, ended and the connection outlived the time for that.",
		"The drain's length, if connections should have longer."},
	Severed: {"severed", FlagNone, "The pod has lost its network while it ended.",
		"Nothing, if the pod was deleted."},
	PolicyDenied: {"policy_denied", FlagDeny, "A policy denies the connection.",
		"The policy that the error names."},
	PolicyNotAllowed: {"policy_not_allowed", FlagDeny, "There are policies that allow others, and none allows this.",
		"The allow policies of the destination; the client's identity on the line."},
	PolicyChanged: {"policy_changed", FlagDeny, "It was allowed, and a change of policy or trust took that back.",
		"What changed in the policies of the destination."},
	PeerRevoked: {"peer_revoked", FlagCertificateRevoked, "The peer's certificate was revoked while the connection was open.",
		"The list in `CRL_PATH`."},

	WorkloadUnknown: {"workload_unknown", FlagConnect, "The control plane has not told of the pod's own workload in time.",
		"`/debug/pods`, the control plane's log, and `istio_xds_*`."},
	CertificateUnavailable: {"certificate_unavailable", FlagIdentityError, "The pod's certificate could not be had.", certificates},
	CertificateLate:        {"certificate_late", FlagIdentityError, "The pod's first certificate has not come in time.", certificates},
	IdentityForgotten: {"identity_forgotten", FlagIdentityError, "The last pod of this identity ended while a certificate was waited for.",
		""},
	ControlPlaneSilent: {"control_plane_silent", FlagConnect, "Asked on demand for a name, the control plane has not answered in time.",
		"The control plane, and `ztunnel_on_demand_requests_total`."},
	ControlPlaneUnasked: {"control_plane_unasked", FlagConnect, "The control plane could not be asked for a name.",
		"The line's error, and `ztunnel_on_demand_requests_total`."},
	ControlPlaneBusy: {"control_plane_busy", FlagConnect, "Too many connections of the pod wait for the control plane already.",
		"Whether the pod scans addresses, or the control plane is slow."},

	RecursiveCall: {"recursive_call", FlagConnect, "The connection would have led the proxy to itself.",
		"Who connects to the proxy's own ports."},
	NoService: {"no_service", FlagConnect, "No service has the address, and only a service could be reached there.",
		"The address; it may be a pod's in another network."},
	NoHealthyUpstream: {"no_healthy_upstream", FlagConnect, "The service has no endpoint that may be used.",
		"The service's endpoints, their health and locality."},
	NoRoute: {"no_route", FlagConnect, "There is no way to the workload: no address, or a network without gateway.",
		"The workload and its network in `/config_dump`."},
	UnknownWaypoint: {"unknown_waypoint", FlagConnect, "The waypoint that must be passed is not known.",
		"The waypoint's service and pods."},
	UnknownGateway: {"unknown_gateway", FlagConnect, "The gateway of the other network is not known.",
		"The east-west gateway, and the meshNetworks of the control plane."},
	NameUnresolved: {"name_unresolved", FlagConnect, "The workload is known by name only, which could not be looked up.",
		"The warning `dns lookup failed`, and the nameservers of `RESOLV_CONF`."},
	NameWithoutAddress: {"name_without_address", FlagConnect, "The workload is known by name only, which has no usable address.",
		"The name's DNS records."},

	BadMethod: {"bad_method", FlagConnect, "A tunnel's peer asked for something else than CONNECT.",
		"Who the peer is: it is no proxy of the mesh."},
	BadAuthority: {"bad_authority", FlagConnect, "A tunnel's peer asked for a target that is none.",
		"Who the peer is, and its version."},
	NotThisPod: {"not_this_pod", FlagConnect, "A tunnel's peer asked for another pod than the one it came to.",
		"Whether the peer's picture is old, or it tries what it may not."},
	HostUnknown: {"host_unknown", FlagConnect, "A tunnel's peer asked for a hostname that nobody has.",
		"Services and workloads in `/config_dump`."},
	PortUnresolved: {"port_unresolved", FlagConnect, "A tunnel's peer asked for a port that the service does not lead to this pod.",
		"The service's ports."},
	ServiceWithoutAddress: {"service_without_address", FlagConnect, "A tunnel's peer asked for a service without addresses.",
		"The service in `/config_dump`."},

	SOCKSRefused: {"socks_refused", FlagConnect, "A SOCKS client asked for what is not served.",
		"The warning of target `proxy::socks5`."},
	SOCKSName: {"socks_name", FlagConnect, "A SOCKS client asked for a name that could not be looked up.",
		"The warning of target `proxy::socks5`."},
	SOCKSBroken: {"socks_broken", FlagConnect, "A SOCKS client broke off before it had said where to.", ""},
	SOCKSLate:   {"socks_late", FlagConnect, "A SOCKS client has not said in time where to.", ""},

	ConnectRefused: {"connect_refused", FlagConnect, "The next hop refused the connection.",
		"Whether the server, or the proxy of its node, listens there."},
	ConnectLate: {"connect_late", FlagConnect, "The next hop has not answered in time.",
		"Network policies and firewalls between the nodes."},
	ConnectUnreachable: {"connect_unreachable", FlagConnect, "There is no way to the next hop's address.",
		"Routes of pod and node."},
	ConnectFailed: {"connect_failed", FlagConnect, "The connection to the next hop failed otherwise.",
		"The line's error."},
	TunnelConnectLate: {"tunnel_connect_late", FlagNetworkPolicy, "Port 15008 of the next hop has not answered in time.",
		"Network policies: they must let port 15008 pass."},
	NoResources: {"no_resources", FlagConnect, "The node has no descriptor, port or memory left for the connection.",
		"`process_open_fds`, and the node's limits."},

	TLSPeerIdentity: {"tls_peer_identity", FlagConnect, "The next hop proved to be somebody else than expected.",
		"The identities in the error; an address may have a new owner."},
	TLSTrustDomain: {"tls_trust_domain", FlagConnect, "The peer belongs to another trust domain.",
		"The identities in the error."},
	TLSRevoked: {"tls_revoked", FlagConnect, "The peer's certificate is revoked, or that cannot be known.",
		"The list in `CRL_PATH`."},
	TLSCertificate: {"tls_certificate", FlagConnect, "The peer's certificate does not lead to a root of ours, or not now.",
		"Roots of both sides, and the clocks."},
	TLSAlert: {"tls_alert", FlagConnect, "The peer refused TLS with us.",
		"The peer's log: it names its reason."},
	TLSLate: {"tls_late", FlagConnect, "The peer has not completed TLS in time.",
		"The peer's load."},
	TLSPeerGone: {"tls_peer_gone", FlagConnect, "The peer went away during TLS.",
		"Who it is: checks of a port do so."},
	TLSFailed: {"tls_failed", FlagConnect, "TLS failed otherwise.",
		"The line's error; a peer that speaks no TLS at all."},

	TooManyHandshakes: {"too_many_handshakes", FlagConnect, "Too many connections to port 15008 have not finished TLS yet.",
		"Who opens them, and the limits for all and for one address."},

	TunnelRefused: {"tunnel_refused", FlagH2HandshakeFailure, "The peer ended the tunnel or the stream before it answered.",
		"The peer's log."},
	PeerDenied: {"peer_denied", FlagConnect, "The proxy or waypoint at the other end refuses by policy (401 or 403).",
		"Its access log, which names the policy."},
	PeerCannotReach: {"peer_cannot_reach", FlagConnect, "The proxy or waypoint at the other end cannot reach the server (502, 503 or 504).",
		"Its access log, and whether the server listens."},
	PeerStatus: {"peer_status", FlagConnect, "The proxy or waypoint at the other end refuses with another status.",
		"Its access log."},
	PoolDraining: {"pool_draining", FlagConnect, "The pod ends and makes no new tunnels.", ""},
	TunnelFull: {"tunnel_full", FlagConnect, "The tunnel took no more streams.",
		"The peer's limit of streams."},

	ApplicationRefused: {"application_refused", FlagConnect, "The pod's application refused the connection.",
		"Whether it listens on that port and address."},
	ApplicationLate: {"application_late", FlagConnect, "The pod's application has not answered in time.",
		"Whether it accepts; rules in the pod that drop."},
	ApplicationFailed: {"application_failed", FlagConnect, "The connection to the pod's application failed otherwise.",
		"The line's error."},

	StreamError: {"stream_error", FlagConnect, "The peer ended the stream with a complaint.",
		"The code in the error, and the peer's log."},
	TunnelError: {"tunnel_error", FlagConnect, "The tunnel ended with a complaint of either side.",
		"The code in the error, and the peer's log."},
	PeerTimedOut: {"peer_timed_out", FlagConnect, "One end stopped answering: TCP gave up.",
		"The network, and whether that pod still exists."},
	CopyFailed: {"copy_failed", FlagConnect, "Bytes could not be carried on.",
		"The line's error."},
	CloseFailed: {"close_failed", FlagConnect, "All was carried, and closing failed.",
		"The line's error."},
}
