// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"go.yaml.in/yaml/v3"
)

// An object is a mapping whose order matters where people read it: the YAML
// that is logged at start keeps it; JSON sorts the keys (contract 13.4).
type object []field

type field struct {
	key   string
	value any
}

// MarshalJSON writes the keys in the order of the alphabet.
func (o object) MarshalJSON() ([]byte, error) {
	m := make(map[string]any, len(o))
	for _, f := range o {
		m[f.key] = f.value
	}
	return json.Marshal(m)
}

// MarshalYAML writes the keys in the order of declaration.
func (o object) MarshalYAML() (any, error) {
	node := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range o {
		var key, value yaml.Node
		if err := key.Encode(f.key); err != nil {
			return nil, err
		}
		if err := value.Encode(f.value); err != nil {
			return nil, fmt.Errorf("%s: %w", f.key, err)
		}
		node.Content = append(node.Content, &key, &value)
	}
	return node, nil
}

// MarshalJSON is the object "config" of /config_dump: the reference's keys
// (contract 13.4.1) and ours. No secret is in it: tokens and local resources
// are never shown.
func (c *Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.dump()) }

// YAML is what is logged at start after "running with config:".
func (c *Config) YAML() (string, error) {
	text, err := yaml.Marshal(c.dump())
	if err != nil {
		return "", fmt.Errorf("print configuration: %w", err)
	}
	return string(text), nil
}

// dump has the keys in the order in which the reference declares them.
func (c *Config) dump() object {
	o := object{{"proxy", c.Proxy}, {"dnsProxy", c.DNSProxy}}
	o = append(o, c.HBONE.dump()...)
	o = append(o, c.addresses()...)
	o = append(o, c.place()...)
	o = append(o, c.Control.dump()...)
	o = append(o, object{
		{"selfTerminationDeadline", duration(c.Drain)},
		{"proxyMetadata", c.Metadata},
		{"numWorkerThreads", c.Threads},
		{"requireOriginalSource", c.Sockets.OriginalSource},
		{"proxyArgs", c.Args},
		{"dnsResolverCfg", c.Resolver.servers()},
		{"dnsResolverOpts", c.Resolver.options(c.IPv6)},
		{"socketConfig", c.Sockets.dump()},
		{"packetMark", c.Sockets.PacketMark},
		{"fakeSelfInbound", false},
		{"localhostAppTunnel", c.LocalhostAppTunnel},
		{"inpodUds", c.InpodUDS},
		{"inpodPortReuse", c.Sockets.PortReuse},
		{"ztunnelIdentity", orNull(c.SelfIdentity.String())},
		{"ztunnelWorkload", c.SelfWorkload.dump()},
		{"ipv6Enabled", c.IPv6},
		{"enableEnhancedBaggage", c.ResponseBaggage},
	}...)
	return append(o, c.ours()...)
}

// ours are the keys that the reference does not have.
func (c *Config) ours() object {
	return object{
		{"adminSocket", orNull(c.AdminSocket)},
		{"capture", c.Capture.Mode},
		{"bpfPinDir", c.Capture.PinDir},
		{"cgroupRoot", orNull(c.Capture.CgroupRoot)},
		{"hostNetns", orNull(c.Capture.HostNetns)},
		{"probeScope", c.Capture.ProbeScope},
		{"embeddedCaDir", c.Control.EmbeddedCADir},
		{"resolvConf", c.ResolvConf},
		{"dnsCache", c.DNSCache},
		{"compliancePqc", c.Control.PQC},
		{"tls12Enabled", c.Control.TLS12},
		{"authzPolicyInfoLogging", c.PolicyInfo},
		{"accessLogReason", c.AccessLog.Reasons},
		{"accessLogTcpInfo", c.AccessLog.TCPInfo},
		{"lbPolicy", c.Balance},
		{"workloadWaitTimeout", duration(c.WorkloadWait)},
	}
}

// addresses are those of the listeners.
func (c *Config) addresses() object {
	wildcard := netip.IPv4Unspecified()
	if c.IPv6 {
		wildcard = netip.IPv6Unspecified()
	}
	at := func(port uint16) string { return netip.AddrPortFrom(wildcard, port).String() }
	socks5 := ""
	if c.SOCKS5 {
		socks5 = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), PortSOCKS5).String()
	}
	return object{
		{"socks5Addr", orNull(socks5)},
		{"adminAddr", c.localhost(c.AdminPort)},
		{"statsAddr", object{{"SocketAddr", at(c.StatsPort)}}},
		{"readinessAddr", object{{"SocketAddr", at(c.ReadinessPort)}}},
		{"inboundAddr", at(PortHBONE)},
		{"inboundPlaintextAddr", at(PortPlaintext)},
		{"outboundAddr", at(PortOutbound)},
		{"dnsProxyAddr", c.dnsProxyAddr()},
		{"illegalPorts", c.IllegalPorts},
	}
}

// localhost is the reference's form of "both loopback addresses": whether ::1
// is one of them, and the port.
func (c *Config) localhost(port uint16) object {
	return object{{"Localhost", []any{c.IPv6Localhost, port}}}
}

func (c *Config) dnsProxyAddr() object {
	if c.DNSProxyAddr.Localhost {
		return c.localhost(c.DNSProxyAddr.Port)
	}
	return object{{"SocketAddr", c.DNSProxyAddr.Addr.String()}}
}

// place says where in the mesh we are.
func (c *Config) place() object {
	mode := "Shared"
	if c.Dedicated {
		mode = "Dedicated"
	}
	return object{
		{"network", c.Network},
		{"localNode", orNull(c.LocalNode)},
		{"proxyMode", mode},
		{"proxyWorkloadInformation", c.Workload.dump()},
		{"clusterId", c.ClusterID},
		{"clusterDomain", c.ClusterDomain},
		{"preferedServiceNamespace", orNull(c.PreferredNamespace)},
	}
}

func (c ControlPlane) dump() object {
	return object{
		{"caAddress", orNull(c.CAAddress)},
		{"caRootCert", c.CARoot.dump()},
		{"altCaHostname", orNull(c.AltCAHostname)},
		{"xdsAddress", orNull(c.XDSAddress)},
		{"xdsRootCert", c.XDSRoot.dump()},
		{"altXdsHostname", orNull(c.AltXDSHostname)},
		{"secretTtl", duration(c.SecretTTL)},
		{"xdsOnDemand", c.OnDemand},
		{"fakeCa", c.FakeCA},
		{"xdsHeaders", headerPairs(c.XDSHeaders)},
		{"caHeaders", headerPairs(c.CAHeaders)},
		{"crlPath", orNull(c.CRLPath)},
	}
}

func (r RootCert) dump() any {
	switch {
	case r.File != "":
		return object{{"File", r.File}}
	case r.System:
		return "Default"
	default:
		return "Static"
	}
}

func headerPairs(headers []Header) [][2]string {
	pairs := make([][2]string, 0, len(headers))
	for _, h := range headers {
		pairs = append(pairs, [2]string{h.Name, h.Value})
	}
	return pairs
}

func (h HBONE) dump() object {
	return object{
		{"windowSize", h.StreamWindow},
		{"connectionWindowSize", h.ConnectionWindow},
		{"frameSize", h.FrameSize},
		{"poolMaxStreamsPerConn", h.MaxStreams},
		{"poolUnusedReleaseTimeout", duration(h.IdleTimeout)},
	}
}

func (s Sockets) dump() object {
	return object{
		{"keepaliveTime", duration(s.KeepaliveTime)},
		{"keepaliveInterval", duration(s.KeepaliveInterval)},
		{"keepaliveRetries", s.KeepaliveRetries},
		{"keepaliveEnabled", s.Keepalive},
		{"userTimeoutEnabled", s.UserTimeout},
	}
}

func (w *WorkloadName) dump() any {
	if w == nil {
		return nil
	}
	return object{{"name", w.Name}, {"namespace", w.Namespace}, {"serviceAccount", w.ServiceAccount}}
}

func (r Resolver) servers() object {
	servers := []object{}
	for _, ns := range r.Nameservers {
		connection := func(protocol string) object {
			return object{
				{"port", ns.Port()},
				{"protocol", object{{"type", protocol}}},
				{"bind_addr", nil},
			}
		}
		servers = append(servers, object{
			{"ip", ns.Addr().String()},
			{"trust_negative_responses", true},
			{"connections", []object{connection("udp"), connection("tcp")}},
		})
	}
	return object{{"domain", orNull(r.Domain)}, {"search", append([]string{}, r.Search...)}, {"name_servers", servers}}
}

// options are those of the reference's resolver options that ours has.
func (r Resolver) options(ipv6 bool) object {
	strategy := "Ipv4Only"
	if ipv6 {
		strategy = "Ipv4AndIpv6"
	}
	return object{
		{"ndots", r.Ndots},
		{"timeout", int64(r.Timeout / time.Second)}, // a number here, other than the durations above
		{"attempts", r.Attempts},
		{"edns0", r.EDNS0},
		{"ip_strategy", strategy},
		{"recursion_desired", true},
	}
}

func duration(d time.Duration) object {
	return object{{"secs", int64(d / time.Second)}, {"nanos", int64(d % time.Second)}}
}

// orNull is nil for what was not given.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
