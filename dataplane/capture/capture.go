// SPDX-License-Identifier: Apache-2.0

// Package capture gives a pod's connections to the proxy: listeners whose
// connections know where they were going, whoever turned them round (our eBPF
// programs, or istio-cni's rules), and sockets back to the pod's applications
// and out to the network that are never captured again.
//
// It decides per pod which of the two it is, proves that capture works before
// the pod may be called ready and goes on proving it, and leaves capture closed
// when the proxy stops. It does not know what becomes of a connection.
// docs/wire/redirect.md has the marks, rules, maps and the order of things.
package capture

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/ztunnel-go/ztunnel/internal/sock"
)

// A Mode says who may capture.
type Mode uint8

// The values of CAPTURE.
const (
	Auto     Mode = iota // istio-cni's rules where a pod has them, else eBPF, else the pod is refused
	EBPF                 // eBPF, or the pod is refused
	IstioCNI             // istio-cni's rules; no program is loaded
)

// ParseMode reads a value of CAPTURE: auto, ebpf, istio-cni. The empty string
// is auto.
func ParseMode(s string) (Mode, error) {
	switch strings.ToLower(s) {
	case "", "auto":
		return Auto, nil
	case "ebpf":
		return EBPF, nil
	case "istio-cni":
		return IstioCNI, nil
	}
	return Auto, fmt.Errorf("capture mode %q is none of auto, ebpf, istio-cni", s)
}

func (m Mode) String() string {
	return [...]string{"auto", "ebpf", "istio-cni"}[m]
}

// A ProbeScope says which sockets of the host reach a pod's application
// without the proxy.
type ProbeScope uint8

// The values of PROBE_SCOPE.
const (
	ProbeHost    ProbeScope = iota // every socket of the host's namespace, as Istio has it
	ProbeKubelet                   // those in kubelet's cgroup
)

// ParseProbeScope reads a value of PROBE_SCOPE: host (also the empty string),
// kubelet.
func ParseProbeScope(s string) (ProbeScope, error) {
	switch strings.ToLower(s) {
	case "", "host":
		return ProbeHost, nil
	case "kubelet":
		return ProbeKubelet, nil
	}
	return ProbeHost, fmt.Errorf("probe scope %q is neither host nor kubelet", s)
}

// A Tier is how one pod is captured.
type Tier uint8

// The tiers. No pod of a node is without capture: such a one is refused.
const (
	TierEBPF     Tier = iota + 1 // A: all eBPF
	TierIstioCNI                 // C: istio-cni's rules
	TierPlain                    // of [Plain]: rules that we know nothing of, if any
)

func (t Tier) String() string {
	switch t {
	case TierEBPF:
		return "ebpf"
	case TierIstioCNI:
		return "istio-cni"
	case TierPlain:
		return "plain"
	}
	return "none"
}

// A Role is what a listener is for.
type Role uint8

// The roles.
const (
	Outbound  Role = iota // 15001: what the pod's applications open
	Plaintext             // 15006: what arrives without a tunnel
	HBONE                 // 15008: tunnels from peers
	roles
)

func (r Role) String() string {
	return [...]string{"outbound", "inbound plaintext", "inbound"}[r]
}

// Port is the one under which the role is known (contract 2.1).
func (r Role) Port() uint16 {
	return [...]uint16{15001, 15006, 15008}[r]
}

// dnsPort is where the DNS server of a pod listens (contract 2.1).
const dnsPort = 15053

// defaultMark is PACKET_MARK's default (contract 1.4).
const defaultMark = 0x539

// A Config says how to capture. Its zero value is what a node of a cluster
// wants, apart from SpoofSource and DNS.
type Config struct {
	Mode Mode // who may capture
	// PinDir is on a bpf file system; our pins go to PinDir/v<abi>. Empty:
	// /sys/fs/bpf/ztunnel.
	PinDir string
	// CgroupRoot is where the programs are attached. Empty: the root of the
	// cgroup2 hierarchy, which must be mounted.
	CgroupRoot string
	// HostNetns is a path to the namespace whose sockets count as the host's,
	// for labs. Empty: the initial one.
	HostNetns string
	// ProbeScope says who reaches applications directly.
	ProbeScope ProbeScope
	// Mark goes on the proxy's sockets towards the network and, in tier C, on
	// its listeners. 0: 0x539.
	Mark uint32
	// Keepalive is for all TCP sockets but accepted tunnels.
	Keepalive sock.Keepalive
	// IPv6 false: tier C listens on IPv4 only. Tier A captures both in any
	// case: what is not captured would leave in plaintext.
	IPv6 bool
	// SpoofSource keeps the client's address on the way to the application.
	SpoofSource bool
	// DNS: the pod's DNS is captured, and answered by DNSPacketConns and
	// DNSListeners.
	DNS bool
	// PortReuse sets SO_REUSEPORT on the listeners of tier C. In tier A a
	// taken port means another one, since no client ever dials it.
	PortReuse bool
}

// PodInfo names a pod in logs, errors and counters.
type PodInfo struct {
	UID, Name, Namespace string

	// Late: the pod ran before anybody captured it. What it has open then ends.
	Late bool
}

// A Conn is a captured TCP connection.
type Conn struct {
	*net.TCPConn
	// Peer opened it; Dst is where it was going. Both are canonical: a
	// v4-mapped address is given as v4.
	Peer, Dst netip.AddrPort
}

// A Counter says how often one way out of a program, or one check of user
// space, was taken since the maps were made.
type Counter struct {
	Hook, Reason string
	Value        uint64
}
