// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/dataplane/capture"
	"github.com/ztunnel-go/ztunnel/dataplane/report"
	"github.com/ztunnel-go/ztunnel/internal/control"
	"github.com/ztunnel-go/ztunnel/internal/logs"
	"github.com/ztunnel-go/ztunnel/internal/mesh"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
	"github.com/ztunnel-go/ztunnel/internal/sock"
	"github.com/ztunnel-go/ztunnel/xds"
)

// The tests of this file follow each variable to what the part of the proxy
// that acts on it is given; what that does with it is tested where it lives.
// docs/compat.md names both. That they fail for a variable that is ignored is
// tried out by package test/variables.

// A given is one variable and what it leads to.
type given struct {
	name, value string
	what        func(n *node) any
	want        any
}

// lead sets each variable by itself, over those that they have in common.
func lead(t *testing.T, common map[string]string, all []given) {
	t.Helper()
	for _, g := range all {
		t.Run(g.name, func(t *testing.T) {
			n := configured(t, with(common, g.name, g.value))
			if got := g.what(n); !reflect.DeepEqual(got, g.want) {
				t.Errorf("%s=%s leads to %+v, want %+v", g.name, g.value, got, g.want)
			}
		})
	}
}

// configured is a node of which nothing has been built.
func configured(t *testing.T, vars map[string]string) *node {
	t.Helper()
	log, err := logs.New(logs.Config{Output: &output{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return &node{nodeParams: nodeParams{cfg: load(t, vars), log: log}, logger: log.Logger(),
		registry: metrics.New(""), store: mesh.NewStore()}
}

func capturing(n *node) capture.Config {
	c, err := n.cfg.capture()
	if err != nil {
		panic(err) // Load lets no such value through
	}
	return c
}

func TestVariablesOfPods(t *testing.T) {
	lead(t, map[string]string{}, []given{
		{"NETWORK", "n1", func(n *node) any { return n.proxyConfig().Network }, "n1"},
		{"NODE_NAME", "node1", func(n *node) any {
			return []string{n.proxyConfig().Node, n.xdsConfig().LocalNode, n.xdsConfig().Node.NodeName}
		},
			[]string{"node1", "node1", "node1"}},
		{"ENABLE_RESPONSE_BAGGAGE", "false", func(n *node) any { return n.proxyConfig().ResponseBaggage }, false},
		{"POOL_MAX_STREAMS_PER_CONNECTION", "7", func(n *node) any { return n.proxyConfig().MaxStreams }, 7},
		{"POOL_UNUSED_RELEASE_TIMEOUT", "7s", func(n *node) any { return n.proxyConfig().IdleTimeout }, 7 * time.Second},
		{"HTTP2_STREAM_WINDOW_SIZE", "70000", func(n *node) any { return n.proxyConfig().Settings.StreamWindow }, uint32(70000)},
		{"HTTP2_CONNECTION_WINDOW_SIZE", "70000", func(n *node) any { return n.proxyConfig().Settings.ConnWindow }, uint32(70000)},
		{"HTTP2_FRAME_SIZE", "70000", func(n *node) any { return n.proxyConfig().Settings.MaxFrameSize }, uint32(70000)},
		{"TLS12_ENABLED", "true", func(n *node) any { return []bool{n.proxyConfig().TLS.TLS12, n.xdsConfig().Control.TLS12} }, []bool{true, true}},
		{"COMPLIANCE_POLICY", "pqc", func(n *node) any { return []bool{n.proxyConfig().TLS.PQC, n.xdsConfig().Control.PQC} }, []bool{true, true}},
		{"UNSTABLE_ENABLE_SOCKS5", "true", func(n *node) any {
			return n.cfg.SOCKS5 && slices.Contains(n.proxyConfig().Illegal, PortSOCKS5)
		}, true},
		{"LOCALHOST_APP_TUNNEL", "false", func(n *node) any { return n.proxyConfig().LocalhostTunnel }, false},
		{"AUTHZ_POLICY_INFO_LOGGING", "true", func(n *node) any { return n.proxyConfig().DecisionLevel }, slog.LevelInfo},
		{"WORKLOAD_WAIT_TIMEOUT", "7s", func(n *node) any { return n.proxyConfig().WorkloadWait }, 7 * time.Second},
		{"HANDOVER_SOCK", "/x/next.sock", func(n *node) any { return n.cfg.HandoverSocket }, "/x/next.sock"},
		{"INPOD_UDS", "/x/zds.sock", func(n *node) any { return n.enrollmentConfig().Socket }, "/x/zds.sock"},
	})
}

func TestVariablesOfCapture(t *testing.T) {
	keepalive := func(change func(*sock.Keepalive)) sock.Keepalive {
		k := sock.Keepalive{Enabled: true, Time: 180 * time.Second, Interval: 180 * time.Second, Retries: 9}
		change(&k)
		return k
	}
	ka := func(n *node) any { return capturing(n).Keepalive }
	lead(t, map[string]string{}, []given{
		{"CAPTURE", "istio-cni", func(n *node) any { return capturing(n).Mode }, capture.IstioCNI},
		{"BPF_PIN_DIR", "/x/pins", func(n *node) any { return capturing(n).PinDir }, "/x/pins"},
		{"CGROUP_ROOT", "/x/cgroup", func(n *node) any { return capturing(n).CgroupRoot }, "/x/cgroup"},
		{"HOST_NETNS", "/x/netns", func(n *node) any { return capturing(n).HostNetns }, "/x/netns"},
		{"PROBE_SCOPE", "kubelet", func(n *node) any { return capturing(n).ProbeScope }, capture.ProbeKubelet},
		{"PACKET_MARK", "7", func(n *node) any { return capturing(n).Mark }, uint32(7)},
		{"KEEPALIVE_ENABLED", "false", ka, keepalive(func(k *sock.Keepalive) { k.Enabled = false })},
		{"KEEPALIVE_TIME", "7s", ka, keepalive(func(k *sock.Keepalive) { k.Time = 7 * time.Second })},
		{"KEEPALIVE_INTERVAL", "7s", ka, keepalive(func(k *sock.Keepalive) { k.Interval = 7 * time.Second })},
		{"KEEPALIVE_RETRIES", "7", ka, keepalive(func(k *sock.Keepalive) { k.Retries = 7 })},
		{"USER_TIMEOUT_ENABLED", "true", ka, keepalive(func(k *sock.Keepalive) { k.UserTimeout = true })},
		{"IPV6_ENABLED", "false", func(n *node) any { return capturing(n).IPv6 }, false},
		{"ENABLE_ORIG_SRC", "false", func(n *node) any { return capturing(n).SpoofSource }, false},
		{"ISTIO_META_DNS_CAPTURE", "false", func(n *node) any { return capturing(n).DNS }, false},
		{"INPOD_PORT_REUSE", "false", func(n *node) any { return capturing(n).PortReuse }, false},
	})
}

func TestVariablesOfTheControlPlane(t *testing.T) {
	type headers []control.Header
	lead(t, map[string]string{}, []given{
		{"KUBERNETES_SERVICE_HOST", "10.0.0.1", func(n *node) any { return n.xdsConfig().Control.Address }, "https://istiod.istio-system.svc:15012"},
		{"XDS_ADDRESS", "x:1", func(n *node) any { return n.xdsConfig().Control.Address }, "https://x:1"},
		{"CA_ADDRESS", "c:1", func(n *node) any { return n.istiodConfig(nil).Channel.Address }, "https://c:1"},
		{"XDS_ROOT_CA", "SYSTEM", func(n *node) any { return n.xdsConfig().Control.Roots }, control.Roots{System: true}},
		{"CA_ROOT_CA", "SYSTEM", func(n *node) any { return n.istiodConfig(nil).Channel.Roots }, control.Roots{System: true}},
		{"ALT_XDS_HOSTNAME", "x.example", func(n *node) any { return n.xdsConfig().Control.AltHostname }, "x.example"},
		{"ALT_CA_HOSTNAME", "c.example", func(n *node) any { return n.istiodConfig(nil).Channel.AltHostname }, "c.example"},
		{"AUTH_TOKEN", "literal", func(n *node) any {
			return []control.Token{n.xdsConfig().Control.Token, n.istiodConfig(nil).Channel.Token}
		},
			[]control.Token{{Literal: "literal"}, {Literal: "literal"}}},
		{"CLUSTER_ID", "c1", func(n *node) any { return n.xdsConfig().Control.ClusterID }, "c1"},
		{"ISTIO_META_CLUSTER_ID", "c1", func(n *node) any { return n.istiodConfig(nil).Channel.ClusterID }, "c1"},
		{"SECRET_TTL", "1h", func(n *node) any { return n.istiodConfig(nil).TTL }, time.Hour},
		{"XDS_HEADER_A", "1", func(n *node) any { return headers(n.xdsConfig().Control.Headers) }, headers{{Name: "a", Value: "1"}}},
		{"CA_HEADER_A", "1", func(n *node) any { return headers(n.istiodConfig(nil).Channel.Headers) }, headers{{Name: "a", Value: "1"}}},
		{"INSTANCE_IP", "10.0.0.1", func(n *node) any { return n.xdsConfig().Node.InstanceIP }, "10.0.0.1"},
		{"POD_NAME", "p", func(n *node) any { return n.xdsConfig().Node.PodName }, "p"},
		{"POD_NAMESPACE", "ns", func(n *node) any { return n.xdsConfig().Node.PodNamespace }, "ns"},
		{"ISTIO_META_A", "1", func(n *node) any { return n.xdsConfig().Node.Metadata["A"] }, "1"},
		{"ISTIO_METAJSON_A", "[1]", func(n *node) any { return string(n.xdsConfig().Node.MetadataJSON["A"]) }, "[1]"},
		{"PROXY_CONFIG", `{discoveryAddress: "d:1", proxyMetadata: {}}`, func(n *node) any { return n.xdsConfig().Control.Address }, "https://d:1"},
	})
}

func TestOnDemandTheControlPlaneIsAsked(t *testing.T) {
	lead(t, map[string]string{"ISTIO_META_DNS_CAPTURE": "false"}, []given{
		{"XDS_ON_DEMAND", "true", func(n *node) any {
			n.feed = &xds.Feed{}
			return []bool{n.xdsConfig().OnDemand, n.shared(n.logger).Demand != nil}
		}, []bool{true, true}},
	})
}

func TestVariablesOfDNS(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 192.0.2.77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := func(n *node) *podProxy { return &podProxy{node: n} }
	lead(t, map[string]string{}, []given{
		{"CLUSTER_DOMAIN", "x.local", func(n *node) any { return pod(n).dnsConfig(n.logger).Domain }, "x.local"},
		{"PREFERED_SERVICE_NAMESPACE", "ns", func(n *node) any { return pod(n).dnsConfig(n.logger).PreferredNamespace }, "ns"},
		{"IPV6_ENABLED", "false", func(n *node) any { return pod(n).dnsConfig(n.logger).IPv6 }, false},
		{"DNS_CACHE", "false", func(n *node) any { return pod(n).dnsConfig(n.logger).Cache }, -1},
		{"RESOLV_CONF", conf, func(n *node) any {
			defer n.close()
			if err := n.buildResolver(t.Context()); err != nil {
				return err
			}
			return n.cfg.Resolver.Nameservers
		}, []netip.AddrPort{netip.MustParseAddrPort("192.0.2.77:53")}},
	})
}

// files are the names in a directory.
func files(dir string) []string {
	var names []string
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, d.Name())
		}
		return nil // a directory that is not there has no files
	})
	slices.Sort(names)
	return names
}

func TestVariablesOfTheNode(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state.yaml")
	if err := os.WriteFile(state, []byte(localState), 0o600); err != nil {
		t.Fatal(err)
	}
	workloads := func(n *node) any {
		n.cfg.Control.XDSAddress = "" // what is asked here is the file alone
		err := n.buildState(t.Context())
		defer n.close()
		return fmt.Sprint(n.store.View().WorkloadAt(mesh.NetworkAddr{Addr: netip.MustParseAddr("10.0.0.1")}) != nil, err)
	}
	authority := func(n *node) any {
		if !n.cfg.Control.FakeCA {
			return "istiod's"
		}
		err := n.buildCerts(t.Context())
		defer n.close()
		return fmt.Sprint(files(n.cfg.Control.EmbeddedCADir), err)
	}
	extras := func(n *node) any {
		if err := n.buildMetrics(t.Context()); err != nil {
			return err
		}
		return n.reporter.Extras()
	}
	made := fmt.Sprint([]string{"ca-key.pem", "root-cert.pem"}, error(nil))
	lab := map[string]string{"XDS_ADDRESS": "", "FAKE_CA": "true"}
	lead(t, lab, []given{
		{"LOCAL_XDS_PATH", state, workloads, fmt.Sprint(true, error(nil))},
		{"LOCAL_XDS", localState, workloads, fmt.Sprint(true, error(nil))},
		{"FAKE_CA", "true", authority, made},
		{"EMBEDDED_CA_DIR", filepath.Join(dir, "ca"), func(n *node) any {
			return []any{authority(n), files(filepath.Join(dir, "ca"))}
		}, []any{made, []string{"ca-key.pem", "root-cert.pem"}}},
	})
	lead(t, map[string]string{}, []given{
		{"CONNECTION_TERMINATION_DEADLINE", "7s", func(n *node) any { return n.cfg.Drain }, 7 * time.Second},
		{"TERMINATION_GRACE_PERIOD_SECONDS", "30", func(n *node) any { return n.cfg.Drain }, 25 * time.Second},
		{"ACCESS_LOG_REASON", "true", extras, report.Extras{Reasons: true}},
		{"ACCESS_LOG_TCP_INFO", "true", extras, report.Extras{TCPInfo: true}},
		{"CRL_PATH", state, func(n *node) any { return n.buildRevocation(context.Background()) != nil }, true},
	})
	who := map[string]string{"POD_NAME": "p", "POD_NAMESPACE": "ns", "SERVICE_ACCOUNT": "sa", "TRUST_DOMAIN": "td"}
	for name := range who {
		t.Run(name, func(t *testing.T) {
			n := configured(t, maps.Clone(who))
			if got, want := n.cfg.SelfIdentity.String(), "spiffe://td/ns/ns/sa/sa"; got != want {
				t.Errorf("we are %q, want %q", got, want)
			}
		})
	}
}

// TestThreadsAreLimited holds that what is asked for is what the runtime does.
func TestThreadsAreLimited(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	running := func(n *node) any {
		n.cfg.limitThreads()
		return runtime.GOMAXPROCS(0)
	}
	lead(t, map[string]string{}, []given{ // of 8 CPUs
		{"ZTUNNEL_WORKER_THREADS", "3", running, 3},
		{"ZTUNNEL_RESOURCE_CPU_LIMIT", "5", running, 5},
		{"ZTUNNEL_RESOURCE_CPU_REQUEST", "6", running, 6},
		{"ZTUNNEL_CPU_LIMIT", "16", running, 4},
	})
}
