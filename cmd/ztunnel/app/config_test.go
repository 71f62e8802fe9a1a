// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// load reads vars in an empty working directory, so that no file of the
// checkout is taken for a configuration.
func load(t *testing.T, vars map[string]string) *Config {
	t.Helper()
	return loadWith(t, vars, 8)
}

func loadWith(t *testing.T, vars map[string]string, cpus int) *Config {
	t.Helper()
	t.Chdir(t.TempDir())
	c, err := Load(MapEnv(vars, cpus), []string{"proxy", "ztunnel"})
	if err != nil {
		t.Fatalf("%v: %v", vars, err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	c := load(t, nil)
	mark := uint32(1337)
	for _, tc := range []struct {
		name      string
		got, want any
	}{
		{"Proxy", c.Proxy, true},
		{"DNSProxy", c.DNSProxy, true},
		{"DNSProxyAddr", c.DNSProxyAddr, DNSAddr{Localhost: true, Port: 15053}},
		{"ports", []uint16{c.AdminPort, c.StatsPort, c.ReadinessPort}, []uint16{15000, 15020, 15021}},
		{"IllegalPorts", c.IllegalPorts, []uint16{15001, 15006, 15008}},
		{"cluster", []string{c.ClusterID, c.ClusterDomain, c.Network, c.LocalNode}, []string{"Kubernetes", "cluster.local", "", ""}},
		{"Control", c.Control, ControlPlane{
			XDSAddress: "https://localhost:15012", CAAddress: "https://localhost:15012",
			XDSRoot: RootCert{Inline: defaultRootCert}, CARoot: RootCert{Inline: defaultRootCert},
			EmbeddedCADir: "./var/lib/ztunnel/ca", SecretTTL: 24 * time.Hour,
		}},
		{"HBONE", c.HBONE, HBONE{4 << 20, 16 << 20, 1 << 20, 100, 4096, 512, 5 * time.Minute}},
		{"Sockets", c.Sockets, Sockets{
			Keepalive: true, KeepaliveTime: 180 * time.Second, KeepaliveInterval: 180 * time.Second,
			KeepaliveRetries: 9, PacketMark: &mark, PortReuse: true,
		}},
		{"Capture", c.Capture, Capture{Mode: "auto", PinDir: "/sys/fs/bpf/ztunnel", ProbeScope: "host"}},
		{"Balance", c.Balance, "least-loaded"},
		{"Drain", c.Drain, 5 * time.Second},
		{"InpodUDS", c.InpodUDS, "/var/run/ztunnel/ztunnel.sock"},
		{"ResolvConf", c.ResolvConf, "/etc/resolv.conf"},
		{"DNSCache", c.DNSCache, true},
		{"Args", c.Args, "proxy ztunnel"},
		{"Metadata", c.Metadata, map[string]string{}},
		{"SelfIdentity", c.SelfIdentity.String(), ""},
		{"IstioVersion", c.IstioVersion, "unknown"},
	} {
		if !reflect.DeepEqual(tc.got, tc.want) {
			t.Errorf("%s is %+v, want %+v", tc.name, tc.got, tc.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	dedicated := map[string]string{"PROXY_MODE": "dedicated"}
	for _, tc := range []struct {
		vars map[string]string
		want string
	}{
		{map[string]string{"ENABLE_PROXY": "True"}, "invalid env var ENABLE_PROXY=True (provided string was not `true` or `false`)"},
		{map[string]string{"ENABLE_PROXY": ""}, "invalid env var ENABLE_PROXY= (provided string was not `true` or `false`)"},
		{map[string]string{"ENABLE_ORIG_SRC": "no"}, "invalid env var ENABLE_ORIG_SRC=no (provided string was not `true` or `false`)"},
		{map[string]string{"SECRET_TTL": ""}, "invalid env var SECRET_TTL= (Empty input)"},
		{map[string]string{"PACKET_MARK": "0x539"}, "invalid env var PACKET_MARK=0x539 (invalid digit found in string)"},
		{map[string]string{"POOL_MAX_STREAMS_PER_CONNECTION": "65536"},
			"invalid env var POOL_MAX_STREAMS_PER_CONNECTION=65536 (number too large to fit in target type)"},
		{map[string]string{"HTTP2_FRAME_SIZE": "100"}, "invalid env var HTTP2_FRAME_SIZE=100 (must be between 16384 and 16777215)"},
		{map[string]string{"ZTUNNEL_WORKER_THREADS": "101%"},
			"invalid env var ZTUNNEL_WORKER_THREADS=101% (percentage must be between 0 and 100)"},
		{map[string]string{"ZTUNNEL_RESOURCE_CPU_LIMIT": "0"},
			"invalid env var ZTUNNEL_RESOURCE_CPU_LIMIT=0 (must be a positive CPU quantity)"},
		{map[string]string{"PROXY_MODE": "x"}, "invalid env var PROXY_MODE=x (PROXY_MODE must be one of dedicated, shared)"},
		{map[string]string{"CAPTURE": "iptables"}, "invalid env var CAPTURE=iptables (CAPTURE must be one of auto, ebpf, istio-cni)"},
		{map[string]string{"PROBE_SCOPE": ""}, "invalid env var PROBE_SCOPE= (PROBE_SCOPE must be one of host, kubelet)"},
		{map[string]string{"LB_POLICY": "least"}, "invalid env var LB_POLICY=least (LB_POLICY must be one of least-loaded, random)"},
		{dedicated, "invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set"},
		{with(dedicated, "PROXY_WORKLOAD_INFO", "ns/name"), "invalid configuration: PROXY_WORKLOAD_INFO must match the format " +
			"'namespace/name/service-account' (got ns/name)"},
		{map[string]string{"LOCAL_XDS": "", "LOCAL_XDS_PATH": "x"},
			"invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set"},
		{map[string]string{"XDS_ON_DEMAND": "true"}, "error parsing proxy config: DNS proxy does not currently support on-demand mode"},
		{map[string]string{"ENABLE_PROXY": "false", "ISTIO_META_DNS_CAPTURE": "off"},
			"error parsing proxy config: ztunnel run without any servers enabled"},
		{map[string]string{"CA_ADDRESS": ""},
			"invalid configuration: ca_address must be set: CA_ADDRESS is empty and FAKE_CA is not on"},
		{map[string]string{"XDS_ADDRESS": "https://a b"}, "invalid uri: https://a b: invalid character \" \" in host name"},
		{map[string]string{"XDS_ADDRESS": "/path"}, "invalid uri: /path: no host"},
		{map[string]string{"XDS_HEADER_": "v"}, "failed to parse header key: XDS_HEADER_"},
		{map[string]string{"CA_HEADER_A B": "v"}, "failed to parse header key: CA_HEADER_A B"},
		{map[string]string{"CA_HEADER_A-BIN": "v"}, "failed to parse header key: CA_HEADER_A-BIN"},
		{map[string]string{"CA_HEADER_A": "v\n"}, `failed to parse header value: CA_HEADER_A="v\n"`},
		{map[string]string{"ISTIO_META_DNS_PROXY_ADDR": "localhost:x"},
			"invalid configuration: failed to parse DNS_PROXY_ADDR: localhost:x (invalid digit found in string)"},
		{map[string]string{"PROXY_CONFIG": "{}"}, "error parsing proxy config: failed parsing proxy config env: missing field `proxyMetadata`"},
		{map[string]string{"FAKE_CA": "true", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "invalid configuration: FAKE_CA=true is refused " +
			"inside Kubernetes (KUBERNETES_SERVICE_HOST is set) unless EMBEDDED_CA_DIR says where its root and key are kept"},
	} {
		t.Chdir(t.TempDir())
		if _, err := Load(MapEnv(tc.vars, 8), nil); errorText(err) != tc.want {
			t.Errorf("%v: %q, want %q", tc.vars, errorText(err), tc.want)
		}
	}
}

func with(vars map[string]string, name, value string) map[string]string {
	more := maps.Clone(vars)
	more[name] = value
	return more
}

func TestTheEmbeddedAuthority(t *testing.T) {
	c := load(t, map[string]string{"FAKE_CA": "true", "CA_ADDRESS": ""})
	if !c.Control.FakeCA || c.Control.CAAddress != "" || c.Control.EmbeddedCADir != "./var/lib/ztunnel/ca" {
		t.Errorf("outside Kubernetes: %+v", c.Control)
	}
	c = load(t, map[string]string{"FAKE_CA": "true", "KUBERNETES_SERVICE_HOST": "", "EMBEDDED_CA_DIR": "/ca"})
	if c.Control.EmbeddedCADir != "/ca" {
		t.Errorf("inside Kubernetes, with a directory: %+v", c.Control)
	}
}

func TestMeshConfigurationIsOverlaid(t *testing.T) {
	write := func(t *testing.T, text string) {
		t.Helper()
		t.Chdir(t.TempDir())
		if err := os.MkdirAll(filepath.Dir(meshConfigPath), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(meshConfigPath, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const file = `
trustDomain: ignored
defaultConfig:
  discoveryAddress: istiod-of-the-file:15012
  proxyAdminPort: 15099
  statsPort: 15098
  proxyMetadata:
    ISTIO_META_ISTIO_META_TWICE: one-prefix-goes
    PLAIN: stays
    ISTIO_META_BOTH: file
    ISTIO_META_DNS_CAPTURE: "false"
`
	write(t, file)
	c, err := Load(MapEnv(map[string]string{
		"PROXY_CONFIG":                     `{"statsPort": 1234, "proxyMetadata": {"ISTIO_META_BOTH": "env", "ISTIO_META_CLUSTER_ID": "c"}, "holdApplication": true}`,
		"ISTIO_META_ISTIO_META_ALL_PREFIX": "goes",
		"ISTIO_META_PLAIN":                 "overridden",
		"ISTIO_META_CLUSTER_ID":            "test-cluster",
		"CLUSTER_ID":                       "not this",
		"XDS_HEADER_HEADER_FOO":            "foo",
		"XDS_HEADER_header_bar":            "bar",
		"CA_HEADER_HEADER_BAZ":             "baz",
		"ISTIO_METAJSON_ISTIO_METAJSON_J":  `{"a":1}`,
		"ISTIO_METAJSON_BAD":               `{`,
	}, 8), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Control.XDSAddress, "https://istiod-of-the-file:15012"; got != want {
		t.Errorf("xDS address %q, want %q", got, want)
	}
	if got, want := c.Control.CAAddress, "https://localhost:15012"; got != want {
		t.Errorf("CA address %q, want %q: discoveryAddress is not for it", got, want)
	}
	if c.AdminPort != 15099 || c.StatsPort != 1234 || c.DNSProxy || c.ClusterID != "test-cluster" {
		t.Errorf("admin %d, stats %d, dns %v, cluster %q", c.AdminPort, c.StatsPort, c.DNSProxy, c.ClusterID)
	}
	if want := map[string]string{
		"ISTIO_META_TWICE": "one-prefix-goes", "PLAIN": "overridden", "BOTH": "env", "ALL_PREFIX": "goes",
		"CLUSTER_ID": "test-cluster", "DNS_CAPTURE": "false",
	}; !maps.Equal(c.Metadata, want) {
		t.Errorf("metadata %v, want %v", c.Metadata, want)
	}
	if want := []Header{{"header_foo", "foo"}, {"header_bar", "bar"}}; !reflect.DeepEqual(c.Control.XDSHeaders, want) {
		t.Errorf("xDS headers %v, want %v", c.Control.XDSHeaders, want)
	}
	if string(c.MetadataJSON["J"]) != `{"a":1}` || len(c.MetadataJSON) != 1 || c.Notices[len(c.Notices)-1].Text != "failed to parse BAD={" {
		t.Errorf("JSON metadata %v, notices %v", c.MetadataJSON, c.Notices)
	}

	for _, tc := range []struct{ text, want string }{
		{"defaultConfig: {}", "defaultConfig: missing field `proxyMetadata`"},
		{"- a", "line 1: not a mapping"},
		{"defaultConfig:\n  proxyMetadata:\n    A: 1\n", `defaultConfig: proxyMetadata.A: line 3: "1" is not a string (quote it)`},
		{"defaultConfig:\n  proxyMetadata: {}\n  concurrency: -1\n", `defaultConfig: line 3: concurrency: "-1" is no number from 0 to 65535`},
		{"defaultConfig:\n  proxyMetadata: {}\n  discoveryAddress: [1]\n", `defaultConfig: discoveryAddress: line 3: "" is not a string (quote it)`},
	} {
		write(t, tc.text)
		want := "error parsing proxy config: failed parsing mesh config file " + meshConfigPath + ": " + tc.want
		if _, err := Load(MapEnv(nil, 8), nil); errorText(err) != want {
			t.Errorf("%q: %q, want %q", tc.text, errorText(err), want)
		}
	}
	for _, text := range []string{"", "# nothing", "trustDomain: x", "defaultConfig:", "defaultConfig: {proxyMetadata: {}}"} {
		write(t, text)
		if _, err := Load(MapEnv(nil, 8), nil); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAddressesOfTheControlPlane(t *testing.T) {
	const file = `{discoveryAddress: "d:1", proxyMetadata: {}}`
	for _, tc := range []struct {
		name string
		vars map[string]string
		xds  string
		ca   string
	}{
		{"in Kubernetes", map[string]string{"KUBERNETES_SERVICE_HOST": ""},
			"https://istiod.istio-system.svc:15012", "https://istiod.istio-system.svc:15012"},
		{"discoveryAddress", map[string]string{"PROXY_CONFIG": file}, "https://d:1", "https://localhost:15012"},
		{"the variable beats it", map[string]string{"PROXY_CONFIG": file, "XDS_ADDRESS": "http://x:2", "CA_ADDRESS": "c:3"},
			"http://x:2", "https://c:3"},
		{"none", map[string]string{"PROXY_CONFIG": file, "XDS_ADDRESS": ""}, "", "https://localhost:15012"},
		{"a laboratory", map[string]string{"FAKE_CA": "true", "LOCAL_XDS": ""}, "", ""},
		{"a laboratory that names one", map[string]string{"FAKE_CA": "true", "LOCAL_XDS": "", "XDS_ADDRESS": "x:1"}, "https://x:1", ""},
	} {
		if c := load(t, tc.vars); c.Control.XDSAddress != tc.xds || c.Control.CAAddress != tc.ca {
			t.Errorf("%s: %q and %q, want %q and %q", tc.name, c.Control.XDSAddress, c.Control.CAAddress, tc.xds, tc.ca)
		}
	}
}

func TestRootsAndTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := load(t, map[string]string{"XDS_ROOT_CA": file, "CA_ROOT_CA": "SYSTEM", "AUTH_TOKEN": file}).Control
	if c.XDSRoot != (RootCert{File: file}) || c.CARoot != (RootCert{System: true}) || c.TokenFile != file || c.Token != "" {
		t.Errorf("paths: %+v", c)
	}
	c = load(t, map[string]string{"XDS_ROOT_CA": "PEM", "AUTH_TOKEN": "literal"}).Control
	if c.XDSRoot != (RootCert{Inline: "PEM"}) || c.TokenFile != "" || c.Token != "literal" {
		t.Errorf("literals: %+v", c)
	}
	t.Chdir(t.TempDir())
	if err := errors.Join(os.MkdirAll(filepath.Dir(defaultToken), 0o755), os.WriteFile(defaultToken, []byte("t"), 0o600)); err != nil {
		t.Fatal(err)
	}
	whole, err := Load(MapEnv(nil, 8), nil)
	if err != nil || whole.Control.TokenFile != defaultToken {
		t.Errorf("the usual token: %+v, %v", whole, err)
	}
}

func TestDrainDeadline(t *testing.T) {
	for _, tc := range []struct {
		grace, deadline string
		want            time.Duration
	}{
		{"0", "", time.Second}, {"1", "", time.Second}, {"2", "", time.Second}, {"10", "", 9 * time.Second},
		{"11", "", 6 * time.Second}, {"30", "", 25 * time.Second}, {"30", "2m", 2 * time.Minute}, {"", "0", 0},
	} {
		vars := map[string]string{}
		for name, v := range map[string]string{"TERMINATION_GRACE_PERIOD_SECONDS": tc.grace, "CONNECTION_TERMINATION_DEADLINE": tc.deadline} {
			if v != "" {
				vars[name] = v
			}
		}
		if c := load(t, vars); c.Drain != tc.want {
			t.Errorf("%v: %v, want %v", vars, c.Drain, tc.want)
		}
	}
}

func TestModesAndSwitches(t *testing.T) {
	c := load(t, map[string]string{
		"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/pod/sa/with/slashes", "COMPLIANCE_POLICY": "pqc",
		"TLS12_ENABLED": "true", "AUTHZ_POLICY_INFO_LOGGING": "true", "CAPTURE": "istio-cni", "HOST_NETNS": "/run/netns/h",
	})
	if !c.Dedicated || *c.Workload != (WorkloadName{"ns", "pod", "sa/with/slashes"}) || c.Sockets.PacketMark != nil {
		t.Errorf("dedicated: %+v, mark %v", c.Workload, c.Sockets.PacketMark)
	}
	if !c.Control.PQC || !c.Control.TLS12 || !c.PolicyInfo || c.Capture.Mode != "istio-cni" || c.Capture.HostNetns != "/run/netns/h" {
		t.Errorf("switches: %+v", c)
	}
	c = load(t, map[string]string{"COMPLIANCE_POLICY": "PQC", "TLS12_ENABLED": "1", "AUTHZ_POLICY_INFO_LOGGING": "yes", "PACKET_MARK": "0"})
	if c.Control.PQC || c.Control.TLS12 || c.PolicyInfo || *c.Sockets.PacketMark != 0 {
		t.Errorf("other values count as unset: %+v", c)
	}
}

func TestDNSCapture(t *testing.T) {
	for v, want := range map[string]bool{"true": true, "TRUE": true, "false": false, "": false, "1": false} {
		if c := load(t, map[string]string{"ISTIO_META_DNS_CAPTURE": v}); c.DNSProxy != want {
			t.Errorf("%q: %v, want %v", v, c.DNSProxy, want)
		}
	}
}

func TestWhetherLocalhostHasIPv6(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disable_ipv6")
	for _, tc := range []struct {
		enabled bool
		content string
		want    bool
	}{{true, "0\n", true}, {true, "1\n", false}, {false, "0\n", false}} {
		if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, notice := ipv6Localhost(tc.enabled, file); got != tc.want || notice != "" {
			t.Errorf("%+v: %v, %q", tc, got, notice)
		}
	}
	if got, notice := ipv6Localhost(true, file+".gone"); !got || !strings.Contains(notice, fs.ErrNotExist.Error()) && !strings.Contains(notice, "no such file") {
		t.Errorf("unreadable: %v, %q; want true and a notice", got, notice)
	}
}

func TestEveryPrefixOfAProxyConfigIsTakenOrRefused(t *testing.T) {
	for whole, least := range map[string]int{
		// From here on a prefix is a document of its own, with fewer keys.
		"statsPort: 15098\nproxyMetadata:\n  A: b\nconcurrency: 2\n": len("statsPort: 15098\nproxyMetadata:\n  A: b"),
		`{"statsPort": 15098, "proxyMetadata": {"A": "b"}}`:          len(`{"statsPort": 15098, "proxyMetadata": {"A": "b"}}`),
	} {
		for i := range whole {
			if c, err := parseProxyConfig([]byte(whole[:i])); err == nil && (i < least || c.metadata["A"] != "b") {
				t.Errorf("%q is %+v", whole[:i], c)
			}
		}
	}
}

// FuzzProxyConfig holds that no text makes the parser panic, and that what it
// accepts has metadata.
func FuzzProxyConfig(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "proxyMetadata: {}", "proxyMetadata: {A: b}\nconcurrency: 2", "a: &a {x: y}\nproxyMetadata: *a",
		"proxyMetadata: &a {b: *a}", "<<: {proxyMetadata: {}}", "? [x]\n: y", "--- a\n--- b", "proxyMetadata: !!str {}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := parseProxyConfig([]byte(text)); err == nil && c.metadata == nil {
			t.Errorf("%q has no metadata", text)
		}
	})
}
