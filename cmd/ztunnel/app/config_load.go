// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/balance"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/identity"
)

const metaJSONPrefix = "ISTIO_METAJSON_"

// Load reads the environment and the files that it names, and checks all of
// it. args is what followed the program's name. The first thing that is wrong
// is the error, in the reference's words where it has some (contract 1).
func Load(env Env, args []string) (*Config, error) {
	r := &reader{Env: env}
	mesh := r.proxyConfig()
	c := &Config{
		Proxy:              r.flag("ENABLE_PROXY", true),
		IPv6:               r.flag("IPV6_ENABLED", true),
		AdminPort:          or(mesh.adminPort, 15000),
		StatsPort:          or(mesh.statsPort, 15020),
		ReadinessPort:      PortReadiness,
		AdminSocket:        r.text("ADMIN_SOCKET", ""),
		SOCKS5:             r.flag("UNSTABLE_ENABLE_SOCKS5", false),
		IllegalPorts:       []uint16{PortOutbound, PortPlaintext, PortHBONE},
		Network:            r.text("NETWORK", ""),
		LocalNode:          r.text("NODE_NAME", ""),
		ClusterID:          r.text("ISTIO_META_CLUSTER_ID", r.text("CLUSTER_ID", "Kubernetes")),
		ClusterDomain:      r.text("CLUSTER_DOMAIN", "cluster.local"),
		PreferredNamespace: r.text("PREFERED_SERVICE_NAMESPACE", ""),
		Control:            r.controlPlane(mesh),
		Local:              r.localState(),
		HBONE:              r.hbone(),
		Capture:            r.capture(),
		Drain:              r.drain(),
		Threads:            r.threads(mesh.concurrency),
		InpodUDS:           r.text("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock"),
		HandoverSocket:     r.text("HANDOVER_SOCK", "/var/run/ztunnel/handover.sock"),
		ResolvConf:         r.text("RESOLV_CONF", "/etc/resolv.conf"),
		WorkloadWait:       r.duration("WORKLOAD_WAIT_TIMEOUT", 5*time.Second),
		DNSCache:           r.flag("DNS_CACHE", true),
		LocalhostAppTunnel: r.flag("LOCALHOST_APP_TUNNEL", true),
		ResponseBaggage:    r.flag("ENABLE_RESPONSE_BAGGAGE", true),
		AccessLog: report.Extras{
			Reasons: r.flag("ACCESS_LOG_REASON", false),
			TCPInfo: r.flag("ACCESS_LOG_TCP_INFO", false),
		},
		Engine:       r.oneOf("TLS_ENGINE", "reactor", "std"),
		Balance:      r.oneOf("LB_POLICY", balance.LeastLoaded.String(), balance.Random.String()),
		PolicyInfo:   r.text("AUTHZ_POLICY_INFO_LOGGING", "") == "true",
		Args:         strings.Join(args, " "),
		Metadata:     r.metadata(mesh.metadata),
		InstanceIP:   r.text("INSTANCE_IP", "1.1.1.1"),
		IstioVersion: env.IstioVersion(),
	}
	r.who(c)
	c.Sockets = r.sockets(c.Dedicated)
	r.dns(c)
	r.metadataJSON(c)
	if c.SOCKS5 {
		c.IllegalPorts = append(c.IllegalPorts, PortSOCKS5)
	}
	if r.err == nil {
		r.err = c.check()
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

func or[T any](p *T, def T) T {
	if p != nil {
		return *p
	}
	return def
}

// check refuses what cannot work together.
func (c *Config) check() error {
	if c.DNSProxy && c.Control.OnDemand {
		return errors.New("error parsing proxy config: DNS proxy does not currently support on-demand mode")
	}
	if c.WorkloadWait == 0 {
		return errors.New("invalid configuration: WORKLOAD_WAIT_TIMEOUT must be longer than zero: nobody would wait for the workload of a new pod")
	}
	if !c.Proxy && !c.DNSProxy {
		return errors.New("error parsing proxy config: ztunnel run without any servers enabled")
	}
	return nil
}

// who reads on whose behalf we run, and who we are ourselves.
func (r *reader) who(c *Config) {
	switch mode := r.text("PROXY_MODE", "shared"); mode {
	case "shared":
	case "dedicated":
		c.Dedicated = true
		c.Workload = r.workload()
	default:
		r.fail("PROXY_MODE", mode, "PROXY_MODE must be one of dedicated, shared")
	}
	c.PodName, c.PodNamespace = r.text("POD_NAME", ""), r.text("POD_NAMESPACE", "")
	_, hasName := r.get("POD_NAME")
	_, hasNamespace := r.get("POD_NAMESPACE")
	account, hasAccount := r.get("SERVICE_ACCOUNT")
	if !hasName || !hasNamespace || !hasAccount {
		return
	}
	id, err := identity.New(r.text("TRUST_DOMAIN", "cluster.local"), c.PodNamespace, account)
	if err != nil {
		r.failWith(fmt.Errorf("invalid configuration: TRUST_DOMAIN, POD_NAMESPACE and SERVICE_ACCOUNT make no identity: %w", err))
		return
	}
	c.SelfIdentity = id
	c.SelfWorkload = &WorkloadName{Namespace: c.PodNamespace, Name: c.PodName, ServiceAccount: account}
}

// workload is the one that a dedicated proxy works for.
func (r *reader) workload() *WorkloadName {
	info, ok := r.get("PROXY_WORKLOAD_INFO")
	if !ok {
		r.failWith(errors.New("invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set"))
		return nil
	}
	parts := strings.SplitN(info, "/", 3)
	if len(parts) != 3 {
		r.failWith(fmt.Errorf("invalid configuration: PROXY_WORKLOAD_INFO must match the format "+
			"'namespace/name/service-account' (got %s)", info))
		return nil
	}
	return &WorkloadName{Namespace: parts[0], Name: parts[1], ServiceAccount: parts[2]}
}

func (r *reader) hbone() HBONE {
	// Beyond these limits no peer would take our settings (RFC 9113 6.5.2).
	const mostWindow, leastFrame, mostFrame = 1<<31 - 1, 1 << 14, 1<<24 - 1
	return HBONE{
		StreamWindow:     r.size("HTTP2_STREAM_WINDOW_SIZE", 4<<20, 0, mostWindow),
		ConnectionWindow: r.size("HTTP2_CONNECTION_WINDOW_SIZE", 16<<20, 0, mostWindow),
		FrameSize:        r.size("HTTP2_FRAME_SIZE", 1<<20, leastFrame, mostFrame),
		MaxStreams:       r.u16("POOL_MAX_STREAMS_PER_CONNECTION", 100),

		Handshakes:          r.u16("HANDSHAKE_LIMIT", 4096),
		HandshakesPerSource: r.u16("HANDSHAKE_LIMIT_PER_SOURCE", 512),
		IdleTimeout:         r.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute),
	}
}

func (r *reader) sockets(dedicated bool) Sockets {
	s := Sockets{
		Keepalive:         r.flag("KEEPALIVE_ENABLED", true),
		KeepaliveTime:     r.duration("KEEPALIVE_TIME", 180*time.Second),
		KeepaliveInterval: r.duration("KEEPALIVE_INTERVAL", 180*time.Second),
		KeepaliveRetries:  r.u32("KEEPALIVE_RETRIES", 9),
		UserTimeout:       r.flag("USER_TIMEOUT_ENABLED", false),
		OriginalSource:    r.optionalFlag("ENABLE_ORIG_SRC"),
		PortReuse:         r.flag("INPOD_PORT_REUSE", true),
	}
	const istioMark = 1337 // what istio-cni's rules let pass (contract 2.7)
	mark := r.u32("PACKET_MARK", istioMark)
	if _, set := r.get("PACKET_MARK"); set || !dedicated {
		s.PacketMark = &mark
	}
	return s
}

func (r *reader) capture() Capture {
	return Capture{
		Mode:       r.oneOf("CAPTURE", "auto", "ebpf", "istio-cni"),
		PinDir:     r.text("BPF_PIN_DIR", "/sys/fs/bpf/ztunnel"),
		CgroupRoot: r.text("CGROUP_ROOT", ""),
		HostNetns:  r.text("HOST_NETNS", ""),
		ProbeScope: r.oneOf("PROBE_SCOPE", "host", "kubelet"),
	}
}

// oneOf reads a word; the first choice is the default.
func (r *reader) oneOf(name string, choices ...string) string {
	v := r.text(name, choices[0])
	if !slices.Contains(choices, v) {
		r.fail(name, v, name+" must be one of "+strings.Join(choices, ", "))
	}
	return v
}

// drain is the deadline for open connections. Kubernetes' grace period leaves
// us a few seconds to go, since at its end the process is killed.
func (r *reader) drain() time.Duration {
	const usual = 5 * time.Second
	if _, ok := r.get("CONNECTION_TERMINATION_DEADLINE"); ok {
		return r.duration("CONNECTION_TERMINATION_DEADLINE", usual)
	}
	if _, ok := r.get("TERMINATION_GRACE_PERIOD_SECONDS"); !ok {
		return usual
	}
	seconds := r.unsigned("TERMINATION_GRACE_PERIOD_SECONDS", 0, 32)
	switch {
	case seconds > 10:
		seconds -= 5
	case seconds > 1: // zero underflows in the reference
		seconds--
	default:
		seconds = 1
	}
	return time.Duration(seconds) * time.Second
}

// dns reads whether and where pods' names are answered. Both settings are
// metadata, which a mesh configuration may hold as well as the environment.
func (r *reader) dns(c *Config) {
	capture, set := c.Metadata["DNS_CAPTURE"]
	c.DNSProxy = !set || strings.ToLower(capture) == "true"

	var notice string
	if c.IPv6Localhost, notice = ipv6Localhost(c.IPv6, "/proc/sys/net/ipv6/conf/lo/disable_ipv6"); notice != "" {
		c.Notices = append(c.Notices, Notice{slog.LevelWarn, notice})
	}
	c.DNSProxyAddr = DNSAddr{Localhost: true, Port: 15053}
	v, set := c.Metadata["DNS_PROXY_ADDR"]
	if !set {
		return
	}
	var err error
	if port, ok := strings.CutPrefix(v, "localhost:"); ok {
		var n uint64
		n, err = parseUnsigned(port, 16)
		c.DNSProxyAddr.Port = uint16(n)
	} else {
		c.DNSProxyAddr = DNSAddr{}
		c.DNSProxyAddr.Addr, err = netip.ParseAddrPort(v)
	}
	if err != nil {
		r.failWith(fmt.Errorf("invalid configuration: failed to parse DNS_PROXY_ADDR: %s (%v)", v, err))
	}
}

// ipv6Localhost reports whether ::1 can be bound. Where the kernel's switch
// cannot be read it is taken to be on.
func ipv6Localhost(enabled bool, sysctl string) (bool, string) {
	if !enabled {
		return false, ""
	}
	off, err := os.ReadFile(sysctl)
	if err != nil {
		return true, fmt.Sprintf("failed to read %s, assuming IPv6 is enabled on lo: %v", sysctl, err)
	}
	return strings.TrimSpace(string(off)) != "1", ""
}

// metadataJSON collects the values that are JSON. One that is not is left
// out, with a line in the log, as the reference does (contract 1.4).
func (r *reader) metadataJSON(c *Config) {
	for _, v := range r.withPrefix(metaJSONPrefix) {
		key := withoutAll(v.name, metaJSONPrefix)
		if !json.Valid([]byte(v.value)) {
			c.Notices = append(c.Notices, Notice{slog.LevelError, fmt.Sprintf("failed to parse %s=%s", key, v.value)})
			continue
		}
		if c.MetadataJSON == nil {
			c.MetadataJSON = map[string]json.RawMessage{}
		}
		c.MetadataJSON[key] = json.RawMessage(v.value)
	}
}
