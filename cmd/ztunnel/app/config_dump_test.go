// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// dumped loads vars and reads the configuration back as a tool does.
func dumped(t *testing.T, vars map[string]string) map[string]any {
	t.Helper()
	c := load(t, vars)
	c.Resolver = Resolver{
		Search: []string{"cluster.local"}, Ndots: 5, Attempts: 2, Timeout: 5 * time.Second,
		Nameservers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")},
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// The keys of contract 13.4.1, letter for letter.
const referenceKeys = `adminAddr altCaHostname altXdsHostname caAddress caHeaders caRootCert clusterDomain
	clusterId connectionWindowSize crlPath dnsProxy dnsProxyAddr dnsResolverCfg dnsResolverOpts
	enableEnhancedBaggage fakeCa fakeSelfInbound frameSize illegalPorts inboundAddr inboundPlaintextAddr
	inpodPortReuse inpodUds ipv6Enabled localNode localhostAppTunnel network numWorkerThreads outboundAddr
	packetMark poolMaxStreamsPerConn poolUnusedReleaseTimeout preferedServiceNamespace proxy proxyArgs
	proxyMetadata proxyMode proxyWorkloadInformation readinessAddr requireOriginalSource secretTtl
	selfTerminationDeadline socketConfig socks5Addr statsAddr windowSize xdsAddress xdsHeaders xdsOnDemand
	xdsRootCert ztunnelIdentity ztunnelWorkload`

func TestDumpHasTheReferencesKeysAndOurs(t *testing.T) {
	got := dumped(t, nil)
	want := append(strings.Fields(referenceKeys), "adminSocket", "capture", "bpfPinDir", "cgroupRoot", "hostNetns", "probeScope",
		"embeddedCaDir", "resolvConf", "dnsCache", "compliancePqc", "tls12Enabled", "authzPolicyInfoLogging",
		"accessLogReason", "accessLogTcpInfo", "lbPolicy", "workloadWaitTimeout")
	for _, key := range want {
		if _, ok := got[key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
	for key := range got {
		if !slices.Contains(want, key) {
			t.Errorf("%s is one key too many", key)
		}
	}
}

func TestDumpHasTheReferencesShapes(t *testing.T) {
	got := dumped(t, map[string]string{
		"POD_NAME": "zt", "POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel",
		"XDS_HEADER_Key": "v", "DNS_CAPTURE": "true", "ISTIO_META_DNS_PROXY_ADDR": "127.0.0.9:53",
		"SECRET_TTL": "1500ms", "UNSTABLE_ENABLE_SOCKS5": "true", "XDS_ADDRESS": "", "CA_ROOT_CA": "SYSTEM",
		"ENABLE_ORIG_SRC": "false",
	})
	number := func(n int) any { return float64(n) }
	for key, want := range map[string]any{
		"statsAddr":                map[string]any{"SocketAddr": "[::]:15020"},
		"inboundAddr":              "[::]:15008",
		"socks5Addr":               "127.0.0.1:15080",
		"dnsProxyAddr":             map[string]any{"SocketAddr": "127.0.0.9:53"},
		"secretTtl":                map[string]any{"secs": number(1), "nanos": number(500_000_000)},
		"packetMark":               number(1337),
		"proxyMode":                "Shared",
		"proxyWorkloadInformation": nil,
		"requireOriginalSource":    false,
		"xdsAddress":               nil,
		"caRootCert":               "Default",
		"xdsRootCert":              "Static",
		"xdsHeaders":               []any{[]any{"key", "v"}},
		"ztunnelIdentity":          "spiffe://cluster.local/ns/istio-system/sa/ztunnel",
		"ztunnelWorkload":          map[string]any{"name": "zt", "namespace": "istio-system", "serviceAccount": "ztunnel"},
		"illegalPorts":             []any{number(15001), number(15006), number(15008), number(15080)},
		"dnsResolverOpts": map[string]any{
			"attempts": number(2), "edns0": false, "ip_strategy": "Ipv4AndIpv6", "ndots": number(5),
			"recursion_desired": true, "timeout": number(5),
		},
		"dnsResolverCfg": map[string]any{
			"domain": nil, "search": []any{"cluster.local"},
			"name_servers": []any{map[string]any{
				"ip": "10.96.0.10", "trust_negative_responses": true,
				"connections": []any{
					map[string]any{"bind_addr": nil, "port": number(53), "protocol": map[string]any{"type": "udp"}},
					map[string]any{"bind_addr": nil, "port": number(53), "protocol": map[string]any{"type": "tcp"}},
				},
			}},
		},
	} {
		if !reflect.DeepEqual(got[key], want) {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
}

func TestDumpShowsNoSecret(t *testing.T) {
	const secret = "do-not-tell"
	text, err := json.Marshal(load(t, map[string]string{
		"AUTH_TOKEN": secret, "LOCAL_XDS": secret, "XDS_ROOT_CA": secret,
	}))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), secret) {
		t.Errorf("the secret is in %s", text)
	}
}

func TestPrintKeepsTheOrderOfDeclaration(t *testing.T) {
	text, err := load(t, map[string]string{"IPV6_ENABLED": "false"}).YAML()
	if err != nil {
		t.Fatal(err)
	}
	const want = "proxy: true\ndnsProxy: true\nwindowSize: 4194304\nconnectionWindowSize: 16777216\n"
	if !strings.HasPrefix(text, want) {
		t.Errorf("begins %.120q, want %q", text, want)
	}
	for _, line := range []string{"outboundAddr: 0.0.0.0:15001\n", "selfTerminationDeadline:\n    secs: 5\n    nanos: 0\n", "capture: auto\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("%q is missing in:\n%s", line, text)
		}
	}
}
