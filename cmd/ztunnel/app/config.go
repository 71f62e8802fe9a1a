// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

// Ports that cannot be configured (contract 1.4, 2.1).
const (
	PortOutbound  = 15001 // what pods open, captured
	PortPlaintext = 15006 // what reaches pods without a tunnel, captured
	PortHBONE     = 15008 // tunnels
	PortReadiness = 15021
	PortSOCKS5    = 15080
)

// A Config is everything that the environment decides, parsed and checked
// once (contract 1). It is the contract with operators, so its fields carry
// the reference's meanings; the packages below take their own, smaller
// Configs, which app fills from this one.
type Config struct {
	// Proxy says whether TCP is proxied. ENABLE_PROXY, default true.
	Proxy bool
	// DNSProxy says whether pods' DNS is answered. Metadata DNS_CAPTURE:
	// true where it is unset or "true" in any case.
	DNSProxy bool
	// DNSProxyAddr is where. Metadata DNS_PROXY_ADDR, default localhost:15053.
	DNSProxyAddr DNSAddr
	// IPv6 says whether wildcard listeners take IPv6 and DNS answers AAAA.
	// IPV6_ENABLED, default true. Capture takes IPv6 either way.
	IPv6 bool
	// IPv6Localhost says whether ::1 is to be bound: IPv6, unless the kernel
	// has it disabled on lo of our own namespace.
	IPv6Localhost bool
	// AdminPort, StatsPort and ReadinessPort are 15000 (proxyAdminPort of
	// PROXY_CONFIG), 15020 (statsPort) and 15021 (fixed).
	AdminPort, StatsPort, ReadinessPort uint16
	// AdminSocket is the path of a Unix socket, its owner's alone, that takes the
	// place of AdminPort. ADMIN_SOCKET (ours), default none.
	AdminSocket string
	// SOCKS5 adds a listener on 127.0.0.1:15080 of each pod.
	// UNSTABLE_ENABLE_SOCKS5, default false.
	SOCKS5 bool
	// IllegalPorts are never dialled on behalf of a pod: our own.
	IllegalPorts []uint16

	// Network, LocalNode, ClusterID and ClusterDomain say where we are.
	// NETWORK (default empty), NODE_NAME (empty: every workload is local),
	// ISTIO_META_CLUSTER_ID or CLUSTER_ID (Kubernetes), CLUSTER_DOMAIN
	// (cluster.local).
	Network, LocalNode, ClusterID, ClusterDomain string
	// PreferredNamespace breaks ties between services of one name.
	// PREFERED_SERVICE_NAMESPACE (sic), default none.
	PreferredNamespace string
	// Dedicated is one proxy for one workload; else one for a node's pods.
	// PROXY_MODE, default shared.
	Dedicated bool
	// Workload is the one of dedicated mode (PROXY_WORKLOAD_INFO); nil else.
	Workload *WorkloadName
	// SelfIdentity and SelfWorkload are who we are as a workload, for the
	// listener of our own: zero and nil unless POD_NAME, POD_NAMESPACE and
	// SERVICE_ACCOUNT are all set. TRUST_DOMAIN (cluster.local).
	SelfIdentity identity.ID
	SelfWorkload *WorkloadName

	// The rest of what the packages below are configured from, by subject.
	Control ControlPlane
	Local   LocalState
	HBONE   HBONE
	Sockets Sockets
	Capture Capture

	// Drain is how long open connections may outlive a request to stop.
	// CONNECTION_TERMINATION_DEADLINE, else a little less than
	// TERMINATION_GRACE_PERIOD_SECONDS, default 5 s. Zero ends them at once.
	Drain time.Duration
	// Threads is how many threads run at the same time, at least 1: Go's
	// GOMAXPROCS. ZTUNNEL_WORKER_THREADS, else what the CPUs make of it.
	Threads int
	// InpodUDS is the node agent's socket. INPOD_UDS, default
	// /var/run/ztunnel/ztunnel.sock.
	InpodUDS string
	// HandoverSocket is where a process gives its open connections to the one that
	// follows. HANDOVER_SOCK (ours), default /var/run/ztunnel/handover.sock; empty:
	// they end as it drains.
	HandoverSocket string
	// ResolvConf is the resolver configuration whose nameservers get what is
	// not the mesh's. RESOLV_CONF (ours), default /etc/resolv.conf.
	ResolvConf string
	// DNSCache keeps what upstream said about names, for each pod apart.
	// DNS_CACHE (ours), default true.
	DNSCache bool
	// Resolver is what that file says at the start. Load does not read it: its grammar
	// belongs to dnsproxy. Whoever parses it puts the result here to be shown.
	Resolver Resolver
	// WorkloadWait is how long a connection waits for what it cannot be judged
	// without: its pod's workload and certificate, a policy that the workload
	// names, an answer of the control plane. WORKLOAD_WAIT_TIMEOUT (ours),
	// default 5 s.
	WorkloadWait time.Duration
	// LocalhostAppTunnel dials PROXY-protocol tunnels of applications on
	// loopback. LOCALHOST_APP_TUNNEL, default true.
	LocalhostAppTunnel bool
	// ResponseBaggage sends baggage on answers and reads it from requests.
	// ENABLE_RESPONSE_BAGGAGE, default true.
	ResponseBaggage bool
	// PolicyInfo logs policy decisions at info and not debug.
	// AUTHZ_POLICY_INFO_LOGGING, on only when exactly "true".
	PolicyInfo bool

	// AccessLog is what access lines have besides the reference's keys.
	// ACCESS_LOG_REASON, ACCESS_LOG_TCP_INFO (both ours), default none.
	AccessLog report.Extras

	// Engine is who carries tunnels: reactor (event loops), or std (goroutines
	// over crypto/tls). TLS_ENGINE (ours), default reactor.
	Engine string
	// Balance is how an endpoint of a service is chosen: least-loaded, or
	// random as the reference does. LB_POLICY (ours), default least-loaded.
	Balance string

	// Args is what followed the program's name, joined by blanks.
	Args string
	// Metadata describes us to the control plane (contract 1.3).
	Metadata map[string]string
	// MetadataJSON are the ISTIO_METAJSON_ values, by name.
	MetadataJSON map[string]json.RawMessage
	// InstanceIP, PodName and PodNamespace make the xDS node id.
	// INSTANCE_IP (1.1.1.1), POD_NAME, POD_NAMESPACE (empty).
	InstanceIP, PodName, PodNamespace string
	// IstioVersion tags istio_build. ISTIO_META_ISTIO_VERSION or "unknown".
	IstioVersion string
	// Notices are what should be logged once logging runs: values that were
	// left out, but are no reason not to start.
	Notices []Notice
}

// A Notice is a line for the log about something in the environment.
type Notice struct {
	Level slog.Level
	Text  string
}

// ControlPlane says where resources and certificates come from.
type ControlPlane struct {
	// XDSAddress is a URI, or empty for none. XDS_ADDRESS, else
	// discoveryAddress of PROXY_CONFIG, else istiod's usual one.
	XDSAddress string
	// CAAddress is a URI; empty where FakeCA is on. CA_ADDRESS.
	CAAddress string
	// XDSRoot and CARoot are what their certificates are verified against.
	// XDS_ROOT_CA, CA_ROOT_CA.
	XDSRoot, CARoot RootCert
	// AltXDSHostname and AltCAHostname are further names that the server may
	// prove. ALT_XDS_HOSTNAME, ALT_CA_HOSTNAME; empty: none.
	AltXDSHostname, AltCAHostname string
	// XDSHeaders and CAHeaders go with each request. XDS_HEADER_*, CA_HEADER_*.
	XDSHeaders, CAHeaders []Header
	// Token and TokenFile are how we authenticate: at most one is set; with
	// neither there is no authorization header. AUTH_TOKEN.
	Token, TokenFile string
	// OnDemand asks for resources when they are first needed. XDS_ON_DEMAND.
	OnDemand bool
	// FakeCA makes us our own certificate authority. FAKE_CA, default false.
	FakeCA bool
	// EmbeddedCADir holds its root and key. EMBEDDED_CA_DIR (ours), default
	// ./var/lib/ztunnel/ca.
	EmbeddedCADir string
	// SecretTTL is the life of the certificates that we ask for. SECRET_TTL,
	// default 24 h.
	SecretTTL time.Duration
	// CRLPath is a file of revoked certificates. CRL_PATH; empty: none.
	CRLPath string
	// PQC allows only X25519MLKEM768 for key exchange. COMPLIANCE_POLICY, on
	// only when exactly "pqc".
	PQC bool
	// TLS12 also allows TLS 1.2. TLS12_ENABLED, on only when exactly "true".
	TLS12 bool
}

// A Header is one of gRPC's metadata; Name is in lower case.
type Header struct{ Name, Value string }

// A RootCert is where root certificates come from: a file, the system's
// store, or the text itself.
type RootCert struct {
	File   string // a path that existed at start
	System bool
	Inline string // PEM
}

// LocalState is the file or text that workloads are read from besides xDS.
// LOCAL_XDS_PATH, LOCAL_XDS; at most one is set.
type LocalState struct{ Path, Inline string }

// HBONE holds what tunnels agree on with their peers, and the pool's limits.
type HBONE struct {
	// StreamWindow, ConnectionWindow and FrameSize are in bytes.
	// HTTP2_STREAM_WINDOW_SIZE (4 MiB), HTTP2_CONNECTION_WINDOW_SIZE (16 MiB),
	// HTTP2_FRAME_SIZE (1 MiB).
	StreamWindow, ConnectionWindow, FrameSize uint32
	// MaxStreams is how many connections share a tunnel.
	// POOL_MAX_STREAMS_PER_CONNECTION, default 100.
	MaxStreams uint16
	// Handshakes is how many connections to the tunnel ports of all pods may be
	// without a finished handshake at the same time, and HandshakesPerSource
	// how many of one address. HANDSHAKE_LIMIT (ours), default 4096;
	// HANDSHAKE_LIMIT_PER_SOURCE (ours), default 512. Zero: no limit.
	Handshakes, HandshakesPerSource uint16
	// IdleTimeout is how long a tunnel outlives its last connection.
	// POOL_UNUSED_RELEASE_TIMEOUT, default 5 min.
	IdleTimeout time.Duration
}

// Sockets holds the options of data sockets.
type Sockets struct {
	// Keepalive turns probing on, after KeepaliveTime of silence, every
	// KeepaliveInterval, KeepaliveRetries times. KEEPALIVE_ENABLED (true),
	// KEEPALIVE_TIME and KEEPALIVE_INTERVAL (180 s), KEEPALIVE_RETRIES (9).
	Keepalive                        bool
	KeepaliveTime, KeepaliveInterval time.Duration
	KeepaliveRetries                 uint32
	// UserTimeout sets TCP_USER_TIMEOUT to the time that the probes take.
	// USER_TIMEOUT_ENABLED, default false.
	UserTimeout bool
	// PacketMark is put on our own sockets; nil: none. PACKET_MARK, default
	// 1337 in shared mode. Zero marks with nothing.
	PacketMark *uint32
	// OriginalSource: true needs transparent sockets, false never asks for
	// them, nil takes what it gets. ENABLE_ORIG_SRC.
	OriginalSource *bool
	// PortReuse sets SO_REUSEPORT on listeners in pods. INPOD_PORT_REUSE,
	// default true; where eBPF captures it means nothing.
	PortReuse bool
}

// Capture holds what is ours alone: how pods' traffic gets to us.
type Capture struct {
	// Mode is auto, ebpf or istio-cni. CAPTURE, default auto.
	Mode string
	// PinDir is where programs and maps are pinned. BPF_PIN_DIR, default
	// /sys/fs/bpf/ztunnel.
	PinDir string
	// CgroupRoot is the cgroup that programs are attached to; empty: the
	// root of cgroup v2, wherever it is mounted. CGROUP_ROOT.
	CgroupRoot string
	// HostNetns stands in for the machine's own namespace in labs; empty:
	// the kernel's initial one. HOST_NETNS.
	HostNetns string
	// ProbeScope says whose probes pass: host (every socket of the host) or
	// kubelet (its cgroup alone). PROBE_SCOPE, default host.
	ProbeScope string
}

// A WorkloadName names the pod that a proxy works for.
type WorkloadName struct{ Namespace, Name, ServiceAccount string }

// A Resolver is a parsed resolver configuration, as config_dump shows it.
type Resolver struct {
	Domain      string
	Search      []string
	Nameservers []netip.AddrPort
	Ndots       int
	Attempts    int
	Timeout     time.Duration // for one attempt
	EDNS0       bool
}

// A DNSAddr is where the DNS proxy listens: both loopback addresses, or one
// address.
type DNSAddr struct {
	Localhost bool
	Port      uint16         // with Localhost
	Addr      netip.AddrPort // without
}
